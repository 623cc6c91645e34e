"""Labels of plain files: which file is a case's label, and what its codes mean.

The codes in most cases' labels decide what an annotation's codes mean, whatever the order of the cases. A label with
other codes becomes an error of its case when that is prepared; if the codes of most are not obvious, the user has to
explain them. All labels are read for this, unless the user gives the codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from multiseg.atlases import ATLASES, fitting_atlas
from multiseg.errors import LabelError, few
from multiseg.labels import LabelSchema
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import is_rater, schema_for
from multiseg.store.sources.file_contents import Contents, read_contents
from multiseg.store.sources.file_words import words_of
from multiseg.store.sources.plain_cases import Volume
from multiseg.store.sources.source_folder import Folder, grouped
from multiseg.store.sources.source_types import SKIP, Role, SourceOptions, finding

PARCELLATION = 30
"""A label with more codes than this is a parcellation, whose atlas the codes alone may identify."""
MAX_LESION_ML = 500
"""A label of 0 and 1 that is larger is the mask of a brain or a head."""
NAMED = {"dlmuse": "dlmuse", "muse": "dlmuse", "aseg": "freesurfer", "aparc": "freesurfer", "wmparc": "freesurfer",
         "freesurfer": "freesurfer", "synthseg": "freesurfer", "neuromorphometrics": "neuromorphometrics"}  # fmt: skip
"""Words in a file's name that say the atlas of its codes."""


def one_label_each(roles: Mapping[Volume, Role], options: SourceOptions) -> tuple[dict[Volume, Role], list[Finding]]:
    """The roles, and an error for a case with several files that may be its lesion mask or one annotation.

    Such files get no role: "gt" and "seg" may be two raters, two structures or an old version, which the user has to
    say. Raters, tissues, and files whose codes the user gives, are separate annotations.
    """

    def is_separate(annotation: str) -> bool:
        is_explained = options.codes.get(annotation, SKIP) != SKIP
        return is_explained or annotation.startswith("tissue") or is_rater(annotation)

    labels = {volume: role.name for volume, role in roles.items() if role.kind == "label"}
    groups = grouped(labels, lambda volume: (volume.case, labels[volume] if is_separate(labels[volume]) else ""))
    several = [volumes for volumes in groups.values() if len(volumes) > 1]
    doubtful = {volume for volumes in several for volume in volumes}
    kept = {volume: role for volume, role in roles.items() if volume not in doubtful}
    return kept, [_ambiguous(volumes) for volumes in several]


def _ambiguous(volumes: Sequence[Volume]) -> Finding:
    skip = " or ".join(f"--labels {volume.stem}:skip" for volume in volumes[:3])
    if len({volume.stem for volume in volumes}) < len(volumes):  # lesion.img beside lesion.nii.gz
        skip = " or ".join(f"--modality {PurePosixPath(volume.file).name}=skip" for volume in volumes[:3])
    both = " ".join(f'--labels "{volume.stem}:1=NAME"' for volume in volumes[:3])
    message = (
        f"{few([volume.file for volume in volumes])} may each be the label of case {volumes[0].case!r}. Leave "
        f"one out: {skip}; or keep them as separate annotations by giving the codes of each: {both}."
    )
    return finding(Severity.ERROR, "DUPLICATE_CASE", message, volumes[0].case, volumes[-1].file)


def schemas_of(
    roles: Mapping[Volume, Role], folder: Folder, options: SourceOptions
) -> tuple[dict[str, LabelSchema], list[Finding]]:
    """The meaning of every annotation's codes, from the user or from the codes themselves.

    Raises:
        LabelError: the user does not give it, and the codes are not obvious.
    """
    schemas: dict[str, LabelSchema] = {}
    findings: list[Finding] = []
    labels = [volume for volume, role in roles.items() if role.kind == "label"]
    for annotation, volumes in grouped(labels, lambda volume: roles[volume].name).items():
        if options.codes.get(annotation, SKIP) != SKIP:
            schemas[annotation] = schema_for(annotation, options.codes[annotation])
            continue
        contents = {volume: read_contents(folder.path(volume.file)) for volume in volumes}
        schemas[annotation], notes = _schema(annotation, contents)
        findings += notes
    return schemas, findings


