"""WMH 2017: white-matter hyperintensities from three sites and five scanners.

https://doi.org/10.34894/AECRSD - `wmh.nii.gz` has 1 for a hyperintensity and 2 for other pathology, which is
neither that nor background. T1 is already on FLAIR's grid, in `orig` and, bias corrected, in `pre`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from multiseg.store.findings import Finding, Severity
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.source_folder import SUFFIX, Folder, is_test_part
from multiseg.store.sources.source_types import FoundFiles, Layout, Role, SourceOptions, finding

ANNOTATION = "lesion"
CODES = "1=WMH,2=ignore"
_HEAD = r"(?P<site>Utrecht|Singapore|Amsterdam)/(?:(?P<scanner>[^/]*[A-Za-z][^/]*)/)?(?P<id>\d+)/"
_IMAGE = re.compile(rf"(?:.*/)?{_HEAD}(?P<folder>pre|orig)/(?P<what>FLAIR|T1){SUFFIX}")
_LABEL = re.compile(rf"(?:.*/)?{_HEAD}wmh{SUFFIX}")
_RATER = re.compile(rf"(?:.*/)?observer_(?P<who>\w+)/(?:.*/)?{_HEAD}result{SUFFIX}")
_NOT_USED = re.compile(rf"(?:.*/)?{_HEAD}(?:pre|orig)/(?:3DT1|\w+_mask){SUFFIX}")


def _recognise(folder: Folder) -> str:
    sites = {match["site"] for match in folder.matches(_IMAGE)}
    return f"pre/ and orig/ of patients of {', '.join(sorted(sites))}" if sites else ""


def _find(folder: Folder, options: SourceOptions) -> FoundFiles:
    images = _images(folder)
    labels, raters = folder.matches(_LABEL), folder.matches(_RATER)
    roles = [Role(_case(m), "image", m["what"], folder.path(m[0]), _fields(folder, m)) for m in images]
    roles += [Role(_case(m), "label", ANNOTATION, folder.path(m[0]), _fields(folder, m)) for m in labels]
    roles += [Role(_case(m), "label", f"rater_{m['who']}", folder.path(m[0])) for m in raters]
    annotations = {ANNOTATION, *(role.name for role in roles if role.kind == "label")}
    known = {match[0] for expression in (_IMAGE, _NOT_USED) for match in folder.matches(expression)}
    return FoundFiles(
        folder=folder,
        roles=roles,
        schemas={name: schema_for(name, CODES) for name in sorted(annotations)},
        pathology="white matter hyperintensities",
        required=(ANNOTATION,),
        may_lack_labels={_case(match) for match in images if is_test_part(folder, match[0])},
        participants={_case(match): {"scanner": match["scanner"] or ""} for match in images},
        unused=[file for file in folder.unused(role.file for role in roles) if file not in known],
        findings=tuple(_findings(images, folder)),
        citation="Kuijf et al. 2019, IEEE Transactions on Medical Imaging 38(11)",
        source="WMH 2017",
    )


def _images(folder: Folder) -> list[re.Match[str]]:
    """The bias-corrected file of each sequence of each patient, or else the original one."""
    chosen: dict[str, re.Match[str]] = {}
    for match in sorted(folder.matches(_IMAGE), key=lambda match: match["folder"] == "orig"):
        chosen.setdefault(match[0].replace(f"/{match['folder']}/", "//"), match)
    return list(chosen.values())


def _findings(images: Sequence[re.Match[str]], folder: Folder) -> Iterator[Finding]:
    """Which files are used if a sequence has several."""
    corrected = {_case(match) for match in images if match["folder"] == "pre"}
    original = {_case(match) for match in images if match["folder"] == "orig"}
    message = (
        f"{len(corrected)} cases use FLAIR and T1 from pre/ (bias corrected), {len(original)} from orig/; 3DT1 and "
        f"masks of defacing ({len(folder.matches(_NOT_USED))} files) are not used: T1 is already on FLAIR's grid."
    )
    yield finding(Severity.NOTE, "CHOSEN_FILES", message)
    for case in sorted(corrected & original):
        message = f"case {case!r} has one sequence bias corrected (pre/) and the other not (orig/). Is a file missing?"
        yield finding(Severity.WARNING, "MIXED_FILES", message, case)


def _case(match: re.Match[str]) -> str:
    return f"{match['site']}_{match['id']}"


def _fields(folder: Folder, match: re.Match[str]) -> dict[str, str]:
    split = {"split": "test"} if is_test_part(folder, match[0]) else {}
    return {"subject": _case(match), "site": match["site"], **split}


WMH_2017 = Layout("wmh2017", "WMH 2017", _recognise, _find)
