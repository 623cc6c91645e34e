"""Ingest: what is in, what stays out, and how a database grows without hurting what it holds."""

import fcntl
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr
from sweeps import sample

from multiseg.errors import ResourceError, StoreError, UsageError
from multiseg.labels import LabelSchema
from multiseg.store import columns, schema
from multiseg.store.cases import CaseFiles
from multiseg.store.durable import DurableStore
from multiseg.store.hierarchy import open_root
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import IngestReport, ingest
from multiseg.store.ingest.writer import DatabaseWriter
from multiseg.store.reader import Database, Store, open_store
from multiseg.store.sources.source_types import DatabaseFiles

SHAPE = (14, 16, 12)
OPTIONS = IngestOptions(spacing_mm=(2.0, 2.0, 2.0))
LESION = LabelSchema.parse("1=lesion", "lesion")


class Clinic:
    """A folder of little scans, and the store that they go to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder / "brain.zarr")

    def save(self, name: str, array: np.ndarray) -> Path:
        image = nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]))
        image.header["descrip"] = name  # no two files are alike to the last byte
        nib.save(image, self.folder / name)
        return self.folder / name

    def case(self, name: str, seed: int, modalities: tuple[str, ...] = ("T1",), shape=SHAPE, **kw) -> CaseFiles:
        rng = np.random.default_rng(seed)
        images = {}
        for modality in modalities:
            image = np.zeros(shape, dtype=np.float32)
            image[1:-1, 1:-1, 1:-1] = rng.normal(100, 10, np.array(shape) - 2)
            images[modality] = self.save(f"{seed}_{modality}.nii", image)
        codes = np.zeros(shape, dtype=np.uint8)
        codes[4:7, 4:7, 4:7] = 1
        kw.setdefault("labels", {"lesion": self.save(f"{seed}_lesion.nii", codes)})
        return CaseFiles(case=name, images=images, **kw)

    def ingest(self, *cases: CaseFiles, name: str = "db", schemas=None, options=OPTIONS, **kw) -> IngestReport:
        schemas = {"lesion": LESION} if schemas is None else schemas
        (report,) = ingest([DatabaseFiles(name, "sclerosis", cases, schemas, **kw)], self.url, options)
        return report

    @property
    def store(self) -> Store:
        return open_store(self.url)

    def whole(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        database = self.store["db"]
        return database.whole(database[name])


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of the case P1. Only for copies."""
    clinic = Clinic(tmp_path_factory.mktemp("first"))
    clinic.ingest(clinic.case("P1", 1))
    return clinic.url


