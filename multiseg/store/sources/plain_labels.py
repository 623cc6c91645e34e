"""Labels of plain files: which file is a case's label, and what its codes mean.

One rule for all cases, whatever their order: what the labels of most cases hold says what an annotation's codes mean.
A label that holds something else is its own case's error when it is prepared; where most hold something that does not
explain itself, the meaning is asked for. All labels are read for this, unless the user gives the codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from multiseg.atlases import ATLASES, fitting_atlas
from multiseg.errors import LabelError
from multiseg.labels import LabelSchema
from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import is_rater, schema_for
from multiseg.store.sources.file_contents import Contents, look_into_label
from multiseg.store.sources.file_words import words_of
from multiseg.store.sources.plain_cases import Volume
from multiseg.store.sources.source_folder import Folder, listed
from multiseg.store.sources.source_types import SKIP, Role, SourceOptions

PARCELLATION = 30
"""A label of more codes than this is a parcellation, which its codes alone may name."""
MAX_LESION_ML = 500
"""A label of 0 and 1 that is larger is the mask of a brain or of a head."""
NAMED = {"dlmuse": "dlmuse", "muse": "dlmuse", "aseg": "freesurfer", "aparc": "freesurfer", "wmparc": "freesurfer",
         "freesurfer": "freesurfer", "synthseg": "freesurfer", "neuromorphometrics": "neuromorphometrics"}  # fmt: skip
"""Words in a file's name that say which atlas its codes are of."""


def one_label_each(
    roles: Mapping[Volume, Role], options: SourceOptions, database: str
) -> tuple[dict[Volume, Role], list[Finding]]:
    """The roles, and an error for a case with several files that may be its lesion mask, or are one annotation.

    What is in doubt has no role: "gt" beside "seg" may be two people's answers, two structures or an old version,
    and which one counts is asked. Raters, tissues, and files of which the user gives the codes, are annotations of
    their own.
    """
    groups: dict[tuple[str, str], list[Volume]] = {}
    for volume, role in roles.items():
        if role.kind == "label":
            is_own = options.codes.get(role.name, SKIP) != SKIP or role.name.startswith("tissue") or is_rater(role.name)
            groups.setdefault((volume.case, role.name if is_own else ""), []).append(volume)
    several = [volumes for volumes in groups.values() if len(volumes) > 1]
    doubtful = {volume for volumes in several for volume in volumes}
    kept = {volume: role for volume, role in roles.items() if volume not in doubtful}
    return kept, [_several(volumes, database) for volumes in several]


def _several(volumes: Sequence[Volume], database: str) -> Finding:
    skip = " or ".join(f"--labels {volume.stem}:skip" for volume in volumes[:3])
    if len({volume.stem for volume in volumes}) < len(volumes):  # lesion.img beside lesion.nii.gz
        skip = " or ".join(f"--modality {PurePosixPath(volume.file).name}=skip" for volume in volumes[:3])
    both = " ".join(f'--labels "{volume.stem}:1=NAME"' for volume in volumes[:3])
    message = (
        f"{listed([volume.file for volume in volumes])} may each be the label of case {volumes[0].case!r}. Say which "
        f"one to leave out: {skip}; or keep them as annotations of their own by giving each its codes: {both}."
    )
    return Finding(Severity.ERROR, "DUPLICATE_CASE", database, volumes[0].case, volumes[-1].file, message)


def schemas_of(
    roles: Mapping[Volume, Role], folder: Folder, options: SourceOptions, database: str
) -> tuple[dict[str, LabelSchema], list[Finding]]:
    """The meaning of every annotation's codes, which they must tell themselves where the user does not.

    Raises:
        LabelError: they do not.
    """
    by_annotation: dict[str, list[Volume]] = {}
    for volume, role in roles.items():
        if role.kind == "label":
            by_annotation.setdefault(role.name, []).append(volume)
    schemas: dict[str, LabelSchema] = {}
    findings: list[Finding] = []
    for annotation, volumes in by_annotation.items():
        if options.codes.get(annotation, SKIP) != SKIP:
            schemas[annotation] = schema_for(annotation, options.codes[annotation])
            continue
        held = {volume: look_into_label(folder.path(volume.file)) for volume in volumes}
        schemas[annotation], notes = _schema(annotation, held, database)
        findings += notes
    return schemas, findings


