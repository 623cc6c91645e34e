"""`multiseg verify`: every fault that somebody makes by hand is found, with its code and its place."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from json_documents import checked
from sweeps import sample

import multiseg
from multiseg.cli.app import run
from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.checks.case import _has_neighbours
from multiseg.store.checks.chunks import decoded_blocks
from multiseg.store.checks.fault_collector import Faults
from multiseg.store.checks.verification import verify_store
from multiseg.store.durable import FolderStore
from multiseg.store.findings import Finding, Severity
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest


@pytest.fixture
def whole_copy(store_url: str, tmp_path: Path) -> Path:
    """A store to be spoilt, of four databases."""
    shutil.copytree(store_url, tmp_path / "brain.zarr")
    return tmp_path / "brain.zarr"


@pytest.fixture
def copy(whole_copy: Path) -> Path:
    """Two databases of it; alder has 4 cases with PD FLAIR T1 T2, the annotations lesion and tissue."""
    shutil.rmtree(whole_copy / "cedar")
    shutil.rmtree(whole_copy / "dogwood")
    edit(whole_copy / "zarr.json", lambda data: data["attributes"]["multiseg"].update(databases=["alder", "birch"]))
    return whole_copy


@pytest.fixture
def alder(copy: Path) -> Path:
    """Alder alone, which is checked in half the time."""
    shutil.rmtree(copy / "birch")
    edit(copy / "zarr.json", lambda data: data["attributes"]["multiseg"].update(databases=["alder"]))
    return copy


def graded(folder: Path) -> list[tuple[Severity, str, str, str, str]]:
    """Severity, code, database, case and file of each finding.

    What is changed by hand is never as recorded, nor as the second copy says; test_store_missing.py is about that.
    """
    findings = verify_store(str(folder))
    assert all(finding.message.rstrip().endswith(".") for finding in findings)
    of_copies = ("NOT_AS_RECORDED", "COPIES_DIFFER")
    return [(f.severity, f.code, f.database, f.case, f.file) for f in findings if f.code not in of_copies]


def found(folder: Path) -> list[tuple[str, str, str, str]]:
    """Code, database, case and file of each error."""
    return [(code, *place) for severity, code, *place in graded(folder) if severity is Severity.ERROR]


def files_of(folder: Path, array: str, row: str = "") -> list[Path]:
    return sorted(path for path in (folder / array / "c" / row).rglob("*") if path.is_file())


def opened(folder: Path) -> zarr.Group:
    return zarr.open_group(folder, mode="r+", zarr_format=3, use_consolidated=False)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# --- a sound store, and what the command says ---


def test_a_sound_store_has_no_findings(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int, str]] = []
    assert verify_store(store_url, lambda done, total, case: seen.append((done, total, case)), workers=2) == []
    assert [done for done, _, _ in seen] == list(range(1, 17))
    assert {(total, case[:5]) for _, total, case in seen} == {
        (16, name) for name in ("alder", "birch", "cedar", "dogwo")
    }
    assert run(["verify", store_url]) == 0
    assert "no faults found" in capsys.readouterr().err
    assert run(["verify", store_url, "--json"]) == 0
    assert checked(capsys.readouterr().out, "verify")["findings"] == []


def test_a_damaged_store_from_the_command_line(alder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (alder / "alder/image/c/1/0/0/0/0").write_bytes(b"")
    (alder / "alder/image/c/1/0/0/0/0.abc.partial").write_bytes(b"half")
    assert run(["verify", str(alder), "--json", "--workers", "1"]) == 3
    listed = checked(capsys.readouterr().out, "verify")["findings"]
    assert [(f["severity"], f["code"], f["case"]) for f in listed] == [
        ("note", "LEFT_OVER", ""),
        ("error", "DAMAGED_CHUNK", "A002"),
    ]
    assert run(["verify", str(alder)]) == 3
    shown = capsys.readouterr()
    assert "DAMAGED_CHUNK" in shown.out
    assert "alder/image/c/1/0/0/0/0" in shown.out
    assert "1 error, 1 note" in shown.err


def test_notes_alone_are_no_error(alder: Path) -> None:
    (alder / "alder/image/c/1/0/0/0/0.abc.partial").write_bytes(b"half")
    assert run(["verify", str(alder)]) == 0


def test_where_there_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(tmp_path / "none.zarr")]) == 2
    assert "there is no store or source at" in capsys.readouterr().err
    with pytest.raises(StoreError, match="there is no store at"):
        verify_store(str(tmp_path / "none.zarr"))


# --- bytes ---


@pytest.mark.slow
def test_any_byte_of_any_voxel_file_that_flips_is_noticed(whole_copy: Path) -> None:
    for seed in sample(range(5), 2):
        flipped: dict[Path, bytes] = {}
        rng = np.random.default_rng(seed)
        for database in ("alder", "birch", "cedar", "dogwood"):
            for path in [path for name in ("image", "label") for path in files_of(whole_copy, f"{database}/{name}")]:
                flipped[path] = path.read_bytes()
                data = bytearray(flipped[path])
                data[rng.integers(len(data))] ^= 1 << rng.integers(8)
                path.write_bytes(bytes(data))
        noticed = found(whole_copy)
        assert {code for code, *_ in noticed} == {"DAMAGED_CHUNK"}
        assert sorted(file for *_, file in noticed) == sorted(str(path.relative_to(whole_copy)) for path in flipped)
        assert len(flipped) > 28
        assert all(file.startswith(f"{database}/") for _, database, _, file in noticed)
        for path, data in flipped.items():
            path.write_bytes(data)


@pytest.mark.parametrize("keep", [0, 3, 20, 0.5, -1])
def test_a_truncated_file(alder: Path, keep: float) -> None:
    expected = []
    for row, array in enumerate(("image", "label", "foreground")):
        path = files_of(alder, f"alder/{array}", row=str(row))[0]
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
        expected.append(("DAMAGED_CHUNK", "alder", f"A00{row + 1}", str(path.relative_to(alder))))
    assert found(alder) == expected


@pytest.mark.slow
def test_the_message_says_which_part_of_a_shard(tmp_path: Path) -> None:
    """Of a case of several chunks, one flipped byte costs one of them."""
    from multiseg.phantoms.hospitals import write_hospitals
    from multiseg.store.ingest.ingest_plan import IngestOptions
    from multiseg.store.ingest.ingestion import ingest
    from multiseg.store.sources.manifest import find_manifest

    write_hospitals(tmp_path / "source", num_cases=1, coarseness=2.0)
    url = tmp_path / "fine.zarr"
    cedar = [files for files in find_manifest(tmp_path / "source" / "manifest.toml") if files.name == "cedar"]
    ingest(cedar, str(url), IngestOptions(spacing_mm=(3.0,) * 3))
    assert verify_store(str(url)) == []
    (path,) = files_of(url, "cedar/image")
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(bytes(data))
    (finding,) = verify_store(str(url))
    assert finding.message.startswith("1 of 8 chunks, the first of them at channel 0, i 0, j 0, k 0, cannot be decoded")


def test_an_empty_file_that_zarr_takes_for_none(tmp_path: Path) -> None:
    """Where a read wants all of a shard, zarr gives zeros for an empty file; the newest zarr refuses it."""
    group = zarr.create_group(tmp_path / "x.zarr", zarr_format=3)
    array = group.create_array("a", shape=(1, 1, 8, 8, 8), chunks=(1, 1, 4, 4, 4), shards=(1, 1, 8, 8, 8), dtype="u1")
    array[:] = 1
    (path,) = files_of(tmp_path, "x.zarr/a")
    path.write_bytes(b"")
    with suppress(ValueError):
        assert not array[:].any()
    faults = Faults()
    assert [block.values for block in decoded_blocks(array, faults)] == [None]
    assert [(finding.code, finding.file) for finding in faults.found] == [("DAMAGED_CHUNK", "a/c/0/0/0/0/0")]


@pytest.mark.parametrize("names", [("subject", "affine", "sources", "foreground_count"), ("status",)])
def test_a_damaged_coordinate(alder: Path, names: tuple[str, ...]) -> None:
    paths = [files_of(alder, f"alder/{name}")[0] for name in names]
    for path in paths:
        path.write_bytes(path.read_bytes()[:9])
    noticed = found(alder)
    for path in paths:
        assert ("DAMAGED_CHUNK", "alder", "", str(path.relative_to(alder))) in noticed


def test_a_missing_shard(alder: Path) -> None:
    paths = [files_of(alder, f"alder/{array}")[row] for row, array in ((1, "image"), (2, "label"))]
    for path in paths:
        path.unlink()
    noticed = found(alder)
    for path, case in zip(paths, ("A002", "A003"), strict=True):
        files = {file for code, _, of, file in noticed if (code, of) == ("MISSING_FILE", case)}
        assert files == {str(path.relative_to(alder))}
    assert {case for _, _, case, _ in noticed} == {"A002", "A003"}


def test_one_missing_shard_of_several(tmp_path: Path) -> None:
    """A case of more than 256 voxels lies in two files; the rest of it looks like a brain still."""
    url = long_case(tmp_path)
    assert {finding.code for finding in verify_store(str(url))} == {"VOXEL_SIZE"}  # 300 x 6 x 6 mm are no head
    assert len(files_of(url, "long/image")) == 2
    gone = url / "long/image/c/0/0/1/0/0"
    gone.unlink()
    assert found(url) == [("MISSING_FILE", "long", "P", "long/image/c/0/0/1/0/0")]


def long_case(folder: Path) -> Path:
    import nibabel as nib

    image = np.random.default_rng(0).normal(100, 10, (300, 6, 6)).astype(np.float32)
    image[256:] += 30
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "P_T1.nii.gz")
    url = folder / "long.zarr"
    pattern = ["--pattern", "{case}_{modality}.nii.gz", "--allow-unlabelled"]
    assert run(["ingest", str(folder), "--database", "long", "--store", str(url), *pattern]) == 0
    return url


@pytest.mark.parametrize(
    ("voxel", "is_beside"),
    [
        ((1, 3, 3), True),
        ((6, 3, 3), True),
        ((3, 1, 5), True),
        ((0, 3, 3), False),
        ((7, 3, 3), False),
        ((1, 1, 3), False),
    ],
)
def test_a_brain_beside_a_missing_part(voxel: tuple[int, int, int], is_beside: bool) -> None:
    region = (slice(2, 6), slice(2, 6), slice(2, 6))
    volume = np.zeros((2, 8, 8, 6), np.float32)  # which the part ends with, along k
    assert not _has_neighbours(volume, region)
    volume[1, *voxel] = 1
    assert _has_neighbours(volume, region) == is_beside


@pytest.mark.slow
def test_stored_voxels_that_are_no_brain(tmp_path: Path) -> None:
    """What ingest warned of is still seen in the store: a head, a scan that was cut, a voxel size that was lost."""
    import nibabel as nib

    at = np.moveaxis(np.indices((56, 64, 56)), 0, -1) - np.array([27.5, 31.5, 27.5])
    brain = np.linalg.norm(at / np.array([17, 21, 16]), axis=-1) < 1
    noise = np.random.default_rng(0).normal(300, 60, brain.shape)
    cases = {
        "brain": (brain, 4.0), "head": (np.linalg.norm(at / np.array([22, 27, 21]), axis=-1) < 1, 4.0),
        "lost": (brain, 1.0), "slab": (brain[:, :, 20:40], 4.0),
    }  # fmt: skip
    for name, (where, mm) in cases.items():
        image = np.where(where, noise[:, :, : where.shape[2]], 0).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([mm, mm, mm, 1.0])), tmp_path / f"{name}_T1.nii.gz")
    url = tmp_path / "brain.zarr"
    pattern = ["--pattern", "{case}_{modality}.nii.gz", "--allow-unlabelled", "--spacing", "4"]
    assert run(["ingest", str(tmp_path), "--database", "ours", "--store", str(url), *pattern]) == 0
    expected = [("BRAIN_SIZE", "head"), ("BRAIN_CUT", "slab"), ("VOXEL_SIZE", "lost")]
    findings = verify_store(str(url))
    assert sorted((finding.code, finding.case) for finding in findings) == sorted(expected)
    assert {finding.severity for finding in findings} == {Severity.WARNING}
    texts = {finding.case: finding.message for finding in findings}
    assert texts["head"].startswith("T1: the brain has 3.3 l and measures")
    assert "with voxels of 1 x 1 x 1 mm by the header. The voxel size seems lost" in texts["lost"]
    assert run(["verify", str(url)]) == 0


# --- metadata ---


@pytest.mark.slow
def test_a_missing_or_broken_array(whole_copy: Path) -> None:
    shutil.rmtree(whole_copy / "alder/affine")
    (whole_copy / "birch/image/zarr.json").write_text("{")
    (whole_copy / "cedar/label/zarr.json").write_text("[]")
    edit(whole_copy / "dogwood/split/zarr.json", lambda data: data.update(shape=[10**12]))
    assert found(whole_copy) == [
        ("MISSING_ARRAY", "alder", "", "alder/affine/zarr.json"),
        ("BAD_METADATA", "birch", "", "birch/image/zarr.json"),
        ("BAD_METADATA", "cedar", "", "cedar/label/zarr.json"),
        ("BAD_SCHEMA", "dogwood", "", "dogwood/split/zarr.json"),
    ]


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("image", {"dimension_names": ["case", "modality", "k", "j", "i"]}),
        ("image", {"dimension_names": None}),
        ("image", {"data_type": "int16"}),
        ("label", {"fill_value": 255}),
        ("available", {"data_type": "uint8", "fill_value": 0}),
        ("intensity_mean", {"fill_value": 0.0}),
        ("native_header", {"shape": [4, 348]}),
        ("extent", {"shape": [4, 4]}),
        ("image", {"shape": [4, 4, 100_000, 100_000, 100_000]}),
    ],
)
def test_an_array_of_another_shape_or_type(alder: Path, array: str, change: dict[str, Any]) -> None:
    edit(alder / "alder" / array / "zarr.json", lambda data: data.update(change))
    assert ("BAD_SCHEMA", "alder", "", f"alder/{array}/zarr.json") in found(alder)


def test_voxels_without_checksums(alder: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        codecs = data["codecs"][0]["configuration"]["codecs"]
        codecs[:] = [codec for codec in codecs if codec["name"] != "crc32c"]

    edit(alder / "alder/image/zarr.json", drop)
    assert found(alder) == [("BAD_SCHEMA", "alder", "", "alder/image/zarr.json")]


def test_axes_of_different_length(copy: Path) -> None:
    edit(copy / "alder/subject/zarr.json", lambda data: data.update(shape=[3]))
    edit(copy / "birch/subject/zarr.json", lambda data: data.update(shape=[5]))
    noticed = graded(copy)
    assert (Severity.ERROR, "BAD_SHAPE", "alder", "", "alder/subject/zarr.json") in noticed
    assert (Severity.NOTE, "WRITER_DIED", "birch", "", "birch") in noticed


def test_an_array_that_is_none_of_ours(copy: Path) -> None:
    opened(copy)["alder"].create_array("mystery", shape=(4,), dtype="uint8")
    (copy / "birch" / ".DS_Store").write_bytes(b"")
    assert graded(copy) == [
        (Severity.WARNING, "UNKNOWN_ARRAY", "alder", "", "alder/mystery"),
        (Severity.WARNING, "UNKNOWN_ARRAY", "birch", "", "birch/.DS_Store"),
    ]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("pathology", None),
        ("codec", "gzip"),
        ("recipe", {"spacing_mm": [1, 1]}),
        ("recipe", {"spacing_mm": [5.0, 5.0, 5.0], "colour": "red"}),
        ("recipe", {"spacing_mm": [1.0, 1.0, 1.0]}),
        ("label_schemas", []),
        ("label_schemas", {"lesion": {"structures": []}}),
        ("participant_columns", 3),
    ],
)
def test_attributes_of_a_database(alder: Path, attribute: str, value: object) -> None:
    edit(alder / "alder/zarr.json", lambda data: data["attributes"].update({attribute: value}))
    assert ("BAD_ATTRIBUTES", "alder", "", "alder/zarr.json") in found(alder)


@pytest.mark.slow
def test_the_root(alder: Path) -> None:
    edit(alder / "zarr.json", lambda data: data["attributes"]["multiseg"].update(grid_mm=[1, "x", 1]))
    assert found(alder) == [("BAD_ROOT", "", "", "zarr.json")]
    edit(alder / "zarr.json", lambda data: data["attributes"]["multiseg"].update(grid_mm=[5.0] * 3, databases="alder"))
    assert found(alder) == [("BAD_ROOT", "", "", "zarr.json")]
    for text in ("{", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": {}}'):
        (alder / "zarr.json").write_text(text)
        (alder / "alder/image/c/0/0/0/0/0").write_bytes(b"?")
        assert found(alder) == [
            ("BAD_ROOT", "", "", "zarr.json"),
            ("DAMAGED_CHUNK", "alder", "A001", "alder/image/c/0/0/0/0/0"),
        ]
    (alder / "zarr.json").unlink()
    assert run(["verify", str(alder)]) == 3


def test_databases_that_are_not_there_or_not_named(whole_copy: Path) -> None:
    shutil.rmtree(whole_copy / "birch")
    shutil.rmtree(whole_copy / "cedar/label")
    edit(whole_copy / "zarr.json", lambda data: data["attributes"]["multiseg"]["databases"].remove("cedar"))
    edit(whole_copy / "zarr.json", lambda data: data["attributes"]["multiseg"]["databases"].remove("dogwood"))
    (whole_copy / "notes").mkdir()
    assert sorted(graded(whole_copy)) == sorted([
        (Severity.ERROR, "BAD_METADATA", "birch", "", "birch/zarr.json"),
        (Severity.WARNING, "NOT_NAMED", "dogwood", "", "dogwood/zarr.json"),
        (Severity.NOTE, "WRITER_DIED", "cedar", "", "cedar"),
        (Severity.NOTE, "UNKNOWN_FOLDER", "notes", "", "notes"),
    ])  # fmt: skip


# --- what is said of a case ---


WRONG_NUMBERS: list[tuple[str, Any, str, str]] = [
    ("subject", "", "NO_SUBJECT", "subject"),
    ("split", "dev", "BAD_SPLIT", "split"),
    ("extent", [0, 3, 3], "BAD_EXTENT", "extent"),
    ("extent", [400, 3, 3], "BAD_EXTENT", "extent"),
    ("affine", np.full((4, 4), np.nan), "BAD_AFFINE", "affine"),
    ("affine", np.diag([5.0, 5.0, 5.0, 2.0]), "BAD_AFFINE", "affine"),
    ("affine", np.diag([5.0, 5.0, 0.0, 1.0]), "BAD_AFFINE", "affine"),
    ("affine", np.diag([5.0, 5.0, 4.0, 1.0]), "BAD_AFFINE", "affine"),
    ("affine", np.diag([-5.0, 5.0, 5.0, 1.0]), "BAD_AFFINE", "affine"),
    ("affine", [[5, 1, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]], "BAD_AFFINE", "affine"),
    ("native_affine", np.zeros((4, 4)), "BAD_NATIVE", "native_affine"),
    ("native_shape", [0, 0, 0], "BAD_NATIVE", "native_shape"),
    ("native_header", np.full(schema.HEADER_BYTES, 7, np.uint8), "BAD_NATIVE", "native_header"),
    ("sources", "[{]", "BAD_SOURCES", "sources"),
    ("sources", "[3]", "BAD_SOURCES", "sources"),
    ("sources", "[]", "BAD_SOURCES", "sources"),
    ("source_sha256", "0" * 64, "WRONG_DIGEST", "source_sha256"),
    ("intensity_mean", [np.nan] * 4, "BAD_INTENSITY", "intensity_mean"),
    ("intensity_std", [0.0] * 4, "BAD_INTENSITY", "intensity_mean"),
    ("foreground_count", np.ones((2, 3), np.int64), "WRONG_COUNT", "foreground_count"),
    ("available", [True, False, True, True], "NOT_AVAILABLE", "image/c/{row}"),
    ("annotated", [True, False], "NOT_ANNOTATED", "label/c/{row}"),
    ("foreground", np.full((2, 3, 256, 3), -1), "WRONG_POINTS", "foreground/c/{row}"),
    ("foreground", np.full((2, 3, 256, 3), 0), "WRONG_POINTS", "foreground/c/{row}"),
]
"""An array, a wrong value in a row of it, and code and place of the finding."""


@pytest.mark.parametrize("first", range(0, len(WRONG_NUMBERS), 4))
def test_a_wrong_number_about_a_case(alder: Path, first: int) -> None:
    """Each in a case of its own."""
    numbers = list(enumerate(WRONG_NUMBERS[first : first + 4]))
    for row, (array, value, _code, _place) in numbers:
        opened(alder)[f"alder/{array}"].with_config({"write_empty_chunks": True})[row] = value
    noticed = found(alder)
    for row, (_array, _value, code, place) in numbers:
        assert (code, "alder", f"A00{row + 1}", f"alder/{place.format(row=row)}") in noticed
    of_cases = {(database, case) for _, database, case, _ in noticed if case}
    assert of_cases == {("alder", f"A00{row + 1}") for row, _ in numbers}


@pytest.mark.parametrize(
    ("array", "value", "code"),
    [("case", "", "BAD_NAME"), ("case", "A001", "DUPLICATE_CASE"), ("status", 7, "BAD_STATUS")],
)
def test_a_wrong_name_or_state_of_a_case(copy: Path, array: str, value: Any, code: str) -> None:
    opened(copy)[f"alder/{array}"].with_config({"write_empty_chunks": True})[1] = value
    noticed = found(copy)
    assert (code, "alder", "", f"alder/{array}") in noticed
    assert {database for _, database, _, _ in noticed} == {"alder"}


@pytest.mark.parametrize("at", [0, -2, 300])
def test_sampled_voxels_off_their_structure(alder: Path, at: int) -> None:
    group = opened(alder)["alder"]
    points = group["foreground"][1]
    group["foreground"][1] = np.where((points[..., :1] >= 0) & (np.arange(3) == 1), at, points)
    assert {code for code, *_ in found(alder)} == {"WRONG_POINTS"}


@pytest.mark.slow
def test_a_subject_in_two_splits(copy: Path) -> None:
    alder = opened(copy)["alder"]
    alder["subject"][:2] = np.array(["Ann", "Ann"], dtype=object)
    alder["split"][:2] = np.array(["train", "train"], dtype=object)
    assert found(copy) == []
    alder["split"][1] = "test"
    assert found(copy) == [("SUBJECT_IN_TWO_SPLITS", "alder", "", "alder/split")]


def test_a_scan_in_two_splits(copy: Path) -> None:
    root = opened(copy)
    root["alder/split"][0], root["birch/split"][3] = "train", "test"
    root["alder/content"][0, 1] = root["birch/content"][3, 2] = "same"
    (only,) = found(copy)
    assert only == ("SCAN_IN_TWO_SPLITS", "birch", "B004", "birch/split")


WRONG_VOXELS: list[tuple[str, tuple[Any, ...], float, str]] = [
    ("image", (2, 3, 3, 3), np.nan, "NOT_FINITE"),
    ("image", (2, 3, 3, 3), np.inf, "NOT_FINITE"),
    ("image", (2,), 0, "EMPTY_IMAGE"),
    ("image", (2, slice(0, 10)), 3, "NOT_NORMALISED"),
    ("image", (2, -1, 0, 0), 1, "OUTSIDE_EXTENT"),
    ("label", (0, -1, 0, 0), 1, "OUTSIDE_EXTENT"),
    ("label", (0, 3, 3, 3), 2, "LABEL_CODES"),
    ("label", (1, 3, 3, 3), 254, "LABEL_CODES"),
    ("label", (0, slice(2, 5)), 1, "WRONG_COUNT"),
]
"""An array, a place in a row of it, a wrong value there, and the code of the finding."""


@pytest.mark.slow
def test_a_wrong_voxel(alder: Path, tmp_path: Path) -> None:
    """Each in a case of its own."""
    group = opened(alder)["alder"]
    room = group["image"].shape[2]
    for name in ("image", "label"):  # room beyond every extent
        group[name].resize((*group[name].shape[:2], room + 1, *group[name].shape[3:]))
    assert found(alder) == []
    for first in range(0, len(WRONG_VOXELS), 4):
        url = shutil.copytree(alder, tmp_path / str(first))
        voxels = list(enumerate(WRONG_VOXELS[first : first + 4]))
        for row, (array, at, value, _code) in voxels:
            opened(url)[f"alder/{array}"][(row, *at)] = value
        noticed = found(url)
        for row, (array, _at, _value, code) in voxels:
            place = "foreground_count" if code == "WRONG_COUNT" else f"{array}/c/{row}"
            assert (code, "alder", f"A00{row + 1}", f"alder/{place}") in noticed
        assert {case for _, _, case, _ in noticed} == {f"A00{row + 1}" for row, _ in voxels}


def test_where_nobody_is_to_look_is_no_unknown_code(alder: Path) -> None:
    group = opened(alder)["alder"]
    codes = group["label"][1, 0]
    group["label"][1, 0] = np.where((codes == 0) & (group["label"][1, 1] != 0), 255, codes)
    assert found(alder) == []


# --- writers that died ---


@pytest.mark.slow
def test_a_refused_case_is_no_dead_writer(hospitals: Path, tmp_path: Path) -> None:
    """Its row lies between those of good cases, and the next case that is new takes it."""
    alder = find_manifest(hospitals / "manifest.toml")[0]
    shutil.copytree(hospitals, tmp_path / "in")
    damaged = replace(alder.cases[1], images={"T1": tmp_path / "in" / "nothing.nii.gz"})
    url, options = str(tmp_path / "s.zarr"), IngestOptions(spacing_mm=(5.0, 5.0, 5.0))
    cases = (alder.cases[0], damaged, alder.cases[2])
    (report,) = ingest([replace(alder, cases=cases)], url, options)
    assert (len(report.written), report.failed) == (2, (alder.cases[1].case,))
    assert verify_store(url) == []
    (report,) = ingest([replace(alder, cases=(cases[0], alder.cases[3], cases[2]))], url, options)
    assert report.written == (alder.cases[3].case,)
    assert [case.name for case in open_store(url).cases] == [alder.cases[number].case for number in (0, 3, 2)]
    assert verify_store(url) == []


@pytest.mark.slow
def test_rows_that_are_not_committed(alder: Path) -> None:
    group = opened(alder)["alder"]
    group["status"][3] = schema.PENDING
    pending = (Severity.NOTE, "PENDING_ROWS", "alder", "", "alder/status")
    assert graded(alder) == [pending]
    (alder / "alder/image/c/3/0/0/0/0").write_bytes(b"?")
    damaged = (Severity.WARNING, "DAMAGED_CHUNK", "alder", "A004", "alder/image/c/3/0/0/0/0")
    assert graded(alder) == [pending, damaged]
    group["status"][3] = schema.SUPERSEDED
    assert graded(alder) == [damaged]
    (alder / "alder/status/c/0").unlink()
    assert found(alder) == [
        ("MISSING_FILE", "alder", "", "alder/status/c/0"),
        ("STATUS_LOST", "alder", "", "alder/status"),
    ]


def test_a_file_that_nobody_may_read(alder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, get = "alder/image/c/0/0/0/0/0", FolderStore.get_sync

    def refused(store: FolderStore, name: str, **named: Any) -> Any:
        if name == key:
            raise PermissionError(13, "Permission denied")
        return get(store, name, **named)

    monkeypatch.setattr(FolderStore, "get_sync", refused)
    assert found(alder) == [("DAMAGED_CHUNK", "alder", "A001", key)]


def test_every_code_is_explained() -> None:
    home = Path(multiseg.__file__).parents[1]
    sources = [path.read_text() for path in (home / "multiseg/store/checks").glob("*.py")]
    sources.append((home / "multiseg/store/preparation/plausible.py").read_text())
    codes = {code for text in sources for code in re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', text)} - {"NO_STORE"}
    explained = set(
        re.findall(r"^\| `([A-Z_]+)`", (home / "docs/verify.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert codes == explained


# --- nothing brings it down ---


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_damaged_verify_goes_on(copy: Path, seed: int) -> None:
    """Bytes flipped, cut and emptied in metadata and coordinates: some cannot be told, none is a crash."""
    rng = np.random.default_rng(seed)
    paths = sorted(path for path in copy.rglob("*") if path.is_file() and not {"image", "label"} & set(path.parts[:-2]))
    paths += sorted(copy.rglob("zarr.json"))
    for path in rng.choice(np.array(paths, dtype=object), 12, replace=False):
        data = bytearray(path.read_bytes())
        match rng.integers(4):
            case 0:
                data = data[: rng.integers(len(data) + 1)]
            case 1:
                data = bytearray(rng.bytes(len(data)))
            case _:
                for _ in range(3):
                    data[rng.integers(len(data))] = (
                        rng.integers(32, 127) if path.suffix == ".json" else rng.integers(256)
                    )
        path.write_bytes(bytes(data))
    findings = verify_store(str(copy))
    assert all(isinstance(finding, Finding) for finding in findings)
    assert Severity.ERROR in {finding.severity for finding in findings}
