"""A picture of the cases of a store: one row per case, with its annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multiseg.evaluation.montage import PNG, CasePanel, Parcels, save_montage
from multiseg.files import check_files
from multiseg.labels import IGNORE
from multiseg.store.reader import Case, Store


def save_gallery(path: Path, store: Store, cases: Sequence[Case], title: str = "", overwrite: bool = False) -> Path:
    """Draw cases as a PNG: sequences with the outline of all lesions, and structures in colour.

    Raises:
        UsageError: there is no case, or see `save_montage`.
    """
    check_files([path], overwrite=overwrite, kinds=PNG)  # before anything is drawn
    save_montage(path, [_panel(store, case) for case in cases], title, overwrite)
    return path


def _panel(store: Store, case: Case) -> CasePanel:
    database = store[case.database]
    images, codes = database.whole(case)
    lesion, parcels, lines = None, {}, [case.pathology]
    ml = float(np.prod(store.spacing_mm)) / 1000
    for index, (name, schema) in enumerate(database.schemas.items()):
        if not case.annotated[index]:
            continue
        lesion_codes = [code for code, part in enumerate(schema.structures, start=1) if part.kind == "lesion"]
        if lesion_codes:
            marked = np.isin(codes[index], lesion_codes)
            lesion = marked if lesion is None else lesion | marked
            lines.append(f"{name}: {np.count_nonzero(marked) * ml:.1f} ml")
        if len(schema.structures) > 1:
            parcels[name] = Parcels(np.where(codes[index] == IGNORE, 0, codes[index]), schema.names)
    shown = {name: images[database.modalities.index(name)].astype(np.float32) for name in case.modalities}
    return CasePanel(f"{case.database}/{case.name}", "\n".join(lines), shown, lesion, None, store.spacing_mm, parcels)
