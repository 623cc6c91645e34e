"""4-D files: all sequences of a case in one file, in an order that the file does not say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from multiseg.faults import check_machine
from multiseg.store.cases import Channel
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.source_types import Role, finding


def num_volumes(path: Path) -> int | None:
    """The number of 3-D volumes in a file; None if it cannot be read, which is reported when its case is prepared."""
    try:
        return math.prod(int(n) for n in nib.load(path).shape[3:])
    except (OSError, EOFError, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        check_machine(error)
        return None


def stack_roles(case: str, path: Path, names: Mapping[int, str], fields: Mapping[str, str] | None = None) -> list[Role]:
    """A role for every volume of a file; a file with one volume may also be 3-D."""
    if len(names) == 1:
        return [Role(case, "image", name, path, fields or {}) for name in names.values()]
    return [Role(case, "image", name, Channel(path, number), fields or {}) for number, name in names.items()]


def check_sizes(files: Iterable[tuple[str, Path]], expected: int) -> Iterator[Finding]:
    """An error for every (case, file) with more or fewer volumes than expected."""
    for case, path in files:
        number = num_volumes(path)
        if number is not None and number != expected:
            message = f"{path} has {number} volumes, but {expected} are named, so it is unclear which is which."
            yield finding(Severity.ERROR, "NUM_VOLUMES", message, case, str(path))
