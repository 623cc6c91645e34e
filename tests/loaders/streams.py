"""What tests of the stream share: streams over small patches, and what they must all give."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.loaders.batches import Batch, PatchStream, Share, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.store.reader import Store

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T1c", "T2", "DWI", "ADC"))
LESION_AND_CSF = LabelSpace((SpaceLabel("lesion", "lesion"), SpaceLabel("CSF", "tissue")))
FIELDS = ("images", "present", "target", "annotated", "corner", "draws")


def stream_of(
    store: Store,
    axis: ModalityAxis = AXIS,
    space: LabelSpace = LESION_AND_CSF,
    databases: Sequence[str] = (),
    share: Share | None = None,
    draw: dict[str, Any] | None = None,
    **options: Any,
) -> PatchStream:
    drawn = DrawOptions(**{"patch": (12, 14, 10), "overhang": 4} | (draw or {}))
    options = {"batch_size": 3, "workers": 0, "batches_per_epoch": 2} | options
    return PatchStream(store, axis, space, StreamOptions(drawn, **options), databases=databases, share=share)


def digests(batches: Iterable[Batch]) -> list[str]:
    """One for each batch, over all that is in it."""
    found = []
    for batch in batches:
        parts = [getattr(batch, name).contiguous().numpy().tobytes() for name in FIELDS]
        found.append(hashlib.sha256(b"".join([*parts, repr((batch.database, batch.case)).encode()])).hexdigest())
    return found


def assert_same(some: Sequence[Batch], others: Sequence[Batch]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert (a.database, a.case) == (b.database, b.case)
        for name in FIELDS:
            assert torch.equal(getattr(a, name), getattr(b, name)), name
