"""The peak of `predict` and of `evaluate` on one case of 512 x 512 x 300 voxels with four sequences, under a budget.

Run: python -m benchmarks.memory [BUDGET] [--voxels 512 512 300] [--subsets FLAIR+T1,FLAIR]

Each is a process of its own. The network looks at one voxel, and one window of a Multi-Unet would come on top: what is
measured is all that grows with the case. A phantom head of noise is written in voxels of 0.5 mm; its lesions are solid
boxes of one structure, and no zones are measured.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.saved import Model, ModelInfo
from multiseg.sizes import num_bytes

SEQUENCES = ("FLAIR", "T1", "T1c", "T2")
SPACING_MM = (0.5, 0.5, 0.5)
PATCH = (128, 128, 128)
TASKS = ("predict", "evaluate")


class Bright(nn.Module):
    """Says lesion where the mean of the sequences is high."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        return 5 * (images.mean(dim=1, keepdim=True) - self.level)


def model() -> Model:
    info = ModelInfo(
        builder="bright", numbers={}, axis=ModalityAxis(SEQUENCES), space=LabelSpace(), spacing_mm=SPACING_MM,
        patch=PATCH, trained_on=dict.fromkeys(SEQUENCES, ("phantom",)), databases={},
    )  # fmt: skip
    return Model(Bright(), info).eval()


def write_case(folder: Path, shape: tuple[int, int, int]) -> None:
    """Four sequences and a label; boxes of bright voxels are lesions."""
    from multiseg.store.formats.nifti import write_nifti

    i, j, k = (((np.arange(n) - n / 2) / (n / 2.2)) for n in shape)
    radius = i[:, None, None] ** 2 + j[None, :, None] ** 2 + k[None, None, :] ** 2
    head, affine, rng = radius < 1, np.diag([*SPACING_MM, 1.0]), np.random.default_rng(0)
    lesion = np.zeros(shape, np.uint8)
    for _ in range(60):
        a, b, c = (int(rng.integers(n // 4, 3 * n // 4)) for n in shape)
        lesion[a : a + 8, b : b + 8, c : c + 8] = 1
    for name in SEQUENCES:
        voxels = np.zeros(shape, np.int16)
        voxels[head] = rng.integers(80, 120, size=int(head.sum())).astype(np.int16)
        voxels[lesion == 1] += 60
        write_nifti(folder / f"{name}.nii", voxels, affine)
    write_nifti(folder / "lesion.nii", lesion, affine)


def ingest_case(folder: Path) -> None:
    from multiseg import IngestOptions, ingest
    from multiseg.store.sources.manifest import find_manifest

    rows = [f"case,database,pathology,{','.join(SEQUENCES)},label:lesion,split"]
    rows.append(f"one,phantom,ms,{','.join(f'{name}.nii' for name in SEQUENCES)},lesion.nii,test")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (report,) = ingest(find_manifest(folder / "cases.csv"), str(folder / "case.zarr"), IngestOptions(SPACING_MM))
    assert len(report.written) == 1, report


def run(task: str, folder: Path, budget: str, subsets: str) -> None:
    """One of the tasks, in this process; prints its peak."""
    import multiseg

    began = time.perf_counter()
    if task == "predict":
        options = multiseg.PredictOptions(overlap=0.25, memory=budget)
        files = {name: folder / f"{name}.nii" for name in SEQUENCES}
        multiseg.predict(model(), files, folder / "out.nii.gz", options, overwrite=True)
    else:
        found = multiseg.EvaluateOptions(subsets=subsets, overlap=0.25, memory=budget)
        print(multiseg.evaluate(model(), str(folder / "case.zarr"), found).cases["dice"].round(3).tolist())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    share = peak / num_bytes(budget, "the budget") if budget else float("nan")
    print(
        f"{task}, budget {budget or 'none'}: peak {peak / 1e9:.2f} GB, {share:.0%}, {time.perf_counter() - began:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("budget", nargs="?", default="4GB")
    parser.add_argument("--voxels", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--subsets", default="full", help="of the sequences, which evaluate measures")
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.task:
        run(given.task, given.folder, given.budget, given.subsets)
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_case(folder, tuple(given.voxels))
        ingest_case(folder)
        for task in TASKS:
            command = [sys.executable, "-m", "benchmarks.memory", given.budget, "--task", task, "--folder", text]
            command += ["--subsets", given.subsets]
            subprocess.run(command, check=False)


if __name__ == "__main__":
    main()