def _schema(annotation: str, held: Mapping[Volume, Contents], database: str) -> tuple[LabelSchema, list[Finding]]:
    """Raises:
    LabelError: most labels do not explain themselves.
    """
    marked = {volume: contents for volume, contents in held.items() if contents.codes}
    verdicts = Counter(_verdict(annotation, volume, contents.codes) for volume, contents in marked.items())
    told = {verdict: _explains(verdict, annotation, marked) for verdict in verdicts if verdict}
    best = max(told, key=lambda verdict: told[verdict], default="" if marked else _verdict(annotation, None, ()))
    if not best or 2 * told.get(best, 0) < len(marked):
        raise _unexplained(annotation, marked or held)
    schema = schema_for(annotation, best)
    if best not in ATLASES:
        return schema, list(_brains(annotation, marked, database))
    volume = next(one for one in marked if _verdict(annotation, one, marked[one].codes) == best)
    said, num_codes = _said(volume), len(marked[volume].codes)
    message = (
        f"{volume.stem} files are read as tissues by the atlas {best!r}, since it names all {num_codes} "
        f"codes of {volume.file}{' and their name says so' if said else ''}. If they are another's, say whose: "
        f"--labels {annotation}:ATLAS."
    )
    return schema, [Finding(Severity.NOTE, "ATLAS", database, "", volume.file, message)]


def _verdict(annotation: str, volume: Volume | None, codes: Collection[int]) -> str:
    """What the codes of one label mean, as text for `schema_for`; "" where they do not say it."""
    if set(codes) <= {1} and not annotation.startswith("tissue"):
        return f"1={'tumour' if annotation == 'tumour' else 'lesion'}"
    said = _said(volume) if volume is not None else ""
    return fitting_atlas(codes, [said] if said else ATLASES) if said or len(codes) > PARCELLATION else ""


def _said(volume: Volume) -> str:
    return next((NAMED[word] for word in words_of(volume.stem) if word in NAMED), "")


def _explains(verdict: str, annotation: str, marked: Mapping[Volume, Contents]) -> int:
    """How many labels hold nothing but codes that a verdict gives a meaning to."""
    schema = schema_for(annotation, verdict)
    known = {code for structure in schema.structures for code in structure.source_codes}
    known |= {*schema.background_codes, *schema.ignore_codes}
    return sum(contents.codes <= known for contents in marked.values())


def _brains(annotation: str, marked: Mapping[Volume, Contents], database: str) -> Iterator[Finding]:
    """A "mask" may well be the brain's."""
    for volume, contents in marked.items():
        if contents.codes <= {1} and contents.ml > MAX_LESION_ML:
            message = (
                f"{volume.file} is named as a label, but it holds {contents.ml:.0f} ml: that is a brain, not a lesion. "
                f"If it is the brain mask, say --brain-mask file and call it brainmask; else --labels "
                f'"{annotation}:1=NAME".'
            )
            yield Finding(Severity.ERROR, "LABEL_SIZE", database, volume.case, volume.file, message)


def _unexplained(annotation: str, held: Mapping[Volume, Contents]) -> LabelError:
    """What to ask, with the codes of all labels, the first one that does not explain itself as an example."""
    volume = next((one for one in held if not _verdict(annotation, one, held[one].codes)), next(iter(held)))
    own, codes = held[volume].codes, frozenset(code for one in held.values() for code in one.codes)
    said = _said(volume)
    shown = listed([str(code) for code in sorted(own)], 12)
    others = f" (all {len(held)} labels: {listed([str(code) for code in sorted(codes)], 12)})" if codes != own else ""
    names = ",".join(f"{code}=NAME" for code in sorted(codes)[:4]) + ("" if len(codes) <= 4 else ",...")
    but = f", which {said} does not all know" if said else ""
    atlas = "" if len(codes) <= 8 else f", or whose they are: --labels {annotation}:ATLAS ({', '.join(ATLASES)})"
    return LabelError(
        f"{volume.file} holds the codes {shown}{but}{others}. Say what they mean: "
        f'--labels "{annotation}:{names}"{atlas}; or leave it out: --labels {annotation}:skip.',
        code="LABEL_CODES",
        file=volume.file,
    )
