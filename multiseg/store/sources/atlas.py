"""ATLAS v2: T1 after stroke with the chronic lesion; the R-number of a subject is its site.

https://fcon_1000.projects.nitrc.org/indi/retro/atlas.html - in template space, and since 2026 raw as well. The
test part comes without masks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from multiseg.errors import SourceError
from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions, unused_volumes
from multiseg.store.sources.parts import is_test_part

ANNOTATION = "lesion"
_FILE = re.compile(
    r"(?:.*/)?(?P<subject>sub-r(?P<site>\d{3})s\d{3})/(?P<session>ses-\w+)/anat/(?P=subject)_(?P=session)_"
    rf"(?:space-(?P<space>[^_/]+)_)?(?:desc-brain_)?(?P<what>T1w|label-\w+_desc-T1lesion_mask){SUFFIX}"
)


def _recognise(folder: Folder) -> str:
    subjects = {match["subject"] for match in folder.fitting(_FILE)}
    return f"{len(subjects)} folders such as {min(subjects)}" if subjects else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    matches = folder.fitting(_FILE)
    _check_one_release(folder, matches)
    roles = [_role(folder, match) for match in matches]
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, "1=lesion")},
        pathology="stroke",
        required=(ANNOTATION,),
        may_lack_labels={_case(match) for match in matches if is_test_part(folder, match[0])},
        unused=unused_volumes(folder, roles),
        citation="Liew et al. 2022, Scientific Data 9:320",
        source="ATLAS v2",
    )


def _check_one_release(folder: Folder, matches: Sequence[re.Match[str]]) -> None:
    by_space = {match["space"] or "orig": match[0] for match in matches}
    if len(by_space) > 1:
        examples = "; ".join(f"{space}: {file}" for space, file in sorted(by_space.items()))
        raise SourceError(
            f"{folder.root} holds the same patients in several spaces ({examples}). Ingest the folder of one release.",
            code="SEVERAL_SPACES",
            file=str(folder.root),
        )


def _case(match: re.Match[str]) -> str:
    return f"{match['subject']}_{match['session']}"


def _role(folder: Folder, match: re.Match[str]) -> Role:
    fields = {"subject": match["subject"], "session": match["session"], "site": f"R{match['site']}"}
    if is_test_part(folder, match[0]):
        fields["split"] = "test"
    if match["what"] == "T1w":
        return Role(_case(match), "image", "T1", folder.path(match[0]), fields)
    return Role(_case(match), "label", ANNOTATION, folder.path(match[0]), fields)


ATLAS = Layout("atlas2", "ATLAS v2", _recognise, _find)
