"""Grafted cases as files: what ingest makes of them is the healthy anatomy, with the lesion in the image."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.evaluation.grafted_cases import (
    MANIFEST,
    UNFINISHED,
    GraftOptions,
    _first_fitting,
    _tissue_of,
    case_names,
    is_same_person,
    named_by_pathology,
    write_grafted_cases,
)
from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.ingest import ingestion
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.template import Place
from multiseg.store.reader import Case, Store, open_store
from multiseg.store.sources.source_types import DatabaseFiles

SHAPE = (12, 10, 8)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tumour, two healthy people, of whom one cannot be registered, and a patient with lesions and tissues."""
    folder = tmp_path_factory.mktemp("grafted")
    rng = np.random.default_rng(0)
    template = folder / "template.nii"
    write_nifti(template, np.ones((11, 11, 11), dtype=np.float32), np.diag([10.0, 10.0, 10.0, 1.0]))
    lesion, tissue = np.zeros(SHAPE, dtype=np.uint8), np.ones(SHAPE, dtype=np.uint8)
    lesion[4:7, 3:6, 2:5], tissue[6:] = 1, 2
    cases = {}
    scans = (("L1", "seg", lesion), ("H1", "atlas", tissue), ("H2", "atlas", tissue[:11]), ("P1", "seg", lesion))
    for name, label, codes in scans:
        scan = rng.normal(100, 10, codes.shape).astype(np.float32)
        scan += 50 * (codes == 1) if label == "seg" else 0
        write_nifti(folder / f"{name}-T1.nii", scan, AFFINE)
        write_nifti(folder / f"{name}-{label}.nii", codes, AFFINE)
        cases[name] = CaseFiles(
            name, {"T1": folder / f"{name}-T1.nii"}, {label: folder / f"{name}-{label}.nii"}, split="test"
        )
    write_nifti(folder / "P1-atlas.nii", tissue, AFFINE)
    cases["P1"] = replace(cases["P1"], labels={**cases["P1"].labels, "atlas": folder / "P1-atlas.nii"})
    seg, atlas = LabelSchema.parse("1=core", "lesion"), LabelSchema.parse("1=grey matter,2=CSF", "tissue")
    files = [
        DatabaseFiles("tumours", "glioma", (cases["L1"],), {"seg": seg}),
        DatabaseFiles("people", "healthy", (cases["H1"], cases["H2"]), {"atlas": atlas}),
        DatabaseFiles("patients", "glioma", (cases["P1"],), {"seg": seg, "atlas": atlas}),
    ]

    def placed(template: object, prepared: object) -> Place:
        return Place(np.eye(4) if prepared.grid.shape == SHAPE else None)  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingestion, "place_in", placed)
        ingest(files, folder / "brain.zarr", IngestOptions(spacing_mm=(2.0,) * 3, template=str(template)))
    return folder / "brain.zarr"


@pytest.mark.slow
def test_ingest_reads_them_and_the_tissue_is_that_of_the_healthy_case(
    url: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["graft", str(url), "--lesions", "tumours", "--into", "people", "--out", str(out), "--json"]) == 0
    printed = checked(capsys.readouterr().out, "graft")
    assert printed["manifest"] == str(out / "manifest.csv")
    origins = json.loads((out / "grafts.json").read_text())
    assert origins["cases"] == printed["cases"]
    assert origins["without"] == ["people/H2"]
    (origin,) = origins["cases"]
    assert origin["case"], (origin["healthy"], origin["lesion"]) == ("people-H1", ("people/H1", "tumours/L1"))
    assert origin["lesion_ml"] == pytest.approx(27 * 8 / 1000)
    new = tmp_path / "new.zarr"
    assert run(["ingest", str(out / "manifest.csv"), "--store", str(new), "--spacing", "2", "--json"]) == 0
    assert checked(capsys.readouterr().out, "ingest")[0]["written"] == ["people-H1"]
    database, before = open_store(str(new))["people-grafted"], open_store(str(url))
    case = database["people-H1"]
    assert (case.split, case.modalities, case.pathology) == ("test", ("T1",), "glioma")
    image, codes = database.whole(case)
    healthy, anatomy = before["people"].whole(before["people"]["H1"])
    tumour, lesion = before["tumours"].whole(before["tumours"]["L1"])
    np.testing.assert_array_equal(codes[list(database.schemas).index("tissue")], anatomy[0])
    np.testing.assert_array_equal(codes[list(database.schemas).index("lesion")], lesion[0])
    assert database.schemas["tissue"].names == ("grey matter", "CSF")
    # Both are z-scored again over the brain with the lesion: the same up to one factor and one shift.
    expected = np.where(lesion[0] == 1, tumour[0], healthy[0]).astype(np.float64)
    mean, std = case.intensity["T1"]
    old_mean, old_std = before["people"]["H1"].intensity["T1"]
    np.testing.assert_allclose(image[0] * std + mean, expected * old_std + old_mean, atol=0.2)


