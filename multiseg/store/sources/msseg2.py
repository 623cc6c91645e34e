"""MSSEG-2: two visits of a patient with multiple sclerosis, with the lesions that are new at the second one.

Lesions that were there before are not drawn, so its labels would teach a model that they are none.
"""

from __future__ import annotations

import re

from multiseg.errors import SourceError
from multiseg.store.sources.folder import SUFFIX, Folder
from multiseg.store.sources.layout import Layout
from multiseg.store.sources.model import Found, SourceOptions

_FILE = re.compile(rf"(?:.*/)?(?P<case>[^/]+)/flair_time0[12]_on_middle_space{SUFFIX}")


def _recognise(folder: Folder) -> str:
    cases = {match["case"] for match in folder.fitting(_FILE)}
    return f"{len(cases)} folders with flair_time01_on_middle_space, such as {min(cases)}" if cases else ""


def _find(folder: Folder, options: SourceOptions) -> Found:
    raise SourceError(
        f"{folder.root} is MSSEG-2, whose labels are the new lesions of the second visit only: all older lesions count "
        "as background there, so they are no full lesion masks. With masks of all lesions of your own, name the files: "
        '--pattern "{case}/{modality}.nii.gz" --label "{case}/lesions.nii.gz" '
        "--modality flair_time02_on_middle_space=FLAIR --modality flair_time01_on_middle_space=skip.",
        code="NO_FULL_LESIONS",
        file=str(folder.root),
    )


MSSEG_2 = Layout("msseg2", "MSSEG-2 (new lesions only)", _recognise, _find)
