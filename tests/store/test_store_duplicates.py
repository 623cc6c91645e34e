"""The same scan, the same label and the same person in two places: told, and kept in one split."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.labels import LabelSchema
from multiseg.store.cases import CaseFiles
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import IngestReport, ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.source_types import DatabaseFiles

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (14, 16, 12)


class Clinic:
    """Little scans by seed, in any database of one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder / "brain.zarr")

    def case(self, name: str, seed: int, label_seed: int | None = None, **said) -> CaseFiles:
        image = np.zeros(SHAPE, dtype=np.float32)
        image[1:-1, 1:-1, 1:-1] = np.random.default_rng(seed).normal(100, 10, np.array(SHAPE) - 2)
        codes = np.zeros(SHAPE, dtype=np.uint8)
        marked = seed if label_seed is None else label_seed
        codes[3 : 5 + marked % 5, 4:7, 4 : 6 + marked // 5 % 4] = 1
        # Each file in an encoding of its own: what counts is what it holds.
        nib.save(nib.Nifti1Image(image, AFFINE), self.folder / f"{name}.nii")
        nib.save(nib.Nifti1Image(codes, AFFINE), self.folder / f"{name}_label.nii")
        return CaseFiles(
            name, {"T1": self.folder / f"{name}.nii"}, {"lesion": self.folder / f"{name}_label.nii"}, **said
        )

    def ingest(self, *databases: tuple[str, list[CaseFiles]], **options) -> dict[str, IngestReport]:
        schemas = {"lesion": LabelSchema.parse("1=lesion", "lesion")}
        files = [DatabaseFiles(name, "", tuple(cases), schemas) for name, cases in databases]
        done = ingest(files, self.url, IngestOptions((2.0, 2.0, 2.0), **options))
        return {report.database: report for report in done}

    def splits(self) -> dict[str, str]:
        return {f"{case.database}/{case.name}": case.split for case in open_store(self.url).cases}


def codes(report: IngestReport, case: str = "") -> list[str]:
    """The codes of findings, but for what is said of any phantom as small as these."""
    found = [finding.code for finding in report.findings if not case or finding.case == case]
    return [code for code in found if code != "VOXEL_SIZE"]


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def test_a_given_split_is_never_changed_whenever_it_was_given(clinic: Clinic) -> None:
    first = [clinic.case("a0", 0)]
    clinic.ingest(("A", first), split={"train": 1.0})
    clinic.ingest(("B", [clinic.case("b0", 50)]), given_splits={"b0": "test"})
    # A copy of b0 comes into the older database, whose own split would be train.
    done = clinic.ingest(("A", [*first, clinic.case("a9", 50)]), split={"train": 1.0})
    assert clinic.splits()["B/b0"] == clinic.splits()["A/a9"] == "test"
    assert codes(done["A"], "a9") == ["SPLIT_CHANGED"]
    assert codes(done["B"]) == ["DUPLICATE_SCAN", "DUPLICATE_LABEL"]
    clinic.ingest(("C", [clinic.case("c0", 70)]))
    assert clinic.splits()["B/b0"] == "test"


def test_two_given_splits_that_differ_are_an_error(clinic: Clinic) -> None:
    cases = [clinic.case("p", 1, 1, split="train"), clinic.case("q", 1, 2, split="test")]
    done = clinic.ingest(("A", cases))
    assert clinic.splits() == {"A/p": "train", "A/q": "test"}
    (finding,) = [finding for finding in done["A"].findings if finding.code == "SUBJECT_IN_TWO_SPLITS"]
    assert finding.severity == "error"


@pytest.mark.slow
def test_a_person_whose_visits_came_one_after_another_stays_in_one_split(clinic: Clinic) -> None:
    clinic.ingest(("A", [clinic.case("P0_s1", 1, subject="P0")]), split={"train": 1.0})
    done = clinic.ingest(("A", [clinic.case("P0_s2", 2, subject="P0")]), given_splits={"P0": "test"})
    assert clinic.splits() == {"A/P0_s1": "test", "A/P0_s2": "test"}
    assert codes(done["A"], "P0_s1") == ["SPLIT_CHANGED"]


@pytest.mark.slow
def test_drawn_splits_of_copies_go_to_where_a_model_may_have_learnt(clinic: Clinic) -> None:
    cases = [clinic.case(f"p{n}", n) for n in range(4)]
    copies = [clinic.case(f"q{n}", n, n + 7) for n in range(4)]
    clinic.ingest(("A", cases), ("B", copies), split={"train": 0.5, "test": 0.5}, seed=3)
    splits = clinic.splits()
    assert all(splits[f"A/p{n}"] == splits[f"B/q{n}"] for n in range(4))
    assert "train" in splits.values()
    assert clinic.ingest(("A", cases), split={"train": 0.5, "test": 0.5}, seed=3)["A"].described == ()


def test_another_patients_label_is_told(clinic: Clinic) -> None:
    done = clinic.ingest(("A", [clinic.case("p", 1), clinic.case("q", 2, label_seed=1), clinic.case("r", 3)]))
    assert codes(done["A"]) == ["DUPLICATE_LABEL"]
    assert [finding.case for finding in done["A"].findings if finding.code == "DUPLICATE_LABEL"] == ["q"]


@pytest.mark.slow
def test_cases_that_left_the_source_are_named(clinic: Clinic) -> None:
    both = [clinic.case("p", 1), clinic.case("q", 2)]
    clinic.ingest(("A", both))
    done = clinic.ingest(("A", both[:1]))
    assert codes(done["A"]) == ["NOT_IN_SOURCE"]
    assert set(clinic.splits()) == {"A/p", "A/q"}


@pytest.mark.slow
def test_a_case_is_written_again_on_demand(clinic: Clinic) -> None:
    cases = [clinic.case("p", 1), clinic.case("q", 2)]
    clinic.ingest(("A", cases), ("B", [replace(cases[0], case="z")]))
    done = clinic.ingest(("A", cases), ("B", []), redo=("A/q",))
    assert (done["A"].written, done["A"].skipped) == (("q",), ("p",))


@pytest.mark.slow
def test_a_split_file_names_the_cases_of_all_databases(clinic: Clinic) -> None:
    bad = clinic.case("bad", 3)
    (clinic.folder / "bad.nii").write_bytes(b"")
    given = {"p": "train", "q": "test", "bad": "val"}
    clinic.ingest(("A", [clinic.case("p", 1), bad]), ("B", [clinic.case("q", 2)]), given_splits=given)
    assert clinic.splits() == {"A/p": "train", "B/q": "test"}
