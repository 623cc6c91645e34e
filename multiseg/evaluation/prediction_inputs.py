"""What a prediction is made from: a patient's files, and how they are to be segmented."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multiseg.errors import ModalityError, UsageError
from multiseg.evaluation.case_answers import ENSEMBLES, AnswerOptions
from multiseg.evaluation.memory_budget import check_memory, memory_bytes
from multiseg.evaluation.preparation import brain_rule
from multiseg.modalities import CANONICAL_ORDER, canonical_modality, known_spelling_like
from multiseg.models.saved import Model
from multiseg.sequence_reading import read_name


@dataclass(frozen=True)
class PredictOptions:
    """How patients are segmented: one of files, or all of a cohort.

    Attributes:
        brain_mask: a mask file, or "nonzero", "otsu" or "command PROGRAM ..." (see `Recipe.brain_mask`), or "model"
            for the network that the model carries; None finds the brain as in the model's training data, unless these
            came with masks.
        reference: the sequence that gives the segmentation its grid and header; "" is the first one.
        overlap: of the sliding windows, as a share of their size.
        headers_disagree: what holds if files have one shape but other positions; see `space.header_corrections`.
        register: "rigid" registers every sequence to the reference; "" does so only if the model's training data were.
        device: of a model that is not loaded yet.
        adapt: whether a two_branch model is adapted to each patient first (see `multiseg.evaluation.adaptation`).
        lesion_mask: a file of 0 and 1 that shows the lesion for the adaptation; by default the lesion branch finds it.
        others: further models, which answer together with the first one.
        together: how several models answer: "mean" (of their probabilities) or "vote" (see `decision.majority`), where
            with `adapt` each model answers once for each constant, adapted to this one alone; or a rule of
            `models.fused`.
        probabilities: whether the probability of each structure is written, too.
        dicom_seg: the folder of the DICOM series of the reference, or "source" where the reference is read from DICOM:
            the segmentation is also written as a DICOM SEG that refers to it; "" writes none.
        tta: whether the probabilities are the mean of those of the image and of its left-right mirror image.
        memory: the most that this process may have while it segments a patient, such as "4GB"; "" for no limit.
        branch: what of a two_branch model answers: "anatomy" (tissues, also under lesions), "lesion", "pasted" (lesions
            of the one over tissues of the other), or "" (default) for the fusion of both.

    Raises:
        UsageError: other models are given without a word on how they answer, or only their rule; or the memory is no
            size.
    """

    brain_mask: Path | str | None = None
    reference: str = ""
    overlap: float = 0.5
    headers_disagree: str = "refuse"
    register: str = ""
    device: str = "cpu"
    adapt: bool = False
    lesion_mask: Path | str | None = None
    others: tuple[Path | str, ...] = ()
    together: str = ""
    probabilities: bool = False
    dicom_seg: Path | str = ""
    tta: bool = False
    memory: str = ""
    branch: str = ""

    def __post_init__(self) -> None:
        check_memory(self.memory, self.adapt)
        if self.others and not self.together:
            raise UsageError(
                f"{len(self.others) + 1} models are given: say how they answer together, such as by their mean."
            )
        if self.together not in ("", *ENSEMBLES) and self.adapt:
            raise UsageError("models that answer as one (--fuse) cannot be adapted: leave out --adapt or --fuse.")
        if self.lesion_mask and not self.adapt:
            raise UsageError(
                "a lesion mask is used only by the adaptation: add --adapt on, or leave out --lesion-mask."
            )

    @property
    def answer(self) -> AnswerOptions:
        """How the models answer."""
        return AnswerOptions(self.overlap, self.tta, memory_bytes(self.memory))


def name_images(arguments: Sequence[str]) -> dict[str, Path]:
    """Files by sequence, from "FLAIR=scan.nii.gz" or from a file name that contains its sequence.

    Raises:
        ModalityError: a name contains no sequence or several, or a sequence is given twice.
    """
    images: dict[str, Path] = {}
    for argument in arguments:
        spelling, equals, file = argument.partition("=")
        path = Path(file if equals else argument)
        reading = read_name(path.name)
        name = (canonical_modality(spelling) or spelling) if equals else reading.sequence
        if name is None:
            raise ModalityError(
                f"{argument!r} does not show which sequence it is ({reading.why}). "
                f"Write FLAIR={argument} (or T1=, ...)."
            )
        if name in images:
            raise ModalityError(f"{images[name]} and {path} are both {name}. Give each sequence once.")
        images[name] = path
    return images


def check_sequences(given: Iterable[str], learnt: Iterable[str], reference: str = "") -> None:
    """Check that each name that a person gave is a known sequence, or one of the model's, and not misspelt.

    Args:
        learnt: the sequences of the model, or of all models.
        reference: a sequence that is named twice, for its grid, which may be of any kind.

    Raises:
        ModalityError: a name is neither, so that its image would be left out.
    """
    own = dict.fromkeys(learnt)
    for name in given:
        if name in own or name == reference or canonical_modality(name) is not None:
            continue
        near = known_spelling_like(name, own)
        hint = f"did you mean {near}?" if near else f"known are {', '.join(CANONICAL_ORDER)}."
        raise ModalityError(
            f"{name!r} is no known sequence, and the model has no channel of that name ({', '.join(own)}): {hint} "
            "Correct it, or leave this image out."
        )


def input_files(
    model: Path | str | Model, images: Mapping[str, Path | str], options: PredictOptions
) -> tuple[Path, ...]:
    """The files that a prediction is made from, which must not be overwritten."""
    more = [path for path in (options.lesion_mask, options.dicom_seg) if path]
    files = [Path(path) for path in (*images.values(), *options.others, *more)]
    files += [file for folder in files if folder.is_dir() for file in folder.rglob("*") if file.is_file()]
    files += [] if isinstance(model, Model) else [Path(model)]
    _, mask = brain_rule(options.brain_mask)
    return (*files, *([mask] if mask else []))
