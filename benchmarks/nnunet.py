"""nnU-Net 2.8.1's loader without augmentation, on files that its own classes wrote, over the stream's own windows.

Its class for a dataset reads, its loader crops and stacks, and its augmenter's processes deliver, as in its trainer.
Only which case and which corner come next is told to it, through the two methods that decide them; it is spared
drawing them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Cases, full_precision
from benchmarks.ours import Work, open_stream, touch, windows_of
from benchmarks.sides import Source
from multiseg.store.reader import open_store

with suppress(ImportError):
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

NUM_CACHED = 6
"""Batches that its trainer lets lie ready: in the processes' queue, and again as many in the main process."""


def folder_of(cases: Cases, edge: int) -> Path:
    """Its preprocessed cases, cut for this patch as its planner would; written once."""
    folder = cases.folder / f"nnunet-{edge}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    stream = open_stream(Work(cases.url, edge, workers=0))
    store = open_store(cases.url)
    for case in store.cases:
        images, codes = store[case.database].whole(case)
        data = full_precision(images, case.row)
        view = store[case.database].label_view(case, stream.space)
        seg = view.target(codes)[None].astype(np.int8)
        where = DefaultPreprocessor._sample_foreground_locations(seg, list(range(1, len(stream.space.labels) + 1)))
        cut = [comp_blosc2_params(array.shape, (edge,) * 3, array.itemsize) for array in (data, seg)]
        nnUNetDatasetBlosc2.save_case(
            data, seg, {"class_locations": where, "spacing": list(store.spacing_mm)},
            str(folder / f"{case.database}_{case.name}"),
            chunks=cut[0][1], blocks=cut[0][0], chunks_seg=cut[1][1], blocks_seg=cut[1][0],
        )  # fmt: skip
    (folder / "done").touch()
    return folder


def _same_windows(folder: Path, work: Work, processes: int) -> Any:
    """Its loader, told the stream's windows."""

    class SameWindows(nnUNetDataLoader):  # type: ignore[misc]  # made here, where there is something to derive from
        def __init__(self) -> None:
            size = (work.edge,) * 3
            labels = LabelManager({"background": 0, "lesion": 1}, None)
            super().__init__(nnUNetDatasetBlosc2(str(folder)), work.batch_size, size, size, labels, 0.5)
            found = windows_of(work)
            self.windows = [(f"{database}_{case}", corner) for database, case, _, corner in found]
            self.batch = -1
            self.corners: list[tuple[int, int, int]] = []

        def get_indices(self) -> list[str]:
            # Every process makes every so-many-th batch.
            self.batch = self.thread_id if self.batch < 0 else self.batch + processes
            first = self.batch * self.batch_size
            mine = [self.windows[(first + at) % len(self.windows)] for at in range(self.batch_size)]
            self.corners = [corner for _, corner in mine]
            return [identifier for identifier, _ in mine]

        def get_bbox(self, *_: Any, **__: Any) -> tuple[list[int], list[int]]:
            corner = self.corners.pop(0)
            return list(corner), [c + n for c, n in zip(corner, self.patch_size, strict=True)]

    return SameWindows()


def loader(cases: Cases, work: Work) -> Source:
    return Source("nnU-Net", partial(_batches, folder_of(cases, work.edge), work), ready=2 * NUM_CACHED + 4)


def _batches(folder: Path, work: Work) -> Iterator[int]:
    """As its trainer makes them, without transforms."""
    augmenter = NonDetMultiThreadedAugmenter(
        _same_windows(folder, work, work.workers), None, work.workers, NUM_CACHED, None, False, wait_time=0.002
    )
    try:
        for batch in augmenter:
            yield touch(batch["data"], batch["target"])
    finally:
        augmenter._finish()


def in_process(folder: Path, work: Work) -> Any:
    """Its batches one after the other, made where they are asked for."""
    batches = _same_windows(folder, work, 1)
    batches.set_thread_id(0)
    return batches


def check(cases: Cases, work: Work, num: int = 4) -> str:
    """Whether both sides deliver the same windows; run it in a process of its own.

    Its images must round to ours, and its labels be ours; beyond a case it writes -1 and we 0.
    """
    theirs = in_process(folder_of(cases, work.edge), work)
    for at, ours in enumerate(open_stream(replace(work, workers=0)).batches(0, num)):
        batch = next(theirs)
        images, target = batch["data"], batch["target"][:, 0]
        assert images.dtype == torch.float32, images.dtype
        assert images.shape == ours.images.shape, (images.shape, ours.images.shape)
        assert bool(ours.present.all()), ours.present
        assert bool(images.any()), f"batch {at} is empty"
        assert torch.equal(images.half(), ours.images), f"batch {at}: images differ"
        assert torch.equal(target.clamp(min=0).to(torch.uint8), ours.target), f"batch {at}: labels differ"
    return f"same voxels in {num} batches of {tuple(ours.images.shape)}"
