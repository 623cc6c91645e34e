"""A case of a store, as preparation left it: ready for a model, with its way home to its native grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multiseg.store.preparation.prepare import PreparedCase
from multiseg.store.reader import Case, Database


def as_prepared(database: Database, case: Case, only: Sequence[str]) -> PreparedCase:
    """What `prepare_case` made of the case's files when it was ingested, without its annotations.

    Args:
        only: its sequences that are wanted.

    Raises:
        StoreError: a file of the case is damaged or missing.
    """
    names = tuple(name for name in case.modalities if name in only)
    channels = [database.modalities.index(name) for name in names]
    images = database.image(case, (0, 0, 0), case.extent)[channels]
    native, header = database.native(case)
    brain_voxels = int(np.count_nonzero((images != 0).any(axis=0)))
    return PreparedCase(
        modalities=names,
        images=images,
        labels={},
        grid=case.grid,
        native=native,
        native_header=header,
        mean=np.array([case.intensity[name][0] for name in names]),
        std=np.array([case.intensity[name][1] for name in names]),
        sources=tuple(database.sources(case)),
        doubts=(),
        content=tuple(case.content.get(name, "") for name in names),
        outside=np.zeros(len(channels)),  # it is not stored
        brain_ml=brain_voxels * float(np.prod(case.grid.spacing_mm)) / 1000,
        structures_ml={},
    )
