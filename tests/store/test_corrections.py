"""Corrected masks come back: as an annotation of their own, which training reads, and which no ingest loses."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.errors import LabelError, UsageError
from multiseg.evaluation.cohort_records import RECORDS, RUN, CaseRecord, CohortFolder
from multiseg.evaluation.corrected_masks import find_corrections
from multiseg.evaluation.structure_tables import StructureRow
from multiseg.labels import CORRECTED, LabelSchema, LabelSpace
from multiseg.loaders.graft import has_lesion
from multiseg.store.checks.verification import verify_store
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.ingest.corrections import (
    CorrectionOptions,
    CorrectionReport,
    check_inside,
    ingest_corrections,
)
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.native import native_label, ras_grid, write_native
from multiseg.store.preparation.grids import Grid, resample_codes
from multiseg.store.reader import Store, open_store
from multiseg.store.sources.manifest import find_manifest

SPACING_MM = (5.0, 5.0, 5.0)
TIME = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
OPTIONS = CorrectionOptions("A. Reader", TIME)
NAME = "cedar/C001"


@pytest.fixture(scope="module")
def one_case(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the hospital cedar, which tests copy."""
    url = tmp_path_factory.mktemp("corrections") / "brain.zarr"
    databases = [files for files in find_manifest(hospitals / "manifest.toml") if files.name == "cedar"]
    chosen = [replace(files, cases=files.cases[:2]) for files in databases]
    (report,) = ingest(chosen, str(url), IngestOptions(spacing_mm=SPACING_MM))
    assert len(report.written) == 2
    return url


@pytest.fixture
def url(one_case: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(one_case, tmp_path / "brain.zarr"))


Change = Callable[[np.ndarray], np.ndarray]


def written_labels(store: Store, folder: Path, change: Change | None = None) -> Path:
    """The case written by `info --write`, and its label as a rater has changed it. Returns the label."""
    database = store["cedar"]
    (label,) = [
        path
        for path in write_native(database, database["C001"], folder / NAME)
        if path.name.startswith("label-") and path.name.endswith(".nii.gz")
    ]
    if change is not None:
        save(label, change)
    return label


def save(path: Path, change: Change, affine: np.ndarray | None = None) -> None:
    """Save a file again with other voxels, as a viewer does: without extensions of the header."""
    image = nib.load(path)
    voxels = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(voxels, image.affine if affine is None else affine), path)


def without_half(voxels: np.ndarray) -> np.ndarray:
    """Without the lesion voxels of the first half of the lesion's box."""
    first, last = np.argwhere(voxels)[:, 0].min(), np.argwhere(voxels)[:, 0].max()
    voxels[: (first + last) // 2 + 1] = 0
    return voxels


def predicted(store: Store, folder: Path, structures: tuple[str, ...] = ("lesion",)) -> Path:
    """A folder as `predict` leaves it, of one case, whose mask is the truth. Returns the mask."""
    database = store["cedar"]
    case = database["C001"]
    native, _ = database.native(case)
    mask = folder / f"{NAME}.nii.gz"
    mask.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(native_label(database, case, next(iter(database.schemas))), native.affine), mask)
    cohort = CohortFolder(folder)
    (folder / RECORDS / "cases" / "cedar").mkdir(parents=True)
    (folder / RECORDS / RUN).write_text("{}")
    rows = tuple(StructureRow(name, "lesion", 1.0, 1) for name in structures)
    record = CaseRecord("cedar", "C001", "C001", "", "done", "key", outputs=cohort.digests([mask]), structures=rows)
    cohort.write(NAME, record)
    return mask


def take(url: str, folder: Path, options: CorrectionOptions = OPTIONS, **where: str) -> CorrectionReport:
    found, report = find_corrections(folder, url, **where)
    return ingest_corrections(url, found, options, report)


def codes_of(report: CorrectionReport) -> list[str]:
    return [finding.code for finding in report.findings]


