"""The order and the names of files, columns, rows and databases change no bit of a batch or of a prediction."""

import csv
import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from multiseg.evaluation.evaluation_result import EvaluateOptions
from multiseg.evaluation.model_evaluation import evaluate
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.labels import LabelSpace
from multiseg.models.builders import multi_unet
from multiseg.models.saved import ModelInfo, load_model, save_model
from multiseg.phantoms.hospitals import HOSPITALS
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.training.validate import validation_cases

sys.path.insert(0, str(Path(__file__).parent / "loaders"))
from streams import AXIS, assert_same, digests, stream_of

NAMES = ("cedar", "alder")
SPACING_MM = (5.0, 5.0, 5.0)


def write_rows(folder: Path, hospitals: Path, splits: dict[str, str]) -> Path:
    """The hospitals' files under other names, in a CSV whose rows, columns and databases stand in another order."""
    rows, columns = [], ["split", "case", "database", "pathology", "T2", "PD", "ADC", "DWI", "image:FLAIR", "T1", "T1c"]
    for hospital in (one for name in NAMES for one in HOSPITALS if one.name == name):
        for number in (3, 1, 4, 2):
            case = f"{hospital.name[0].upper()}{number:03d}"
            row = {"case": case, "database": hospital.name, "pathology": hospital.pathology}
            row["split"] = splits.get(case, "")
            for at, scan in enumerate(hospital.scans):
                found = hospitals / hospital.name / hospital.pattern.format(case=case, modality=scan.spelling)
                if found.exists():
                    column = "image:FLAIR" if scan.modality == "FLAIR" else scan.modality
                    row[column] = f"{9 - at}_{99 - number}_{hospital.name}.nii.gz"
                    shutil.copy(found, folder / row[column])
            for one in hospital.annotations:
                row |= {
                    f"label:{one.name}": f"{one.name}_{number}_{hospital.name}.nii.gz",
                    f"codes:{one.name}": one.codes,
                }
                found = hospitals / hospital.name / one.pattern.format(case=case)
                shutil.copy(found, folder / row[f"label:{one.name}"])
            rows.append(row)
    columns += sorted({column for row in rows for column in row} - set(columns))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def permuted_url(store_url: str, hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The store of the same cases, ingested another way: of cedar first the case that lacks FLAIR, in an ingest of
    its own, so that FLAIR comes last there; and one case is written once more at the end.
    """
    folder = tmp_path_factory.mktemp("permuted")
    url = str(folder / "brain.zarr")
    splits = {case.name: case.split for case in open_store(store_url)["cedar"].cases}
    files = find_manifest(write_rows(folder, hospitals, splits))
    assert [one.name for one in files] == list(NAMES)
    options = IngestOptions(spacing_mm=SPACING_MM)
    (cedar,) = (one for one in files if one.name == "cedar")
    first = replace(cedar, cases=tuple(case for case in cedar.cases if case.case == "C003"))
    assert [len(report.written) for report in ingest([first], url, options)] == [1]
    assert [len(report.written) for report in ingest(files, url, options)] == [3, 4]
    ingest(files, url, replace(options, redo=("alder/A001",)))
    return url


def test_the_stores_do_differ(store_url: str, permuted_url: str) -> None:
    one, other = open_store(store_url), open_store(permuted_url)
    assert one["cedar"].modalities == ("FLAIR", "DWI", "ADC")
    assert other["cedar"].modalities == ("DWI", "ADC", "FLAIR")
    for name in NAMES:
        rows, others = ({case.name: case.row for case in store[name].cases} for store in (one, other))
        assert rows.keys() == others.keys()
        assert rows != others
        assert {case.name: case.split for case in one[name].cases} == {c.name: c.split for c in other[name].cases}


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        {},
        {"drop": "none", "centre": "label", "databases": "each"},
        {"centre": "dilated", "weights": {"alder": 1.0, "cedar": 2.5}},
        {"num_cases": 1, "lesion_share": 0.0},
    ],
)
def test_batches_are_the_same_bits(draw: dict[str, object], store_url: str, permuted_url: str) -> None:
    found = []
    for url, databases in ((store_url, ("alder", "cedar")), (permuted_url, NAMES)):
        stream = stream_of(open_store(url), databases=databases, draw=draw, batch_size=4)
        found.append(list(stream.batches(0, 6)))
    assert_same(*found)
    assert len(set(digests(found[0]))) == 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of all sequences but PD, with weights as they are drawn: its answer hangs on every voxel."""
    info = ModelInfo(
        builder="multi_unet", numbers={"widths": [8, 12], "dropout": 0.0}, axis=AXIS, space=LabelSpace(),
        spacing_mm=SPACING_MM, patch=(24, 24, 24), trained_on={name: ("x",) if name != "PD" else () for name in AXIS},
        databases={name: {} for name in NAMES}, background="shifted",
    )  # fmt: skip
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder / "model.safetensors", multi_unet(len(AXIS), 1, widths=(8, 12), dropout=0.0), info)
    return folder


@pytest.mark.slow
def test_predictions_over_the_stores_are_the_same_bits(model: Path, store_url: str, permuted_url: str) -> None:
    options = EvaluateOptions(split="", databases=NAMES, subsets="full")
    one, other = (evaluate(model, url, options) for url in (store_url, permuted_url))
    assert len(one.cases) == 8
    assert 0 < one.cases["sensitivity"].mean() < 1
    pd.testing.assert_frame_equal(one.cases, other.cases, check_exact=True)
    info = load_model(model).info
    names = [[c.name for c in validation_cases(open_store(u), info, NAMES, 1)] for u in (store_url, permuted_url)]
    assert names[0] == names[1] != []
    for one_panel, other_panel in zip(one.panels, other.panels, strict=True):
        np.testing.assert_array_equal(one_panel.predicted, other_panel.predicted)


@pytest.mark.slow
@pytest.mark.parametrize("hospital", ["cedar", "dogwood"])
def test_a_patients_files_in_any_order_give_the_same_file(
    hospital: str, model: Path, hospitals: Path, tmp_path: Path
) -> None:
    """Under any names, the same sequence being the reference, on files whose grids differ (cedar)."""
    (about,) = (one for one in HOSPITALS if one.name == hospital)
    case = f"{hospital[0].upper()}002"
    files = {
        s.modality: hospitals / hospital / about.pattern.format(case=case, modality=s.spelling) for s in about.scans
    }
    loaded = load_model(model)
    answers = set()
    for number, order in enumerate(itertools.permutations(files)):
        renamed = {name: tmp_path / f"{number}_{9 - at}.nii.gz" for at, name in enumerate(order)}
        for name, path in renamed.items():
            shutil.copy(files[name], path)
        out = tmp_path / f"answer{number}.nii.gz"
        result = predict(loaded, renamed, out, PredictOptions(reference="FLAIR"))
        assert sum(result.volumes_ml.values()) > 0
        answers.add(np.asarray(nib.load(out).dataobj).tobytes())
    assert len(answers) == 1
