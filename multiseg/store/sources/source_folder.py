"""The names of all files in a folder and its subfolders, read once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar

from multiseg.errors import SourceError
from multiseg.store.cases import LabelFile, paths_of
from multiseg.store.formats.nifti_zarr import is_nifti_zarr

SUFFIX = r"\.(?:nii(?:\.gz)*|nii\.zarr|mg[zh]|mha|mhd|nrrd|nhdr|img(?:\.gz)*)"
"""The suffixes of volumes, as a regular expression; "x.nii.gz.gz" occurs, too."""
TEST_OR_TRAINING = re.compile(r"(?<![a-z])(?P<test>test|testing|testset)(?![a-z])|(?<![a-z])train(?:ing|set)?(?![a-z])")
"""Words for the test and training part of a dataset in folder names, in lower case."""
_HEADER = r"\.hdr(?:\.gz)*$"
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Folder:
    """A folder's relative file names, sorted, without hidden files (such as macOS's "._x").

    A NIfTI-Zarr, though a folder, is one name among them.
    """

    root: Path
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @cached_property
    def volumes(self) -> tuple[str, ...]:
        """The files whose names are those of images or labels; of a pair (.hdr, .img) only the .img.

        A header without its .img is included, so that the missing voxels are reported.
        """
        voxels = {_without_half(file) for file in self.files if is_volume(file)}
        return tuple(
            file
            for file in self.files
            if is_volume(file) or (re.search(_HEADER, file, re.IGNORECASE) and _without_half(file) not in voxels)
        )

    def matches(self, expression: str | re.Pattern[str]) -> list[re.Match[str]]:
        """The files whose whole relative name matches a regular expression."""
        compiled = re.compile(expression)
        return [match for file in self.files if (match := compiled.fullmatch(file))]

    def path(self, file: str) -> Path:
        return self.root / file

    def unused(self, files: Iterable[LabelFile]) -> list[str]:
        """The volumes that are not among these files."""
        used = {path for file in files for path in paths_of(file)}
        return [volume for volume in self.volumes if self.path(volume) not in used]

    def subfolder(self, prefix: str) -> Folder:
        """A folder in this one."""
        head = prefix.rstrip("/") + "/"
        return Folder(self.root / prefix, tuple(f.removeprefix(head) for f in self.files if f.startswith(head)))


def is_volume(file: str) -> bool:
    """Whether a name is that of a volume: NIfTI (compressed, in Zarr or the .img of a pair), MGH, MetaImage or NRRD."""
    return re.search(SUFFIX + "$", file, flags=re.IGNORECASE) is not None


def _without_half(file: str) -> str:
    return re.sub(r"\.(?:hdr|img)(?:\.gz)*$", "", file, flags=re.IGNORECASE)


def look_into(root: Path) -> Folder:
    """The names of all files in `root` and its subfolders.

    Raises:
        SourceError: `root` is not a folder.
    """
    if root.is_file():
        message = f"{root} is a file. Name the folder of the dataset, or its table (.csv, .toml, .json)."
        raise SourceError(message, code="NO_FOLDER", file=str(root))
    if not root.is_dir():
        raise SourceError(f"folder {root} does not exist.", code="MISSING_FILE", file=str(root))
    return Folder(root, tuple(_files_below(root)))


def _files_below(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root, followlinks=True):
        entered = sorted(name for name in subfolders if not name.startswith(".") and not _loops(folder, name))
        images = [name for name in entered if is_nifti_zarr(Path(folder, name))]  # each is one volume
        subfolders[:] = [name for name in entered if name not in images]
        for name in sorted([*names, *images]):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _loops(folder: str, name: str) -> bool:
    """Whether a folder is a link to one of its parents: following it would never end."""
    path = Path(folder, name)
    return path.is_symlink() and Path(folder).resolve().is_relative_to(path.resolve())


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by a key, in the order in which the keys first occur."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def is_test_part(folder: Folder, file: str) -> bool:
    """Whether a file is in a test part, such as "Testing/" or "SISS2015_Testing/"; the innermost folder decides."""
    for part in (*reversed(PurePosixPath(file).parts[:-1]), folder.name):
        if word := TEST_OR_TRAINING.search(part.lower()):
            return bool(word["test"])
    return False