@pytest.mark.slow
def test_a_changed_prediction_becomes_an_annotation_beside_the_others(url: str, tmp_path: Path) -> None:
    before = open_store(url)
    mask = predicted(before, tmp_path / "out")
    assert take(url, tmp_path / "out").unchanged == [NAME]
    save(mask, without_half)
    report = take(url, tmp_path / "out")
    assert (report.written, report.failed) == ([NAME], [])
    assert verify_store(url) == []
    after = open_store(url)
    old, new = before["cedar"]["C001"], after["cedar"]["C001"]
    old_images, old_codes = before["cedar"].whole(old)
    images, codes = after["cedar"].whole(new)
    assert np.array_equal(images, old_images)
    assert np.array_equal(codes[0], old_codes[0])
    assert list(after["cedar"].schemas) == ["lesion", CORRECTED]
    native, _ = after["cedar"].native(new)
    corrected = np.asarray(nib.as_closest_canonical(nib.load(mask)).dataobj).astype(np.uint8)
    assert 0 < np.count_nonzero(codes[1]) < np.count_nonzero(codes[0])
    assert np.array_equal(codes[1], resample_codes(corrected, ras_grid(native), new.grid))
    (source,) = [source for source in after["cedar"].sources(new) if source["role"] == f"label:{CORRECTED}"]
    assert (source["rater"], source["time"]) == ("A. Reader", "2026-11-30T12:00:00+00:00")
    assert source["steps"][0] == "prediction corrected by A. Reader, recorded 2026-11-30T12:00:00+00:00"
    for name in ("subject", "session", "site", "split", "source_sha256", "modalities", "intensity", "content"):
        assert getattr(new, name) == getattr(old, name), name
    assert dict(new.participant) == dict(old.participant)
    # The other case is not touched, and does not have the annotation.
    assert after["cedar"]["C002"].annotated.tolist() == [True, False]
    assert take(url, tmp_path / "out").unchanged == [NAME]


@pytest.mark.slow
def test_training_reads_the_correction_alone(url: str, tmp_path: Path) -> None:
    mask = predicted(open_store(url), tmp_path / "out", ("anything",))
    save(mask, without_half)
    assert take(url, tmp_path / "out").written == [NAME]
    database = open_store(url)["cedar"]
    case = database["C001"]
    _, codes = database.whole(case)
    target = database.label_view(case, LabelSpace()).target(codes)
    assert np.array_equal(target == 1, codes[1] == 1)
    assert not np.array_equal(target == 1, codes[0] == 1)
    database.hide(CORRECTED)
    hidden = database["C001"]
    assert np.array_equal(database.label_view(hidden, LabelSpace()).target(codes) == 1, codes[0] == 1)


@pytest.mark.slow
def test_a_case_whose_lesions_a_rater_removed_has_none(url: str, tmp_path: Path) -> None:
    save(predicted(open_store(url), tmp_path / "out"), np.zeros_like)
    assert take(url, tmp_path / "out").written == [NAME]
    database = open_store(url)["cedar"]
    assert not has_lesion(database, database["C001"])
    assert has_lesion(database, database["C002"], even_hidden=True)
    database.hide(CORRECTED)
    assert has_lesion(database, database["C001"])


@pytest.mark.slow
def test_no_ingest_loses_a_correction(url: str, tmp_path: Path, hospitals: Path) -> None:
    mask = predicted(open_store(url), tmp_path / "out")
    save(mask, without_half)
    assert take(url, tmp_path / "out").written == [NAME]
    (files,) = [files for files in find_manifest(hospitals / "manifest.toml") if files.name == "cedar"]
    files = replace(files, cases=files.cases[:1])
    (report,) = ingest([files], url, IngestOptions(spacing_mm=SPACING_MM))
    assert report.skipped == ("C001",)  # its files are those of before
    (report,) = ingest([files], url, IngestOptions(spacing_mm=SPACING_MM, redo=("C001",)))
    assert (report.written, report.failed) == ((), ("C001",))
    assert [finding.code for finding in report.findings if finding.case == "C001"] == ["CASE_CORRECTED"]
    assert open_store(url)["cedar"]["C001"].annotated.tolist() == [True, True]


@pytest.mark.slow
def test_a_second_correction_needs_replace(url: str, tmp_path: Path) -> None:
    mask = predicted(open_store(url), tmp_path / "out")
    save(mask, without_half)
    take(url, tmp_path / "out")
    save(mask, lambda voxels: np.zeros_like(voxels))
    report = take(url, tmp_path / "out")
    assert (report.failed, codes_of(report)) == ([NAME], ["CORRECTED_BEFORE"])
    assert "a correction by A. Reader of 2026-11-30" in report.findings[0].message
    later = replace(OPTIONS, rater="B. Other", replace=True)
    assert take(url, tmp_path / "out", later).written == [NAME]
    database = open_store(url)["cedar"]
    case = database["C001"]
    assert not database.whole(case)[1][1].any()
    (source,) = [source for source in database.sources(case) if source["role"] == f"label:{CORRECTED}"]
    assert source["rater"] == "B. Other"


