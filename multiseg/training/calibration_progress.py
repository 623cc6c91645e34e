"""The samples of an interrupted calibration, in a hidden folder beside the model file."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multiseg.evaluation.temperature_fit import Sample
from multiseg.files import write_atomically

_ARRAYS = ("probabilities", "target", "predicted", "weights", "annotated", "dice")


class KeptSamples:
    """Samples by case, for one calibration of one model file; those of another calibration are removed."""

    def __init__(self, file: Path, key: str) -> None:
        self.root = file.with_name(f".{file.name}.calibration")
        self.folder = self.root / key[:16]
        for other in self.root.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def read(self, case: str) -> list[Sample] | None:
        """The samples of a case; None if they are not there, or damaged."""
        try:
            data = io.BytesIO(self._path(case).read_bytes())  # np.load leaves a damaged file open
            with np.load(data, allow_pickle=False) as held:
                return [_sample(held, index) for index in range(int(held["num"]))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, case: str, samples: Sequence[Sample]) -> None:
        """Keep the samples of a case.

        Raises:
            ResourceError: the disk is full.
        """
        arrays: dict[str, np.ndarray] = {"num": np.array(len(samples))}
        for index, sample in enumerate(samples):
            arrays[f"{index}.database"] = np.array(sample.database)
            arrays[f"{index}.sequences"] = np.array(sample.sequences)
            arrays |= {f"{index}.{name}": getattr(sample, name) for name in _ARRAYS}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomically(self._path(case), buffer.getvalue())

    def remove(self) -> None:
        """Remove all that is kept."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _path(self, case: str) -> Path:
        return self.folder / f"{hashlib.sha256(case.encode()).hexdigest()[:32]}.npz"


def _sample(held: np.lib.npyio.NpzFile, index: int) -> Sample:
    arrays = {name: held[f"{index}.{name}"] for name in _ARRAYS}
    sequences = tuple(str(name) for name in held[f"{index}.sequences"])
    return Sample(str(held[f"{index}.database"]), sequences, **arrays)
