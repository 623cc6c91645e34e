"""The files of one case, before they are read: which file is which sequence, annotation or mask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from multiseg.modalities import in_canonical_order
from multiseg.store.formats.nifti_zarr import is_nifti_zarr, sha256_of_folder
from multiseg.store.formats.pair import further_files


@dataclass(frozen=True)
class Channel:
    """One volume of a 4-D file: `index` counts from 0 along the last axis that is not space."""

    path: Path
    index: int

    @property
    def name(self) -> str:
        return f"{self.path.name}[{self.index}]"


@dataclass(frozen=True)
class Series:
    """The slices of one DICOM series, in any order."""

    files: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The folder of the series."""
        return self.files[0].parent

    @property
    def name(self) -> str:
        return f"{self.path.name} ({len(self.files)} slices)"


@dataclass(frozen=True)
class Majority:
    """Several raters' labels of one case, merged by vote: each voxel gets the code that most raters gave it."""

    raters: tuple[Path | Channel, ...]

    @property
    def path(self) -> Path:
        return paths_of(self.raters[0])[0].parent

    @property
    def name(self) -> str:
        return "majority of " + ", ".join(rater.name for rater in self.raters)


ScanFile: TypeAlias = Path | Channel | Series
"""The location of one volume: a file, one volume of a 4-D file, or the many files of a series."""
LabelFile: TypeAlias = ScanFile | Majority


def paths_of(file: LabelFile) -> tuple[Path, ...]:
    """The files on disk that a volume is read from."""
    match file:
        case Path():
            return (file,)
        case Channel():
            return (file.path,)
        case Series():
            return file.files
        case Majority():
            return tuple(path for rater in file.raters for path in paths_of(rater))


def part_of(file: LabelFile) -> str:
    """How the volume is taken from its files, for the provenance; "" for a whole file."""
    match file:
        case Channel():
            return f"volume {file.index}"
        case Majority():
            return "majority"
        case _:
            return ""


def sha256_of(file: LabelFile) -> str:
    """The digest of a volume's files, byte for byte.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    digests = []
    for path in paths_of(file):
        if is_nifti_zarr(path):
            digests.append(sha256_of_folder(path))
            continue
        if not path.is_file():  # reading from a pipe would never return
            raise FileNotFoundError(path)
        data = path.read_bytes()
        parts = [data, *(other.read_bytes() for other in further_files(path, data))]
        digests += [hashlib.sha256(part).hexdigest() for part in parts]
    return joined_sha256(digests, part_of(file))


def joined_sha256(digests: Sequence[str], part: str = "") -> str:
    """One digest for a volume from those of its files. A volume that is one whole file has that file's digest."""
    if len(digests) == 1 and not part:
        return digests[0]
    return hashlib.sha256("\n".join([*digests, part]).encode()).hexdigest()


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, by sequence and by annotation, and what is known of the patient.

    `split_given`: the user chose the split, so that it must not be drawn at random.
    """

    case: str
    images: Mapping[str, ScanFile]
    labels: Mapping[str, LabelFile] = field(default_factory=dict)
    brain_mask: ScanFile | None = None
    subject: str = ""
    session: str = ""
    site: str = ""
    split: str = ""
    split_given: bool = False
    participant: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def person(self) -> str:
        """The person that the case shows: the subject if it is known, else the name of the case."""
        return self.subject or self.case

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of its files on disk."""
        return tuple(path for file in self.by_role.values() for path in paths_of(file))

    @property
    def by_role(self) -> dict[str, LabelFile]:
        """Every volume by its role, in a fixed order: sequences, then labels, then the brain mask."""
        images: dict[str, LabelFile] = {name: self.images[name] for name in in_canonical_order(sorted(self.images))}
        labels = {f"label:{name}": file for name, file in sorted(self.labels.items())}
        return images | labels | ({"brain_mask": self.brain_mask} if self.brain_mask else {})
