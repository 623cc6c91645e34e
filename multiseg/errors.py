"""The errors of multiseg; each also inherits the built-in it refines.

MultisegError                 anything multiseg says about its input
├── UsageError (ValueError)           an argument or a run file that cannot be meant
│   └── UnconfirmedError              what was guessed and a person has to look at first
├── DataError (ValueError)            data that cannot be used as it is
│   ├── SourceError                   a source file that is missing, damaged or ambiguous
│   ├── LabelError                    label codes or structures that do not fit
│   ├── ModalityError                 sequence names that do not fit
│   └── StoreError                    a store that is missing, damaged or of another recipe
├── CheckpointError (ValueError)      a model or resume file that cannot be used
├── TrainingError (ArithmeticError)   training that cannot go on: non-finite losses or gradients
├── FederationError (RuntimeError)    a site, a server or a message that does not fit the federation
│   └── StoppedError                  work for the federation that somebody at the site ended
└── ResourceError (OSError)           out of disk or memory, or a store that is locked

`exit_code` is what the command line returns: 2 usage, 3 invalid data, 5 out of a resource.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class MultisegError(Exception):
    """Base of every error that multiseg raises on purpose."""

    exit_code = 3


class UsageError(MultisegError, ValueError):
    """An argument or a run file that cannot be meant."""

    exit_code = 2


class UnconfirmedError(UsageError):
    """What was guessed and a person has to look at before it is used; `rows` say it one by one."""

    def __init__(self, message: str, rows: Sequence[Mapping[str, str | int]]) -> None:
        super().__init__(message)
        self.rows = rows


class DataError(MultisegError, ValueError):
    """Data that cannot be used as it is.

    `code` names the kind of fault in one word for tables and scripts, `file` the file it lies in.
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
    """Label codes or structures that do not fit."""

    default_code = "LABEL_CODES"


class ModalityError(DataError):
    """Sequence names that do not fit."""

    default_code = "MODALITY"


class StoreError(DataError):
    """A store that is missing, damaged or of another recipe."""

    default_code = "STORE"


class CheckpointError(MultisegError, ValueError):
    """A model or resume file that cannot be used."""


class TrainingError(MultisegError, ArithmeticError):
    """Training that cannot go on."""


class FederationError(MultisegError, RuntimeError):
    """A site, a server or a message that does not fit the federation."""


class StoppedError(FederationError):
    """Work for the federation that somebody at the site ended; it is begun anew when the site is back."""


class ResourceError(MultisegError, OSError):
    """Out of disk or memory, or something is locked by another process."""

    exit_code = 5


def few(names: Sequence[str], at_most: int = 5) -> str:
    """The first names of a list, and how many more there are, for a message."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
