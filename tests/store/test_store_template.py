"""The affine of every case to a template: stored twice, read by all, and never mixed with that of another template."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import zarr
from stores import SCHEMAS, KilledError, case, contents, kill_at

from multiseg.errors import StoreError, UsageError
from multiseg.store import schema
from multiseg.store.cases import CaseFiles
from multiseg.store.checks.verification import verify_store
from multiseg.store.findings import Doubt, Severity
from multiseg.store.ingest import ingestion
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import IngestReport, ingest
from multiseg.store.preparation import template as template_module
from multiseg.store.preparation.prepare import PreparedCase
from multiseg.store.preparation.template import Place, Template, above_zero, open_template
from multiseg.store.reader import open_store
from multiseg.store.repairs.store_repair import repair
from multiseg.store.sources.source_types import DatabaseFiles

AFFINE = np.array([[1.1, 0.1, 0, 3], [0, 0.9, 0, -2], [0, 0, 1.2, 5], [0, 0, 0, 1.0]])


def scan(path: Path, value: float, edge: int) -> str:
    nib.save(nib.Nifti1Image(np.full((edge,) * 3, value, dtype=np.float32), np.diag([10.0, 10.0, 10.0, 1.0])), path)
    return str(path)


def placed(template: Template, prepared: PreparedCase) -> Place:
    """A registration that fails for scans of an odd shape."""
    if prepared.grid.shape[0] % 2:
        return Place(None, (Doubt(Severity.WARNING, "NOT_IN_TEMPLATE", "no"),))
    return Place(AFFINE)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IngestOptions:
    monkeypatch.setattr(ingestion, "place_in", placed)
    return IngestOptions(spacing_mm=(2.0,) * 3, template=scan(tmp_path / "one.nii", 1.0, 11))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestReport]:
    """A store of P1 and of P2, whose registration failed, and how they came in. Only for reading, and for copies."""
    folder = tmp_path_factory.mktemp("registered")
    cases = case(folder, "P1", 1), case(folder, "P2", 2, shape=(15, 12, 12))
    template = scan(folder / "one.nii", 1.0, 11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingestion, "place_in", placed)
        report = take(folder / "brain.zarr", IngestOptions(spacing_mm=(2.0,) * 3, template=template), *cases)
    return folder / "brain.zarr", report


@pytest.fixture(scope="module")
def held(registered: tuple[Path, IngestReport]) -> dict[tuple[str, str], Any]:
    """All that can be read of it."""
    return contents(registered[0])


@pytest.fixture(scope="module")
def unregistered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of P1 without a template. Only for copies."""
    folder = tmp_path_factory.mktemp("unregistered")
    take(folder / "brain.zarr", IngestOptions(spacing_mm=(2.0,) * 3), case(folder, "P1", 1))
    return folder / "brain.zarr"


def take(url: Path, options: IngestOptions, *cases: CaseFiles, name: str = "alpha") -> IngestReport:
    report, *_ = ingest([DatabaseFiles(name, "sclerosis", cases, {"lesion": SCHEMAS["lesion"]})], url, options)
    return report


def errors(url: Path) -> list[str]:
    return [finding.message for finding in verify_store(str(url)) if finding.severity is Severity.ERROR]


@pytest.mark.slow
def test_cases_have_their_affine_and_those_that_failed_have_none(registered: tuple[Path, IngestReport]) -> None:
    url, report = registered
    assert [finding.case for finding in report.findings if finding.code == "NOT_IN_TEMPLATE"] == ["P2"]
    database = open_store(url)["alpha"]
    np.testing.assert_array_equal(database["P1"].to_template, AFFINE)
    assert database["P2"].to_template is None
    assert database.template is not None
    assert database.template["name"] == "one.nii"
    in_xarray = open_store(url).dataset("alpha")["to_template"]
    assert in_xarray.dims == ("case", "row", "column")
    np.testing.assert_array_equal(in_xarray.values, [AFFINE, np.full((4, 4), np.nan)])
    assert errors(url) == []


