"""Looking into label files before ingest, where names do not tell what their codes mean."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from multiseg.errors import SourceError
from multiseg.store.cases import ScanFile
from multiseg.store.formats.reading import read_volume


def codes_in(file: ScanFile) -> frozenset[int]:
    """The whole numbers in a label file other than 0; none where the file cannot be read.

    A damaged file is no reason to stop here: its own case says so when it is prepared.
    """
    try:
        values = np.unique(read_volume(file).voxels)
    except SourceError:
        return frozenset()
    return frozenset(int(code) for code in np.rint(values)) - {0}


def codes_in_each(files: Iterable[ScanFile]) -> list[frozenset[int]]:
    """The codes of every file, in their order."""
    return [codes_in(file) for file in files]