@pytest.fixture(scope="module")
def second(first: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of the cases P1 and P2. Only for copies."""
    clinic = Clinic(tmp_path_factory.mktemp("second"))
    shutil.copytree(first, clinic.url)
    clinic.ingest(clinic.case("P1", 1), clinic.case("P2", 2))
    return clinic.url


@pytest.fixture
def begun(clinic: Clinic, first: str) -> Clinic:
    """A clinic whose store has the case P1."""
    shutil.copytree(first, clinic.url)
    return clinic


def test_cases_come_in_and_are_skipped_the_next_time(clinic: Clinic) -> None:
    cases = [clinic.case("P1", 1), clinic.case("P2", 2)]
    assert clinic.ingest(*cases).written == ("P1", "P2")
    again = clinic.ingest(*cases, clinic.case("P3", 3))
    assert (again.skipped, again.written, again.failed) == (("P1", "P2"), ("P3",), ())
    assert [(case.name, case.row) for case in clinic.store.cases] == [("P1", 0), ("P2", 1), ("P3", 2)]
    assert sorted(clinic.store.cases[0].modalities) == ["T1"]


@pytest.mark.slow
def test_bad_cases_leave_the_others_in(clinic: Clinic) -> None:
    bad = clinic.case("P1", 1)
    bad.images["T1"].write_bytes(b"")
    unknown = clinic.case("P2", 2, labels={"lesion": clinic.save("codes.nii", np.full(SHAPE, 7, np.uint8))})
    report = clinic.ingest(bad, unknown, clinic.case("P3", 3))
    assert (report.written, report.failed) == (("P3",), ("P1", "P2"))
    assert [(f.code, f.case) for f in report.findings if f.severity == "error"] == [
        ("NOT_NIFTI", "P1"),
        ("LABEL_CODES", "P2"),
    ]
    assert [case.name for case in clinic.store.cases] == ["P3"]
    mended = clinic.ingest(clinic.case("P1", 1), clinic.case("P3", 3))
    assert (mended.written, mended.skipped) == (("P1",), ("P3",))
    # The room of the first two cases is taken up again, and none is left over.
    assert {case.name: case.row for case in clinic.store.cases} == {"P3": 2, "P1": 0}


def test_when_every_case_is_bad_there_is_no_store(clinic: Clinic) -> None:
    bad = clinic.case("P1", 1)
    bad.images["T1"].write_bytes(b"")
    assert clinic.ingest(bad).failed == ("P1",)
    assert not Path(clinic.url).exists()


@pytest.mark.slow
def test_changed_files_are_refused_then_replace(clinic: Clinic, second: str) -> None:
    shutil.copytree(second, clinic.url)
    before, reading = clinic.whole("P1"), clinic.store["db"]
    changed = clinic.case("P1", 5)
    report = clinic.ingest(changed)
    assert (report.failed, report.findings[-1].code) == (("P1",), "CASE_CHANGED")
    np.testing.assert_array_equal(clinic.whole("P1")[0], before[0])

    replacing = IngestOptions(spacing_mm=(2.0,) * 3, replace=True)
    assert clinic.ingest(changed, clinic.case("P2", 2), options=replacing).written == ("P1",)
    assert not np.array_equal(clinic.whole("P1")[0], before[0])
    assert sorted(case.name for case in clinic.store.cases) == ["P1", "P2"]
    # Twice more, and new cases: who opened the store before still reads what was there then.
    for seed in (6, 7):
        clinic.ingest(clinic.case("P1", seed), clinic.case(f"N{seed}", seed), options=replacing)
    np.testing.assert_array_equal(reading.whole(reading["P1"])[0], before[0])
    np.testing.assert_array_equal(clinic.store.dataset("db").case.values, [c.name for c in clinic.store.cases])


def test_a_superseded_row_at_the_end_stays_for_its_readers(clinic: Clinic) -> None:
    bad = clinic.case("P1", 1)
    bad.images["T1"].write_bytes(b"")
    clinic.ingest(bad, clinic.case("P2", 2))
    reading = clinic.store["db"]
    before = reading.whole(reading["P2"])[0]
    clinic.ingest(clinic.case("P2", 3), options=IngestOptions(spacing_mm=(2.0,) * 3, replace=True))
    assert (reading["P2"].row, clinic.store["db"]["P2"].row) == (1, 0)
    np.testing.assert_array_equal(reading.whole(reading["P2"])[0], before)
    assert before.any()


def test_another_recipe_codec_voxel_size_or_meaning_is_refused_even_if_nothing_is_new(begun: Clinic) -> None:
    case = begun.case("P1", 1)
    with pytest.raises(StoreError, match=r"has voxels of \[2\.0, 2\.0, 2\.0\] mm, but \[1\.0, 1\.0, 1\.0\]"):
        begun.ingest(case, options=IngestOptions())
    with pytest.raises(StoreError, match=r"was ingested with recipe .* but .*'reference': 'T1'"):
        begun.ingest(case, options=IngestOptions(spacing_mm=(2.0,) * 3, reference="T1"))
    with pytest.raises(StoreError, match="was ingested with codec lz4, but zstd"):
        begun.ingest(case, options=IngestOptions(spacing_mm=(2.0,) * 3, codec="zstd"))
    with pytest.raises(StoreError, match="already has an annotation 'lesion' with other codes"):
        begun.ingest(case, schemas={"lesion": LabelSchema.parse("1=core", "lesion")})
    assert begun.ingest(case).skipped == ("P1",)


def test_a_database_grows_and_old_cases_stay(begun: Clinic) -> None:
    image, codes = begun.whole("P1")
    tissue = LabelSchema.parse("1=CSF,2=grey,3=white", "tissue")
    new = begun.case("P2", 2, ("FLAIR", "T1", "T2"), shape=(20, 40, 18))
    codes2 = np.full((20, 40, 18), 3, dtype=np.uint8)
    labels = {**new.labels, "tissue": begun.save("tissue.nii", codes2)}
    new = CaseFiles(case="P2", images=new.images, labels=labels)
    begun.ingest(new, schemas={"lesion": LESION, "tissue": tissue})
    database = begun.store["db"]
    assert database.modalities == ("T1", "FLAIR", "T2")
    assert list(database.schemas) == ["lesion", "tissue"]
    first, second = database["P1"], database["P2"]
    assert (first.modalities, second.modalities) == (("T1",), ("T1", "FLAIR", "T2"))
    assert (first.annotated.tolist(), second.annotated.tolist()) == ([True, False], [True, True])
    np.testing.assert_array_equal(database.whole(first)[0][:1], image)
    np.testing.assert_array_equal(database.whole(first)[1][:1], codes)
    assert not database.whole(first)[0][1:].any()
    assert second.extent == (20, 40, 18)
    assert (database.codes(second, (0, 0, 0), second.extent)[1] == 3).all()
    assert second.foreground_count.tolist() == [[27, 0, 0], [0, 0, 20 * 40 * 18]]
    points = database.foreground(second)
    assert points.shape == (2, 3, schema.FOREGROUND_POINTS, 3)
    assert (points[1, 2] >= 0).all()
    assert not (points[1, 0] >= 0).any()


@pytest.mark.slow
def test_no_patient_inherits_from_a_row_that_a_dead_writer_left(clinic: Clinic, monkeypatch) -> None:
    old = clinic.case("OLD", 1, ("T1", "T2"), shape=(20, 22, 18), session="2", site="A", participant={"age": 70.0})
    first = clinic.case("P0", 9, participant={"age": 30.0, "sex": "F"})
    with monkeypatch.context() as patch:
        real = DatabaseWriter._commit

        def dies(self: DatabaseWriter, row: int, case: str) -> None:
            if case == "OLD":
                raise KeyboardInterrupt
            real(self, row, case)

        patch.setattr(DatabaseWriter, "_commit", dies)
        with pytest.raises(KeyboardInterrupt):
            clinic.ingest(first, old)
    assert [case.name for case in clinic.store.cases] == ["P0"]
    clinic.ingest(first, clinic.case("NEW", 2))
    database = clinic.store["db"]
    new = database["NEW"]
    assert new.row == 1
    assert (new.session, new.site, new.participant["sex"], new.modalities) == ("", "", "", ("T1",))
    assert np.isnan(new.participant["age"])
    image = database.image(new, (0, 0, 0), (24, 24, 24))
    assert not image[:, 14:].any()
    assert not image[1].any()


def test_two_ingests_at_once(begun: Clinic) -> None:
    handle = os.open(begun.url, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ResourceError, match="another process is writing to"):
            begun.ingest(begun.case("P2", 2))
    finally:
        os.close(handle)
    assert begun.ingest(begun.case("P2", 2)).written == ("P2",)


def test_a_full_disk_loses_nothing_that_was_committed(begun: Clinic, monkeypatch) -> None:

    def full(self: DatabaseWriter, row: int, case: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DatabaseWriter, "_commit", full)
        with pytest.raises(ResourceError, match=r"case 'P2' could not be written: .*No space left"):
            begun.ingest(begun.case("P2", 2))
    assert [case.name for case in begun.store.cases] == ["P1"]
    assert begun.ingest(begun.case("P2", 2)).written == ("P2",)


def is_of_array(key: str) -> bool:
    """Whether this is the metadata of an array, which are written when it is made and when it grows."""
    return key.endswith("/zarr.json") and key.count("/") == 2


@pytest.mark.parametrize("left", sample(range(0, 27, 3), 3, always=[0, 24]))
def test_a_writer_that_died_while_making_arrays_is_taken_up(left: int, clinic: Clinic, monkeypatch) -> None:
    made: list[str] = []
    with monkeypatch.context() as patch:
        real = DurableStore._write

        def dies(self: DurableStore, key: str, value) -> None:
            if is_of_array(key):
                if len(made) == left:
                    raise KeyboardInterrupt
                made.append(key)
            real(self, key, value)

        patch.setattr(DurableStore, "_write", dies)
        try:
            clinic.ingest(clinic.case("P1", 1))
        except KeyboardInterrupt:
            assert clinic.store.cases == ()
    assert clinic.ingest(clinic.case("P1", 1)).failed == ()
    assert [case.name for case in clinic.store.cases] == ["P1"]
    assert clinic.store.dataset("db").case.values.tolist() == ["P1"]


@pytest.mark.slow
@pytest.mark.parametrize("last", sample([0, 1, 2, 3, 6, 10, 15, 20, 25], 4, always=[0, 6, 25]))
def test_a_writer_that_died_while_growing_is_taken_up(last: int, begun: Clinic, monkeypatch) -> None:
    """Axes are grown one array after another: between any two, committed cases must read as before."""
    tissue = {"lesion": LESION, "tissue": LabelSchema.parse("1=CSF,2=grey", "tissue")}
    before = begun.whole("P1")
    grown = begun.case("P2", 2, ("T1", "T2"), shape=(40, 16, 12))
    with monkeypatch.context() as patch:
        real, calls = DurableStore._write, []

        def dies(self: DurableStore, key: str, value) -> None:
            real(self, key, value)
            if is_of_array(key):
                if len(calls) == last:
                    raise KeyboardInterrupt
                calls.append(key)

        patch.setattr(DurableStore, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            begun.ingest(begun.case("P1", 1), grown, schemas=tissue)
    image, codes = begun.whole("P1")
    np.testing.assert_array_equal(image[:1], before[0])
    np.testing.assert_array_equal(codes[:1], before[1])
    database = begun.store["db"]
    assert database.modalities in (("T1",), ("T1", "T2"))
    assert len(image) == len(database.modalities)
    assert list(database.schemas) in (["lesion"], ["lesion", "tissue"])
    assert len(codes) == len(database.schemas) == len(database["P1"].annotated)
    assert [case.name for case in begun.store.cases] == ["P1"]
    assert begun.ingest(begun.case("P1", 1), grown, schemas=tissue).written == ("P2",)
    assert begun.store["db"]["P2"].modalities == ("T1", "T2")
    assert begun.store.dataset("db").sizes["modality"] == 2


def test_a_reader_at_work_sees_whole_cases_only(begun: Clinic, monkeypatch) -> None:
    """A case that is replaced while the columns are read: the old row or the new one, never a mixture."""
    group = open_root(begun.url, "r")["db"]
    real, armed = columns.read_arrays, [True]

    def slowly(arrays, names):
        values = real(arrays, names)
        if armed.pop():
            armed.append(False)
            begun.ingest(begun.case("P1", 2), options=IngestOptions(spacing_mm=(2.0,) * 3, replace=True))
        armed.append(False)
        return values

    monkeypatch.setattr(columns, "read_arrays", slowly)
    (case,) = Database(group, "db").cases
    assert (case.name, case.row) == ("P1", 1)


@pytest.mark.parametrize("name", ["a/b", "a\\b", "my.data", ".hidden", "..", "", " a", "__a", "a\nb"])
def test_databases_that_no_folder_can_hold(name: str, clinic: Clinic) -> None:
    with pytest.raises(UsageError, match="a database cannot be called"):
        clinic.ingest(clinic.case("P1", 1), name=name)
    assert not Path(clinic.url).exists()


@pytest.mark.slow
def test_names_of_all_languages(clinic: Clinic) -> None:
    names = ("patient 07", "Ünïcødé", "患者-1", "P+1 (b)")
    clinic.ingest(*[clinic.case(name, at) for at, name in enumerate(names)], name="Hôpital 2_b-c")
    assert tuple(case.name for case in clinic.store["Hôpital 2_b-c"].cases) == names
    assert clinic.store.dataset("Hôpital 2_b-c").case.values.tolist() == list(names)


def test_case_names_that_cannot_be(clinic: Clinic) -> None:
    bad = ("", "a/b", "..", " P", "P\n", "P\udcff", "twice")
    report = clinic.ingest(*[clinic.case(name, 1) for name in (*bad, "twice", "good")])
    assert (report.written, set(report.failed)) == (("good",), set(bad))
    assert {f.code for f in report.findings if f.severity == "error"} == {"BAD_NAME"}


@pytest.mark.parametrize("column", ["status", "modality", "row", "i", "image", "a/b", ".x", ""])
def test_participants_columns_that_clash(column: str, clinic: Clinic) -> None:
    with pytest.raises(UsageError, match="a participants' column cannot be called"):
        clinic.ingest(clinic.case("P1", 1, participant={column: 1.0}))


@pytest.mark.slow
def test_participants_columns(clinic: Clinic) -> None:
    clinic.ingest(clinic.case("P1", 1, participant={"age at scan": float("nan"), "sex": "F", "empty": ""}))
    clinic.ingest(clinic.case("P2", 2, participant={"age at scan": 61.0, "sex": "M", "empty": 3.0}))
    first, second = clinic.store.cases
    assert first.participant["sex"] == "F"
    assert np.isnan(first.participant["age at scan"])
    assert second.participant == {"age at scan": 61.0, "sex": "M", "empty": 3.0}
    report = clinic.ingest(clinic.case("P3", 3, participant={"age at scan": "old"}))
    assert "column 'age at scan' holds numbers in the store, but a new value is 'old'" in report.findings[-1].message
    assert report.failed == ("P3",)
    assert clinic.store.dataset("db").sizes["case"] == 2


@pytest.mark.slow
def test_a_typo_in_a_column_can_be_mended(clinic: Clinic) -> None:
    """One text makes a column text; then it stays so, and the numbers of the corrected table go in as texts."""
    clinic.ingest(clinic.case("P1", 1, participant={"age": "4o"}), clinic.case("P2", 2, participant={"age": "50"}))
    mended = [clinic.case("P1", 1, participant={"age": 40.0}), clinic.case("P2", 2, participant={"age": 50.0})]
    report = clinic.ingest(*mended)
    assert (report.skipped, report.described, report.failed) == (("P1", "P2"), ("P1",), ())
    assert [case.participant["age"] for case in clinic.store.cases] == ["40", "50"]
    assert clinic.ingest(*mended).described == ()


def test_a_folder_of_other_things_is_no_store(clinic: Clinic) -> None:
    Path(clinic.url).mkdir()
    (Path(clinic.url) / "thesis.doc").touch()
    (Path(clinic.url) / "film.partial").touch()
    with pytest.raises(StoreError, match="is not a Zarr v3 store"):
        clinic.ingest(clinic.case("P1", 1))
    assert {path.name for path in Path(clinic.url).iterdir()} == {"thesis.doc", "film.partial"}
    shutil.rmtree(clinic.url)
    Path(clinic.url).touch()
    with pytest.raises(UsageError, match=r"brain\.zarr is a file, but must be a folder"):
        clinic.ingest(clinic.case("P1", 1))


def test_a_store_of_another_format_is_refused(begun: Clinic) -> None:
    zarr.open_group(begun.url, mode="r+").attrs["multiseg"] = {"format": 99, "grid_mm": [2.0, 2.0, 2.0]}
    for act in (lambda: begun.store, lambda: begun.ingest(begun.case("P2", 2))):
        with pytest.raises(StoreError, match="has store format 99; this multiseg reads format 3"):
            act()


def test_what_zarr_and_desktops_leave_behind_does_not_matter(begun: Clinic) -> None:
    left = [Path(begun.url, *parts) for parts in ((".DS_Store",), ("db", "zarr.0123.partial"), ("x.partial",))]
    for path in left:
        path.write_bytes(b"x")
    assert [case.name for case in begun.store.cases] == ["P1"]
    begun.ingest(begun.case("P2", 2))
    assert [path.exists() for path in left] == [True, False, False]


def test_a_larger_store_still_commits_with_one_file(begun: Clinic) -> None:
    """Replacing a case changes two rows of `status`: both must lie in one chunk however many cases there are."""
    status = zarr.open_group(begun.url, mode="r")["db/status"]
    assert status.chunks == (schema.STATUS_ROWS,)
    assert schema.STATUS_ROWS > 100 * schema.ROWS
