"""MONAI's and TorchIO's loaders of patches, on compressed NIfTI files of the same cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.cases import Cases, full_precision
from benchmarks.ours import FOR_EVER, Work, touch
from benchmarks.sides import Source
from multiseg.labels import LabelSpace
from multiseg.store.reader import open_store

LARGEST = 128
"""Volumes are padded to this edge, since these peers cut no patch that reaches over a border."""
PER_VOLUME, QUEUE = 8, 32


def is_installed(package: str) -> bool:
    return find_spec(package) is not None


def volumes_of(cases: Cases) -> list[dict[str, Any]]:
    """The files of every case: a list of images, and a label; written once."""
    store = open_store(cases.url)
    found = []
    for case in store.cases:
        folder = cases.folder / "volumes" / case.name
        images = [folder / f"{name}.nii.gz" for name in store[case.database].modalities]
        label = folder / "label.nii.gz"
        if not label.exists():
            folder.mkdir(parents=True, exist_ok=True)
            whole, codes = store[case.database].whole(case)
            target = store[case.database].label_view(case, LabelSpace()).target(codes)
            for path, voxels in zip(images, full_precision(whole, case.row), strict=True):
                _write(path, voxels, case.grid.affine)
            _write(label, target, case.grid.affine)
        found.append({"image": [str(path) for path in images], "label": str(label)})
    return found


def _write(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    padded = np.pad(voxels, [(0, max(0, LARGEST - n)) for n in voxels.shape])
    nib.save(nib.Nifti1Image(padded, affine), path)


def monai_persistent(cases: Cases, work: Work, num_samples: int) -> Source:
    """PersistentDataset, its cache full, and crops of which half are centred on a lesion."""
    make = partial(_monai, volumes_of(cases), cases.folder / "monai", work, num_samples)
    return Source(f"MONAI PersistentDataset, {num_samples} a volume", make, ready=6)


def _monai(volumes: list[dict[str, Any]], cache: Path, work: Work, num_samples: int) -> Iterator[int]:
    from monai import transforms
    from monai.data import PersistentDataset, list_data_collate

    edge = (work.edge,) * 3
    steps: Callable[[Any], Any] = transforms.Compose(
        [
            transforms.LoadImaged(["image", "label"], reader="NibabelReader", ensure_channel_first=True),
            transforms.EnsureTyped(["image", "label"], track_meta=False),
            transforms.RandCropByPosNegLabeld(["image", "label"], "label", edge, pos=1, neg=1, num_samples=num_samples),
        ]
    )
    dataset = PersistentDataset(volumes, steps, cache)
    for at in range(len(volumes)):  # fills the cache
        dataset[at]
    # Four patches of one volume, or one of each of two, make a batch.
    size = max(1, work.batch_size // num_samples)
    loader = DataLoader(
        dataset, size, sampler=_endless(dataset), num_workers=work.workers, collate_fn=list_data_collate
    )
    for batch in loader:
        # As plain tensors: indexing MONAI's own ones takes seconds, which are not the loader's.
        yield touch(batch["image"].as_tensor(), batch["label"].as_tensor())


def _endless(dataset: Any) -> RandomSampler:
    """Cases at random without end: with so few, starting workers anew for every epoch would take most of the time."""
    return RandomSampler(dataset, replacement=True, num_samples=FOR_EVER)


def torchio_queue(cases: Cases, work: Work, sampler: str) -> Source:
    """Queue of 32 patches, 8 of each volume; places are uniform, or half of them on a lesion ("label")."""
    make = partial(_torchio, volumes_of(cases), work, sampler)
    return Source(f"TorchIO Queue, {sampler}, {PER_VOLUME} a volume", make, ready=0, cycle=QUEUE // work.batch_size)


def _torchio(volumes: list[dict[str, Any]], work: Work, sampler: str) -> Iterator[int]:
    import torchio as tio

    subjects = [
        tio.Subject(image=tio.ScalarImage(files["image"]), label=tio.LabelMap(files["label"])) for files in volumes
    ]
    draw = tio.UniformSampler(work.edge) if sampler == "uniform" else tio.LabelSampler(
        work.edge, "label", {0: 1, 1: 1}
    )  # fmt: skip
    dataset = tio.SubjectsDataset(subjects)
    queue = tio.Queue(
        dataset, QUEUE, PER_VOLUME, draw, subject_sampler=_endless(dataset), shuffle_subjects=False,
        num_workers=work.workers,
    )  # fmt: skip
    for batch in tio.SubjectsLoader(queue, batch_size=work.batch_size, num_workers=0):
        yield touch(batch["image"][tio.DATA], batch["label"][tio.DATA])