@pytest.mark.slow
def test_what_cannot_be_written_is_refused(url: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graft = ["graft", str(url), "--into", "people", "--out", str(tmp_path / "out")]
    assert run([*graft, "--lesions", "people"]) == 3
    assert "people has no test case with a lesion" in capsys.readouterr().err
    assert run([*graft, "--lesions", "tumours", "--split", "train"]) == 3
    assert "has no train case" in capsys.readouterr().err
    assert run([*graft, "--lesions", "tumour"]) == 3
    assert "has no database 'tumour'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_hosts_with_lesions_are_left_out_and_listed(
    url: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    graft = ["graft", str(url), "--lesions", "patients", "--out", str(out), "--into", "patients"]
    assert run(graft) == 3
    assert "and without lesions of its own (patients/P1 have some)" in capsys.readouterr().err
    assert not out.exists()
    assert run([*graft, "--into", "people"]) == 0
    assert "patients/P1: left out, it has lesions of its own" in capsys.readouterr().err
    origins = json.loads((out / "grafts.json").read_text())
    assert origins["with_lesions"] == ["patients/P1"]
    assert [case["healthy"] for case in origins["cases"]] == ["people/H1"]
    store = open_store(str(url))
    patient, tumour = store["patients"]["P1"], store["tumours"]["L1"]
    assert _first_fitting(store, [tumour], patient, 0, 0) is not None
    assert _first_fitting(store, [patient], patient, 0, 0) is None


@pytest.mark.slow
def test_an_interrupted_run_starts_again(url: Path, tmp_path: Path) -> None:
    out, store, options = tmp_path / "out", open_store(str(url)), GraftOptions(("tumours",), ("people",))

    def stop(done: int, total: int, case: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_grafted_cases(store, options, out, stop)
    assert (out / UNFINISHED).exists()
    write_grafted_cases(store, options, out)
    assert (out / MANIFEST).exists()
    assert not (out / UNFINISHED).exists()
    with pytest.raises(KeyboardInterrupt):
        write_grafted_cases(store, options, out, stop, overwrite=True)
    assert not (out / MANIFEST).exists()  # it would describe images of two runs


def case_of(database: str, name: str, subject: str, digest: str) -> Case:
    return Case(
        database, name, 0, "", subject, "", "", "test", ("T1",),
        np.zeros(0, dtype=bool), np.zeros((0, 0), dtype=np.int64), Grid(AFFINE, SHAPE), content={"T1": digest},
    )  # fmt: skip


def test_one_person_is_known_by_subject_and_by_scan() -> None:
    one = case_of("a", "P1-first", "P1", "x")
    assert is_same_person(one, case_of("a", "P1-second", "P1", "y"))
    assert is_same_person(one, case_of("b", "other", "other", "x"))
    assert not is_same_person(one, case_of("b", "P1-first", "P1", "y"))  # names of two databases tell nothing


def test_corrected_tissues_are_those_of_a_host() -> None:
    tissue, lesion = LabelSchema.parse("1=CSF", "tissue"), LabelSchema.parse("1=core", "lesion")
    schemas = {"seg": lesion, "atlas": tissue, "expert": tissue, "corrected-atlas": tissue}
    store = MagicMock(spec=Store)
    store.__getitem__.return_value.schemas = schemas

    def chosen(*annotated: bool) -> str | None:
        return _tissue_of(store, MagicMock(spec=Case, database="db", annotated=np.array(annotated)))

    assert chosen(True, True, True, True) == "corrected-atlas"
    assert chosen(True, True, True, False) == "atlas"
    assert chosen(True, False, False, False) is None


def test_no_two_cases_share_a_folder() -> None:
    named = [("a-b", "c"), ("a", "b-c"), ("x", "c 1"), ("x", "c_1"), ("x", "C_1"), ("y", "1")]
    names = case_names([case_of(database, name, "", "") for database, name in named])
    assert names == ["a-b-c", "a-b-c-2", "x-c_1", "x-c_1-2", "x-C_1-2-2", "y-1"]


def test_each_pathology_has_its_database() -> None:
    rows = [
        {"database": database, "pathology": pathology, "case": str(number)}
        for number, (database, pathology) in enumerate(
            [("a-grafted", "glioma"), ("a-grafted", "MS (RR)"), ("a-grafted", "MS-RR"), ("b-grafted", "glioma")]
        )
    ]
    names = [row["database"] for row in named_by_pathology(rows)]
    assert names == ["a-grafted-glioma", "a-grafted-MS-RR", "a-grafted-MS-RR-2", "b-grafted"]
