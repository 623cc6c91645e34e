"""What annotations mean, and which of several raters' answers are kept."""

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
    """The meaning of an annotation's codes; structures of "tissue..." are tissue, all others lesions.

    Without codes 1 is the annotation's own name, or "lesion" for a further rater ("rater2").

    Raises:
        LabelError: the codes are not of the form of `LabelSchema.parse`, and no atlas.
    """
    kind = "tissue" if annotation.startswith("tissue") else "lesion"
    name = DEFAULT_ANNOTATION if is_rater(annotation) else annotation
    return schema_of(codes or f"1={name}", kind)


def is_rater(annotation: str) -> bool:
    """Whether an annotation is one of several people's answers to the same question."""
    return annotation.startswith("rater")


def only_annotation(options: SourceOptions, default: str) -> str:
    """The name of the annotation of a layout with one label a case: that of the user's codes, else the layout's own.

    Raises:
        UsageError: codes are given for several.
    """
    if len(options.codes) > 1:
        raise UsageError(
            f"--labels gives codes of {', '.join(options.codes)}, but this layout has one label a case. "
            "Give the codes of one."
        )
    return next(iter(options.codes), default)


def choose_raters(
    labels: Mapping[str, Mapping[str, LabelFile]], choice: str, database: str
) -> tuple[dict[str, dict[str, LabelFile]], str]:
    """Labels by case and annotation with only the raters that are to be kept, and what to say of the others.

    "all" keeps each as an annotation of its own; "consensus" only what is no single rater's; "majority" makes one
    of them voxel by voxel; a name keeps that rater. Without a choice the consensus is kept where there is one,
    else all.

    Raises:
        UsageError: there is no such rater, or no consensus.
    """
    raters = sorted({name for own in labels.values() for name in own if is_rater(name)})
    others = sorted({name for own in labels.values() for name in own} - set(raters))
    choice = choice or ("consensus" if DEFAULT_ANNOTATION in others else "all")
    if choice not in ("all", "consensus", "majority", *raters):
        raise UsageError(
            f"--raters {choice!r} is none of all, consensus, majority or a rater of {database!r} "
            f"({', '.join(raters) or 'there are none'})."
        )
    if choice == "consensus" and raters and not others:
        raise UsageError(f"{database!r} has no consensus, only {', '.join(raters)}. Take --raters majority.")
    left_out = [name for name in raters if choice in ("consensus", *raters) and name != choice]
    message = f"{', '.join(left_out)} are left out (--raters {choice}); --raters all keeps every one."
    kept = {case: dict(own) if choice == "all" else _of(own, raters, choice) for case, own in labels.items()}
    return kept, message if left_out else ""


def _of(own: Mapping[str, LabelFile], raters: Sequence[str], choice: str) -> dict[str, LabelFile]:
    kept = {name: file for name, file in own.items() if name not in raters or name == choice}
    votes = tuple(file for name, file in own.items() if name in raters and isinstance(file, Path | Channel))
    if choice == "majority" and votes:
        kept[DEFAULT_ANNOTATION] = Majority(votes)
    return kept
