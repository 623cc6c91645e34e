"""The folders that the published Multi-Unet trains from: Images/<case>.nii.gz, 4-D, and Labels/<case>.nii.gz.

https://github.com/WentianXu/MultiUnet - the last axis of an image is the sequence; their order is in the settings
of a run and not in the files, so the user has to give it.
"""

from __future__ import annotations

from pathlib import Path

from multiseg.errors import SourceError, UsageError, few
from multiseg.store.sources.annotations import only_annotation, schema_for
from multiseg.store.sources.source_channels import check_sizes, num_volumes, stack_roles
from multiseg.store.sources.source_folder import SUFFIX, Folder
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, SourceOptions


def _homes(folder: Folder) -> list[Folder]:
    """The folder itself, or its direct subfolders, if an image and a label there have the same name."""
    names: dict[str, dict[str, set[str]]] = {}
    for match in folder.matches(rf"(?:(?P<home>[^/]+)/)?(?P<part>Images|Labels)/(?P<case>[^/]+?){SUFFIX}"):
        names.setdefault(match["home"] or "", {}).setdefault(match["part"], set()).add(match["case"])
    homes = [home for home, parts in names.items() if parts.get("Images", set()) & parts.get("Labels", set())]
    return [folder] if "" in homes else [folder.subfolder(home) for home in homes]


def _cases(home: Folder, part: str) -> dict[str, Path]:
    return {match["case"]: home.path(match[0]) for match in home.matches(rf"{part}/(?P<case>[^/]+?){SUFFIX}")}


def _recognise(folder: Folder) -> str:
    homes = _homes(folder)
    return f"{homes[0].name} has Images and Labels with files of the same names" if homes else ""


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    homes = _homes(folder)
    if len(homes) != 1:
        listing = few([home.name for home in homes]) or "none"
        message = (
            f"{folder.root} has {len(homes)} databases of Images and Labels ({listing}), but only one can be ingested "
            "at a time, since each has its own sequences. Give the folder of one."
        )
        raise SourceError(message, code="SEVERAL_DATASETS" if homes else "NOTHING_FOUND", file=str(folder.root))
    (home,) = homes
    images, labels = _cases(home, "Images"), _cases(home, "Labels")
    annotation = only_annotation(options)
    names = _volume_names(home, images, options)
    roles = [role for case, path in images.items() for role in stack_roles(case, path, names)]
    roles += [Role(case, "label", annotation, path) for case, path in labels.items()]
    return FoundFiles(
        folder=home,
        roles=roles,
        schemas={annotation: schema_for(annotation, options.codes.get(annotation, ""))},
        unused=home.unused(role.file for role in roles),
        findings=tuple(check_sizes(images.items(), len(names))),
        source="preprocessed for Multi-Unet",
    )


def _volume_names(home: Folder, images: dict[str, Path], options: SourceOptions) -> dict[int, str]:
    """The spelling of every volume of most images, which is its number.

    Raises:
        UsageError: the user does not name the sequences of all volumes.
    """
    numbers = [number for path in images.values() if (number := num_volumes(path)) is not None]
    usual = max(set(numbers), key=numbers.count, default=1)
    unnamed = [str(n) for n in range(usual) if str(n) not in options.modalities]
    if unnamed:
        raise UsageError(
            f"{home.root} has images of {usual} sequences, and the files do not say which. Name volume "
            f"{', '.join(unnamed)} in the order of the settings they were made with: "
            f"{' '.join(f'--modality {n}=NAME' for n in unnamed)}, such as 0=FLAIR; 0=skip leaves one out."
        )
    return {n: str(n) for n in range(usual)}


LAYOUT = Layout("multiunet", "preprocessed for Multi-Unet", _recognise, _find)
