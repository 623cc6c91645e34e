"""Patches a second of the stream, against cropping decoded cases in memory. Run: python -m benchmarks.loader"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.paired import phantom_store, ratios, report
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis

BATCH = 2
BATCHES = {64: 60, 96: 30, 128: 15}


def main() -> None:
    store = phantom_store(1.0)
    axis = ModalityAxis.union(database.modalities for database in store.databases.values())
    decoded = {(case.database, case.row): store[case.database].whole(case) for case in store.cases}
    for edge, num_batches in BATCHES.items():
        draw = DrawOptions((edge, edge, edge))
        stream = PatchStream(store, axis, LabelSpace(), StreamOptions(draw, BATCH, workers=2))

        def ours(stream: PatchStream = stream, n: int = num_batches) -> None:
            for batch in stream.batches(0, n):
                assert len(batch.case) == BATCH

        def theirs(stream: PatchStream = stream, n: int = num_batches, edge: int = edge) -> None:
            for step in range(n):
                images = torch.empty(BATCH, len(axis), edge, edge, edge, dtype=torch.float16)
                for at in range(BATCH):
                    drawn = stream.plan.draw(0, step * BATCH + at)
                    whole, codes = decoded[drawn.case.database, drawn.case.row]
                    part = tuple(slice(max(0, c), c + edge) for c in drawn.corner)
                    crop = np.ascontiguousarray(whole[:, *part])
                    images[at, : crop.shape[0], : crop.shape[1], : crop.shape[2], : crop.shape[3]] = torch.from_numpy(
                        crop
                    )
                    codes[:, *part].copy()

        report(f"stream, 2 workers, {edge}^3", "cropping decoded cases in memory", ratios(ours, theirs, rounds=5))


if __name__ == "__main__":
    main()
