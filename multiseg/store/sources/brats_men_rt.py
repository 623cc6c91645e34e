"""BraTS 2024 for radiotherapy of meningioma: one contrast-enhanced T1 a case, in its own space and with its skull.

https://www.synapse.org/brats2024 - `BraTS-MEN-RT-0002-1/BraTS-MEN-RT-0002-1_t1c.nii.gz`, and `_gtv` for the gross
tumour volume (1).
"""

from __future__ import annotations

import re

from multiseg.store.sources.annotations import schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions, unused_volumes

ANNOTATION = "gtv"
_FILE = re.compile(
    r"(?:.*/)?(?P<case>(?P<subject>BraTS-MEN-RT-\d+)-(?P<session>\d+))/(?P=case)[-_]"
    rf"(?P<what>t1c|gtv){SUFFIX}"
)


def _recognise(folder: Folder) -> str:
    cases = {match["case"] for match in folder.fitting(_FILE)}
    return f"{len(cases)} folders such as {min(cases)}" if cases else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    matches = folder.fitting(_FILE)
    labelled = {match["case"] for match in matches if match["what"] == "gtv"}
    unlabelled = {
        match["case"] for match in matches
        if match["case"] not in labelled and re.search("validation|testing", f"{folder.name}/{match[0]}", re.IGNORECASE)
    }  # fmt: skip
    roles = [_role(folder, match, match["case"] in unlabelled) for match in matches]
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={ANNOTATION: schema_for(ANNOTATION, "1=gtv")},
        pathology="meningioma",
        may_lack_labels=unlabelled,
        unused=unused_volumes(folder, roles),
        source="BraTS 2024 MEN-RT",
    )


def _role(folder: Folder, match: re.Match[str], is_test: bool) -> Role:
    fields = {"subject": match["subject"], "session": match["session"], **({"split": "test"} if is_test else {})}
    if match["what"] == "gtv":
        return Role(match["case"], "label", ANNOTATION, folder.path(match[0]), fields)
    return Role(match["case"], "image", "T1c", folder.path(match[0]), fields)


LAYOUT = Layout("brats_men_rt", "BraTS 2024 MEN-RT", _recognise, _find)
