"""4-D files: all sequences of a case in one file, in an order that is written elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from multiseg.faults import check_machine
from multiseg.store.cases import Channel
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_types import Role


def num_volumes(path: Path) -> int | None:
    """How many 3-D volumes a file holds by its header; None where it cannot be read, as its case says later."""
    try:
        return math.prod(int(n) for n in nib.load(path).shape[3:])
    except (OSError, EOFError, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        check_machine(error)
        return None


def stack_roles(case: str, path: Path, names: Mapping[int, str], fields: Mapping[str, str] | None = None) -> list[Role]:
    """A role for every volume of a file; a file of one volume may as well be 3-D."""
    if len(names) == 1:
        return [Role(case, "image", name, path, fields or {}) for name in names.values()]
    return [Role(case, "image", name, Channel(path, number), fields or {}) for number, name in names.items()]


def other_sizes(files: Iterable[tuple[str, Path]], number: int, database: str) -> list[Finding]:
    """An error for every (case, file) that holds more or fewer volumes than there are names."""
    held = [(case, path, num_volumes(path)) for case, path in files]
    message = (
        "{} holds {} volumes, but {} are named, so which is which is not known. Is it another case's kind of file?"
    )
    return [
        Finding(Severity.ERROR, "NUM_VOLUMES", database, case, str(path), message.format(path, there, number))
        for case, path, there in held
        if there is not None and there != number
    ]
