"""The errors of multiseg. Each also inherits the built-in error that it refines.

MultisegError                 every error that multiseg raises on purpose
├── UsageError (ValueError)           an argument or a run file that is invalid
│   └── UnconfirmedError              a guess that a person has to confirm first
├── DataError (ValueError)            data that cannot be used as they are
│   ├── SourceError                   a source file that is missing, damaged or ambiguous
│   ├── LabelError                    label codes or structures that are unknown or do not match
│   ├── ModalityError                 sequence names that are unknown or do not match
│   └── StoreError                    a store that is missing, damaged or has another recipe
├── CheckpointError (ValueError)      a model or resume file that cannot be used
├── TrainingError (ArithmeticError)   training that cannot continue: non-finite losses or gradients
├── FederationError (RuntimeError)    a site, a server or a message that is invalid or does not match
│   └── StoppedError                  work for the federation that was stopped at the site
└── ResourceError (OSError)           out of disk or memory, or a store that is locked

`exit_code` is that of the command line: 2 for usage, 5 for a missing resource, 3 for all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class MultisegError(Exception):
    """Base of every error that multiseg raises on purpose."""

    exit_code = 3


class UsageError(MultisegError, ValueError):
    """An argument or a run file that is invalid."""

    exit_code = 2


class UnconfirmedError(UsageError):
    """A guess that a person has to confirm before it is used. `rows` lists what was guessed."""

    def __init__(self, message: str, rows: Sequence[Mapping[str, str | int]]) -> None:
        super().__init__(message)
        self.rows = rows


class DataError(MultisegError, ValueError):
    """Data that cannot be used as they are.

    `code`: the kind of fault in one word, for tables and scripts. `file`: the file with the fault.
    """

    default_code = "DATA"

    def __init__(self, message: str, *, code: str = "", file: str = "") -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.file = file


class SourceError(DataError):
    """A source file that is missing, damaged or ambiguous."""

    default_code = "SOURCE"


class LabelError(DataError):
    """Label codes or structures that are unknown or do not match."""

    default_code = "LABEL_CODES"


class ModalityError(DataError):
    """Sequence names that are unknown or do not match."""

    default_code = "MODALITY"


class StoreError(DataError):
    """A store that is missing, damaged or has another recipe."""

    default_code = "STORE"


class CheckpointError(MultisegError, ValueError):
    """A model or resume file that cannot be used."""


class TrainingError(MultisegError, ArithmeticError):
    """Training that cannot continue."""


class FederationError(MultisegError, RuntimeError):
    """A site, a server or a message that is invalid or does not match."""


class StoppedError(FederationError):
    """Work for the federation that was stopped at the site. It starts again when the site is back."""


class ResourceError(MultisegError, OSError):
    """Out of disk or memory, or locked by another process."""

    exit_code = 5


def few(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, and the number of others, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def counted(num: int, noun: str) -> str:
    """A number and its noun, with the plural "s" where it needs one.

    >>> counted(1, "case"), counted(2, "case"), counted(0, "case")
    ('1 case', '2 cases', '0 cases')
    """
    return f"{num} {noun}{'' if num == 1 else 's'}"
