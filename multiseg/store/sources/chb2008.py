"""The MS Lesion Segmentation Challenge of 2008 (MSseg08), of Boston's Children's Hospital and of Chapel Hill.

https://www.nitrc.org/projects/msseg - CHB_train_Case01/CHB_train_Case01_{FLAIR,T1,T2,lesion}.nhdr, each with its .raw;
some UNC cases have a label of each of two raters (_lesion_byCHB). Test cases come without.
"""

from __future__ import annotations

import re

from multiseg.store.sources.annotations import DEFAULT_ANNOTATION, schema_for
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, Role, SourceOptions

_FILE = re.compile(
    r"(?:[^/]+/)*(?P<case>(?P<site>CHB|UNC)_(?P<set>train|test\d*)_Case\d+)/"
    rf"(?P=case)_(?P<what>FLAIR|T1|T2|lesion(?:_by\w+)?){SUFFIX}"
)


def _recognise(folder: Folder) -> str:
    cases = sorted({match["case"] for match in folder.fitting(_FILE)})
    return f"{len(cases)} folders such as {cases[0]}" if cases else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    roles = [_role(folder, match) for match in folder.fitting(_FILE)]
    labels = dict.fromkeys(role.name for role in roles if role.kind == "label")
    used = {role.file for role in roles}
    return Found(
        name=folder.name,
        folder=folder,
        roles=roles,
        schemas={name: schema_for(name, "") for name in labels},
        pathology="multiple sclerosis",
        may_lack_labels={role.case for role in roles if role.fields.get("split") == "test"},
        unused=[file for file in folder.volumes if folder.path(file) not in used],
        source="MSseg08",
    )


def _role(folder: Folder, match: re.Match[str]) -> Role:
    what, file = match["what"], folder.path(match[0])
    fields = {"site": match["site"]} | ({} if match["set"] == "train" else {"split": "test"})
    if what.startswith("lesion"):
        rater = what.partition("_by")[2]
        return Role(match["case"], "label", f"rater{rater}" if rater else DEFAULT_ANNOTATION, file, fields)
    return Role(match["case"], "image", what, file, fields)


CHALLENGE = Layout("msseg2008", "MSseg08", _recognise, _find)