def _schema(annotation: str, labels: Mapping[Volume, Contents]) -> tuple[LabelSchema, list[Finding]]:
    """The meaning of an annotation's codes. Raises LabelError if it is not obvious for most labels."""
    marked = {volume: contents for volume, contents in labels.items() if contents.codes}
    verdicts = Counter(_verdict(annotation, volume, contents.codes) for volume, contents in marked.items())
    counts = {verdict: _num_explained(verdict, annotation, marked) for verdict in verdicts if verdict}
    best = max(counts, key=lambda verdict: counts[verdict], default="" if marked else _verdict(annotation, None, ()))
    if not best or 2 * counts.get(best, 0) < len(marked):
        raise _unexplained(annotation, marked or labels)
    schema = schema_for(annotation, best)
    if best not in ATLASES:
        return schema, list(_check_size(annotation, marked))
    volume = next(volume for volume in marked if _verdict(annotation, volume, marked[volume].codes) == best)
    reason = " and their name says so" if _atlas_in_name(volume) else ""
    message = (
        f"{volume.stem} files are read as tissues of the atlas {best!r}, since it names all "
        f"{len(marked[volume].codes)} codes of {volume.file}{reason}. If it is another atlas, name it: "
        f"--labels {annotation}:ATLAS."
    )
    return schema, [finding(Severity.NOTE, "ATLAS", message, file=volume.file)]


def _verdict(annotation: str, volume: Volume | None, codes: Collection[int]) -> str:
    """What the codes of one label mean, as text for `schema_for`; "" if that is not obvious."""
    if set(codes) <= {1} and not annotation.startswith("tissue"):
        return f"1={'tumour' if annotation == 'tumour' else 'lesion'}"
    atlas = _atlas_in_name(volume) if volume is not None else ""
    if atlas or len(codes) > PARCELLATION:
        return fitting_atlas(codes, [atlas] if atlas else ATLASES)
    return ""


def _atlas_in_name(volume: Volume) -> str:
    return next((NAMED[word] for word in words_of(volume.stem) if word in NAMED), "")


def _num_explained(verdict: str, annotation: str, marked: Mapping[Volume, Contents]) -> int:
    """The number of labels with only codes that a verdict explains."""
    schema = schema_for(annotation, verdict)
    known = {code for structure in schema.structures for code in structure.source_codes}
    known |= {*schema.background_codes, *schema.ignore_codes}
    return sum(contents.codes <= known for contents in marked.values())


def _check_size(annotation: str, marked: Mapping[Volume, Contents]) -> Iterator[Finding]:
    """An error for each lesion label with the size of a brain: a "mask" may be the brain's."""
    for volume, contents in marked.items():
        if contents.codes <= {1} and contents.ml > MAX_LESION_ML:
            message = (
                f"{volume.file} is named as a label, but marks {contents.ml:.0f} ml: that is a brain, not a lesion. "
                f"If it is the brain mask, rename it to brainmask and use --brain-mask file; else use --labels "
                f'"{annotation}:1=NAME".'
            )
            yield finding(Severity.ERROR, "LABEL_SIZE", message, volume.case, volume.file)


def _unexplained(annotation: str, labels: Mapping[Volume, Contents]) -> LabelError:
    """An error with the codes of all labels, and the first label whose codes are not obvious as an example."""
    unclear = (volume for volume, contents in labels.items() if not _verdict(annotation, volume, contents.codes))
    volume = next(unclear, next(iter(labels)))
    codes = sorted({code for contents in labels.values() for code in contents.codes})
    shown = few([str(code) for code in sorted(labels[volume].codes)], 12)
    if _atlas_in_name(volume):
        shown += f", which are not all in the atlas {_atlas_in_name(volume)}"
    if set(codes) != labels[volume].codes:
        shown += f" (all {len(labels)} labels: {few([str(code) for code in codes], 12)})"
    advice = f'"{annotation}:{",".join(f"{code}=NAME" for code in codes[:4])}{",..." if len(codes) > 4 else ""}"'
    if len(codes) > 8:
        advice += f", or name their atlas: --labels {annotation}:ATLAS ({', '.join(ATLASES)})"
    message = (
        f"{volume.file} has the codes {shown}. Give their meaning: --labels {advice}; or leave the label out: "
        f"--labels {annotation}:skip."
    )
    return LabelError(message, code="LABEL_CODES", file=volume.file)
