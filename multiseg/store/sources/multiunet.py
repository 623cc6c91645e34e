"""The folders that the published Multi-Unet trains from: Images/<case>.nii.gz, 4-D, and Labels/<case>.nii.gz.

https://github.com/WentianXu/MultiUnet - the last axis of an image is the sequence; their order stands in the
settings of a run and not in the files, so it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multiseg.errors import SourceError, UsageError
from multiseg.store.findings import Finding
from multiseg.store.sources.annotations import only_annotation, schema_for
from multiseg.store.sources.source_folder import SUFFIX, Folder, listed
from multiseg.store.sources.source_types import Found, Layout, Role, SourceOptions, unused_volumes
from multiseg.store.sources.stacks import num_volumes, other_sizes, stack_roles


def _homes(folder: Folder) -> list[Folder]:
    """The folder itself, or those right in it, where an image and a label have one name."""
    names: dict[str, dict[str, set[str]]] = {}
    for match in folder.fitting(rf"(?:(?P<home>[^/]+)/)?(?P<part>Images|Labels)/(?P<case>[^/]+?){SUFFIX}"):
        names.setdefault(match["home"] or "", {}).setdefault(match["part"], set()).add(match["case"])
    homes = [home for home, parts in names.items() if parts.get("Images", set()) & parts.get("Labels", set())]
    return [folder] if "" in homes else [folder.within(home) for home in homes]


def _cases(home: Folder, part: str) -> dict[str, Path]:
    return {match["case"]: home.path(match[0]) for match in home.fitting(rf"{part}/(?P<case>[^/]+?){SUFFIX}")}


def _recognise(folder: Folder) -> str:
    homes = _homes(folder)
    return f"{homes[0].name} has Images and Labels with files of the same names" if homes else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    homes = _homes(folder)
    if len(homes) != 1:
        said = listed([home.name for home in homes]) or "none"
        raise SourceError(
            f"{folder.root} holds {len(homes)} databases of Images and Labels ({said}), and one is taken in at a "
            "time, since each has its own sequences. Give the folder of one.",
            code="SEVERAL_DATASETS" if homes else "NOTHING_FOUND",
            file=str(folder.root),
        )
    (home,) = homes
    images, labels = _cases(home, "Images"), _cases(home, "Labels")
    annotation = only_annotation(options, "lesion")
    names, findings = _sequences(home, images, options)
    roles = [role for case, path in images.items() for role in stack_roles(case, path, names)]
    roles += [Role(case, "label", annotation, path) for case, path in labels.items()]
    return Found(
        name=home.name,
        folder=home,
        roles=roles,
        schemas={annotation: schema_for(annotation, options.codes.get(annotation, ""))},
        unused=unused_volumes(home, roles),
        findings=tuple(findings),
        source="preprocessed for Multi-Unet",
    )


def _sequences(home: Folder, images: dict[str, Path], options: SourceOptions) -> tuple[dict[int, str], list[Finding]]:
    """The number of every volume as its spelling, as the user names it.

    Raises:
        UsageError: the user does not name all of them.
    """
    number = _usual([n for path in images.values() if (n := num_volumes(path)) is not None])
    unnamed = [str(n) for n in range(number) if str(n) not in options.modalities]
    if unnamed:
        raise UsageError(
            f"{home.root} holds images of {number} sequences, and the files do not say which they are. Name volume "
            f"{', '.join(unnamed)} in the order of the settings they were made with: "
            f"{' '.join(f'--modality {n}=NAME' for n in unnamed)}, such as 0=FLAIR; 0=skip leaves one out."
        )
    findings = other_sizes(images.items(), number, options.name or home.name)
    return {n: str(n) for n in range(number)}, findings


def _usual(numbers: Sequence[int]) -> int:
    return max(set(numbers), key=numbers.count, default=1)


LAYOUT = Layout("multiunet", "preprocessed for Multi-Unet", _recognise, _find)