@pytest.mark.slow
def test_labels_of_info_come_back_in_the_codes_of_their_annotation(url: str, tmp_path: Path) -> None:
    store = open_store(url)
    label = written_labels(store, tmp_path / "written")
    assert take(url, tmp_path / "written").unchanged == [NAME]
    save(label, without_half)
    assert take(url, label.parent, case=NAME).written == [NAME]
    after = open_store(url)["cedar"]
    assert list(after.schemas) == ["lesion", "corrected-lesion"]
    assert after.schemas["corrected-lesion"] == after.schemas["lesion"]
    # Written out again and unchanged, the correction is the one that is there.
    again = tmp_path / "again"
    write_native(after, after["C001"], again / NAME)
    report = take(url, again)
    assert (report.unchanged, report.failed) == ([NAME, NAME], [])


def moved(affine: np.ndarray) -> np.ndarray:
    affine = affine.copy()
    affine[0, 3] += 1
    return affine


def test_a_mask_in_another_place_is_refused(url: str, tmp_path: Path) -> None:
    mask = predicted(open_store(url), tmp_path / "out")
    save(mask, without_half, moved(nib.load(mask).affine))
    report = take(url, tmp_path / "out")
    assert (report.written, codes_of(report)) == ([], ["OTHER_GRID"])
    save(mask, lambda voxels: voxels[1:])
    assert codes_of(take(url, tmp_path / "out")) == ["OTHER_GRID"]
    assert list(open_store(url)["cedar"].schemas) == ["lesion"]


def test_another_order_of_axes_is_the_same_place(url: str, tmp_path: Path) -> None:
    mask = predicted(open_store(url), tmp_path / "out")
    save(mask, without_half)
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine @ flip(image.shape[0])), mask)
    found, _ = find_corrections(tmp_path / "out", url)
    steps: list[tuple[int, int, str]] = []
    report = ingest_corrections(url, found, OPTIONS, dry_run=True, on_case=lambda *step: steps.append(step))
    assert report.written == [NAME]
    assert steps == [(1, 1, NAME)]
    assert list(open_store(url)["cedar"].schemas) == ["lesion"]


def flip(num: int) -> np.ndarray:
    matrix = np.diag([-1.0, 1, 1, 1])
    matrix[0, 3] = num - 1
    return matrix


def with_code_7(voxels: np.ndarray) -> np.ndarray:
    voxels[tuple(np.argwhere(voxels)[0])] = 7
    return voxels


def test_unknown_codes_are_refused(url: str, tmp_path: Path) -> None:
    mask = predicted(open_store(url), tmp_path / "out")
    save(mask, with_code_7)
    report = take(url, tmp_path / "out")
    assert (report.failed, codes_of(report)) == ([NAME], ["LABEL_CODES"])


def test_what_lies_outside_of_the_stored_box_is_refused(tmp_path: Path) -> None:
    voxels = np.zeros((10, 10, 10), dtype=np.uint8)
    voxels[2:8, 2:8, 2:8] = 1
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "mask.nii.gz")
    mask = read_volume(tmp_path / "mask.nii.gz")
    whole = Grid(np.eye(4), (10, 10, 10))
    check_inside(whole, mask)
    check_inside(whole.cropped((3, 3, 3), (4, 4, 4)), mask)  # resampling may have cut one voxel on each side
    for corner, shape in (((4, 2, 2), (6, 6, 6)), ((2, 2, 0), (6, 4, 10))):
        with pytest.raises(LabelError, match="marks 36 of 216 voxels outside"):
            check_inside(whole.cropped(corner, shape), mask)


