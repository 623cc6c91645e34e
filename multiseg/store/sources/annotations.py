"""What annotations mean, and which of several raters to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from multiseg.atlases import schema_of
from multiseg.errors import UsageError
from multiseg.labels import LabelSchema
from multiseg.store.cases import Channel, LabelFile, Majority
from multiseg.store.sources.source_types import SourceOptions

DEFAULT_ANNOTATION = "lesion"


def schema_for(annotation: str, codes: str) -> LabelSchema:
    """The meaning of an annotation's codes. Structures of "tissue..." are tissue, all others lesions.

    Without codes, 1 is the annotation's name, or "lesion" for a rater ("rater2").

    Raises:
        LabelError: the codes are neither an atlas nor in the form of `LabelSchema.parse`.
    """
    kind = "tissue" if annotation.startswith("tissue") else "lesion"
    name = DEFAULT_ANNOTATION if is_rater(annotation) else annotation
    return schema_of(codes or f"1={name}", kind)


def is_rater(annotation: str) -> bool:
    """Whether an annotation is one of several raters' labels of the same structures."""
    return annotation.startswith("rater")


def only_annotation(options: SourceOptions) -> str:
    """The annotation's name in a layout with one label per case: that of the user's codes, else "lesion".

    Raises:
        UsageError: codes are given for several annotations.
    """
    if len(options.codes) > 1:
        raise UsageError(
            f"--labels gives codes of {', '.join(options.codes)}, but this layout has one label per case. "
            "Give the codes of one annotation."
        )
    return next(iter(options.codes), DEFAULT_ANNOTATION)


def choose_raters(
    labels: Mapping[str, Mapping[str, LabelFile]], choice: str, database: str
) -> tuple[dict[str, dict[str, LabelFile]], str]:
    """Labels by case and annotation with only the chosen raters, and a message about the others.

    "all" keeps each rater as an annotation; "consensus" keeps only annotations that are not a single rater's;
    "majority" combines the raters by a vote in each voxel; a name keeps that rater. Without a choice, the consensus is
    kept if there is one, else all.

    Raises:
        UsageError: the rater is unknown, or there is no consensus.
    """
    names = {name for files in labels.values() for name in files}
    raters = sorted(name for name in names if is_rater(name))
    others = names - set(raters)
    choice = choice or ("consensus" if DEFAULT_ANNOTATION in others else "all")
    if choice not in ("all", "consensus", "majority", *raters):
        raise UsageError(
            f"unknown --raters {choice!r}: use all, consensus, majority or a rater of {database!r} "
            f"({', '.join(raters) or 'it has none'})."
        )
    if choice == "consensus" and raters and not others:
        raise UsageError(f"{database!r} has no consensus, only {', '.join(raters)}. Use --raters majority.")
    left_out = [name for name in raters if choice in ("consensus", *raters) and name != choice]
    message = f"{', '.join(left_out)} are left out (--raters {choice}); --raters all keeps them."
    kept = {case: dict(files) if choice == "all" else _keep(files, raters, choice) for case, files in labels.items()}
    return kept, message if left_out else ""


def _keep(files: Mapping[str, LabelFile], raters: Sequence[str], choice: str) -> dict[str, LabelFile]:
    kept = {name: file for name, file in files.items() if name not in raters or name == choice}
    votes = tuple(file for name, file in files.items() if name in raters and isinstance(file, Path | Channel))
    if choice == "majority" and votes:
        kept[DEFAULT_ANNOTATION] = Majority(votes)
    return kept