@pytest.mark.slow
def test_a_database_without_a_template_has_no_such_array_and_gets_it_later(
    tmp_path: Path, options: IngestOptions
) -> None:
    url, cases = tmp_path / "brain.zarr", (case(tmp_path, "P1", 1), case(tmp_path, "P2", 2))
    take(url, replace(options, template=""), *cases)
    assert not (url / "alpha/to_template").exists()
    assert "to_template" not in str(zarr.open_array(url / "alpha/record")[0])
    assert open_store(url)["alpha"].template is None
    assert open_store(url)["alpha"]["P1"].to_template is None
    assert take(url, options, *cases).written == ("P1", "P2")
    assert take(url, options, *cases).skipped == ("P1", "P2")
    np.testing.assert_array_equal(open_store(url)["alpha"]["P2"].to_template, AFFINE)
    assert errors(url) == []


def test_another_template_or_none_is_refused(
    tmp_path: Path, options: IngestOptions, registered: tuple[Path, IngestReport]
) -> None:
    url, one = shutil.copytree(registered[0], tmp_path / "brain.zarr"), case(tmp_path, "P1", 1)
    assert take(url, options, one).skipped == ("P1",)
    other = scan(tmp_path / "two.nii", 2.0, 11)
    with pytest.raises(StoreError, match=r"template one.nii \(sha256 .*, but two.nii \(sha256 .* was given"):
        take(url, replace(options, template=other), one)
    with pytest.raises(StoreError, match=r"one.nii .* but none was given"):
        take(url, replace(options, template=""), one)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["to_template/c/0/0/0", "to_template/zarr.json", "zarr.json"])
def test_the_affine_is_repaired_from_the_records(
    tmp_path: Path, registered: tuple[Path, IngestReport], held: dict[tuple[str, str], Any], lost: str
) -> None:
    url = shutil.copytree(registered[0], tmp_path / "brain.zarr")
    (url / "alpha" / lost).unlink()
    assert errors(url)
    repair(str(url))
    assert contents(url) == held
    np.testing.assert_array_equal(open_store(url)["alpha"]["P1"].to_template, AFFINE)
    assert errors(url) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 3, 5, 7])
def test_a_writer_that_dies_while_it_adds_the_template_leaves_a_store_that_opens(
    tmp_path: Path, options: IngestOptions, unregistered: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    url, one = shutil.copytree(unregistered, tmp_path / "brain.zarr"), case(tmp_path, "P1", 1)
    with monkeypatch.context() as patch:
        kill_at(patch, moment)
        with pytest.raises(KilledError):
            take(url, options, one)
    assert open_store(url)["alpha"]["P1"].extent == (10, 8, 8)
    take(url, options, one)
    np.testing.assert_array_equal(open_store(url)["alpha"]["P1"].to_template, AFFINE)
    assert errors(url) == []


def test_a_head_is_no_template_without_the_mask_of_its_brain(tmp_path: Path) -> None:
    head, brain = scan(tmp_path / "head.nii", 5.0, 20), scan(tmp_path / "mask.nii", 1.0, 12)
    with pytest.raises(UsageError, match=r"shows 8000 ml .* 500 to 2200 ml.*--template-mask"):
        open_template(head)
    with pytest.raises(UsageError, match="needs the template"):
        open_template("", brain)
    template = open_template(head, brain)
    assert template is not None
    voxels, _ = template_module.brain_of_template(template)
    assert np.count_nonzero(voxels) == 12**3
    assert template.sha256 not in (open_template(brain).sha256, "")  # type: ignore[union-attr]


def test_scores_of_0_in_the_brain_are_not_taken_for_air() -> None:
    scores = np.array([[[-2.0, 0.0, 2.0, 0.0]]], dtype=np.float32)
    inside = np.array([[[True, True, True, False]]])
    np.testing.assert_allclose(above_zero(scores, inside)[inside], [0.2, 2.2, 4.2], rtol=1e-6)


def test_the_name_of_the_column_is_reserved() -> None:
    assert set(schema.OF_TEMPLATE) <= schema.RESERVED