def test_what_is_gone_unknown_or_elsewhere_is_said(url: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mask = predicted(open_store(url), out)
    shutil.copy(mask, mask.with_name("C001-corrected.nii.gz"))
    save(mask, without_half)
    report = take(url, out, database="elsewhere")
    assert sorted(codes_of(report)) == ["NO_CASE", "UNKNOWN_FILE"]
    assert "there are cedar" in next(one.message for one in report.findings if one.code == "NO_CASE")
    mask.unlink()
    report = take(url, out)
    assert (report.failed, sorted(codes_of(report))) == ([NAME], ["GONE", "UNKNOWN_FILE"])


@pytest.mark.parametrize("rater", ["", "  ", "a\nb"])
def test_somebody_has_to_be_named(rater: str) -> None:
    with pytest.raises(UsageError, match="say who corrected the masks"):
        CorrectionOptions(rater)


def test_a_folder_of_something_else_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no masks of predict"):
        find_corrections(tmp_path, url)
    with pytest.raises(UsageError, match="there is no folder"):
        find_corrections(tmp_path / "x", url)


@pytest.mark.slow
def test_the_command(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = predicted(open_store(url), tmp_path / "out")
    save(mask, without_half)
    command = ["ingest", "--corrected", str(tmp_path / "out"), "--store", url, "--rater", "A. Reader", "--json"]
    assert run([*command, "--dry-run"]) == 0
    assert checked(capsys.readouterr().out, "ingest")["written"] == [NAME]
    assert run(command) == 0
    assert checked(capsys.readouterr().out, "ingest")["written"] == [NAME]
    assert run(command) == 0
    assert checked(capsys.readouterr().out, "ingest")["unchanged"] == [NAME]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corrected", "out"], "say who corrected"),
        (["source", "--corrected", "out", "--rater", "A"], "not both"),
        (["--corrected", "out", "--rater", "A", "--n4"], "--n4 can only be used with a source"),
        (["source", "--rater", "A"], "belong to --corrected"),
        ([], "name the source"),
    ],
)
def test_flags_that_do_not_fit(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", *arguments, "--store", "brain.zarr"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_corrections_come_first_in_a_label_space() -> None:
    lesion = LabelSchema.parse("1=necrosis,2=oedema", "lesion")
    tissue = LabelSchema.parse("1=CSF", "tissue")
    corrected = LabelSchema.parse("1=lesion", "lesion")
    schemas = {"tumour": lesion, "tissue": tissue, CORRECTED: corrected}
    space = LabelSpace.of(["lesion", "tissue:CSF"])
    codes = np.zeros((3, 1, 1, 5), dtype=np.uint8)
    codes[0, 0, 0] = [1, 2, 0, 0, 0]
    codes[1, 0, 0] = [0, 1, 1, 0, 1]
    codes[2, 0, 0] = [1, 0, 0, 1, 0]
    assert space.view(schemas, [True, True, True]).target(codes)[0, 0].tolist() == [1, 2, 2, 1, 2]
    assert space.view(schemas, [True, True, False]).target(codes)[0, 0].tolist() == [1, 1, 2, 0, 2]


def test_a_label_as_it_was_written_is_no_correction_though_the_store_has_another_now(url: str, tmp_path: Path) -> None:
    label = written_labels(open_store(url), tmp_path / "home")
    found, report = find_corrections(tmp_path / "home", url)
    assert (found, report.unchanged) == ([], [NAME])
    save(label, without_half)
    assert len(find_corrections(tmp_path / "home", url)[0]) == 1


def test_predictions_of_several_databases_do_not_go_into_one(url: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predicted(open_store(url), out)
    cohort = CohortFolder(out)
    ((_, record),) = cohort.all_records()
    (out / RECORDS / "cases" / "birch").mkdir()
    cohort.write("birch/C001", replace(record, database="birch"))
    with pytest.raises(UsageError, match="has cases of birch, cedar, which --database would put into one"):
        find_corrections(out, url, database="cedar")


def test_the_name_of_corrected_masks_is_reserved(hospitals: Path, tmp_path: Path) -> None:
    (files,) = [files for files in find_manifest(hospitals / "manifest.toml") if files.name == "cedar"]
    (schema,) = files.schemas.values()
    taken = replace(files, cases=(), schemas={"corrected-lesion": schema})
    with pytest.raises(UsageError, match="a name that is kept for masks which a rater has corrected"):
        ingest([taken], str(tmp_path / "brain.zarr"), IngestOptions(spacing_mm=SPACING_MM))
