"""One damaged file is a finding of its case, with its name; the other cases go in, and nobody sees a traceback."""

import gzip
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.errors import DataError, ResourceError, SourceError, UsageError
from multiseg.store.border import one_case, one_file
from multiseg.store.cases import CaseFiles
from multiseg.store.findings import Finding
from multiseg.store.formats import mgh, nifti, read_volume
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.ingest.dry_run import check_source, forecast
from multiseg.store.ingest.estimate import estimate
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.ingest.parallel import Workers
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.reader import open_store
from multiseg.store.sources.source_types import DatabaseFiles

SHAPE, AFFINE = (20, 22, 18), np.diag([8.0, 8.0, 8.0, 1.0])
OPTIONS = IngestOptions(spacing_mm=(8.0, 8.0, 8.0))
Damage = Callable[[bytes], bytes]


def head(seed: int) -> np.ndarray:
    voxels = np.zeros(SHAPE, np.float32)
    voxels[3:-3, 3:-3, 3:-3] = np.random.default_rng(seed).integers(200, 900, tuple(n - 6 for n in SHAPE))
    return voxels


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def cases_of(root: Path, damages: Mapping[str, Damage], suffix: str = ".nii") -> DatabaseFiles:
    """A database of damaged cases, and a good one, "zgood", that comes last."""
    cases = []
    for seed, (case, damage) in enumerate({**damages, "zgood": lambda data: data}.items()):
        (root / case).mkdir(parents=True)
        path = root / case / "T1.nii"
        write_nifti(path, head(seed), AFFINE)
        data = damage(path.read_bytes())
        path.unlink()
        path = path.with_suffix(suffix)
        path.write_bytes(gzip.compress(data, 1) if suffix.endswith("gz") else data)
        cases.append(CaseFiles(case, {"T1": path}))
    return DatabaseFiles("db", "", tuple(cases), {})


def errors_in(findings: Iterable[Finding]) -> dict[str, tuple[str, str]]:
    """Code and file of every error, by case."""
    return {one.case: (one.code, one.file) for one in findings if one.severity == "error"}


# Where the header has them: dim 40, datatype 70, pixdim 76, vox_offset 108, codes 252, qoffset 268, srow 280.
HEADERS: dict[str, tuple[Damage, str]] = {
    "sform and qform of 1e30": (
        lambda data: put(put(data, 252, b"\0\0\1\0"), 280, floats(1e30, 1e30, 1e30, 0, 1e30, 1e30)),
        "BAD_AFFINE",
    ),
    "an offset of 1e30 mm": (lambda data: put(put(data, 252, b"\0\0\1\0"), 292, floats(1e30)), "BAD_AFFINE"),
    "voxels of 900 mm": (
        lambda data: put(put(data, 252, b"\0\0\1\0"), 280, floats(900, 0, 0, 0, 0, 900)),
        "BAD_AFFINE",
    ),
    "an affine that is no number": (
        lambda data: put(put(data, 252, b"\0\0\1\0"), 280, floats(float("nan"))),
        "BAD_AFFINE",
    ),
    "infinite voxels": (lambda data: put(data, 80, floats(float("inf"))), "BAD_AFFINE"),
    "a negative size": (lambda data: put(data, 42, b"\xff\xff"), "NOT_3D"),
    "a huge size": (lambda data: put(data, 42, b"\xff\x7f\xff\x7f\xff\x7f"), "DAMAGED_FILE"),
    "a size too small by one": (lambda data: put(data, 44, b"\x15\0"), "DAMAGED_FILE"),
    "a type of half the size": (lambda data: put(data, 70, b"\4\0\x10\0"), "DAMAGED_FILE"),
    "no such type": (lambda data: put(data, 70, b"\x7b\0"), "DAMAGED_FILE"),
    "voxels that begin two bytes early": (lambda data: put(data, 108, floats(350)), "DAMAGED_FILE"),
    "voxels that begin nowhere": (lambda data: put(data, 108, floats(float("inf"))), "DAMAGED_FILE"),
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_bad_headers_are_their_own_cases_findings(suffix: str, tmp_path: Path) -> None:
    files = cases_of(tmp_path / "in", {name: damage for name, (damage, _) in HEADERS.items()}, suffix)
    expected = {name: (code, str(tmp_path / "in" / name / f"T1{suffix}")) for name, (_, code) in HEADERS.items()}
    (report,) = ingest([files], str(tmp_path / "s.zarr"), OPTIONS)
    assert report.written == ("zgood",)
    assert sorted(report.failed) == sorted(HEADERS)
    assert errors_in(report.findings) == expected
    assert errors_in(check_source(files, OPTIONS).findings) == expected
    assert errors_in(forecast(files, str(tmp_path / "t.zarr"), OPTIONS).findings) == expected


@pytest.mark.slow
def test_an_affine_of_1e30_beside_a_good_qform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sform says nothing that could be, so the qform is used, with a word; no verb ends."""
    root = tmp_path / "in"
    cases_of(root, {"bad": lambda data: put(put(data, 252, b"\1\0\1\0"), 280, floats(1e30, 1e30, 1e30, 0, 1e30))})
    url = str(tmp_path / "s.zarr")
    how = ["--spacing", "8", "--allow-unlabelled", "--json"]
    for verb in (
        ["ingest", str(root), "--store", url, "--dry-run"],
        ["ingest", str(root), "--store", url],
        ["verify", str(root)],
    ):
        code = run([*verb, *how])
        answer = checked(capsys.readouterr().out, verb[0])
        findings = answer["findings"] if verb[0] == "verify" else answer[0]["findings"]
        assert code == 0
        if "--dry-run" not in verb:
            assert [f["case"] for f in findings if f["code"] == "BAD_SFORM"] == ["bad"]
    one, two = open_store(url).cases
    assert (one.name, two.name) == ("bad", "zgood")
    np.testing.assert_allclose(np.diag(one.grid.affine), [8, 8, 8, 1])


UNFORESEEN = [
    TypeError("expected str instance, NoneType found"), ValueError("bad"), OverflowError("too large"),
    zlib.error("incorrect data check"), struct.error("unpack requires 4 bytes"), RecursionError("too deep"),
    KeyError("srow"), IndexError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    FloatingPointError("x"), OSError(5, "Input/output error"), MemoryError("8 TiB"),
]  # fmt: skip


def _break(monkeypatch: pytest.MonkeyPatch, errors: Mapping[str, BaseException], name: str = "read_nifti") -> None:
    """Let a reader trip over cases' files."""
    whole = getattr(nifti, name)

    def read(path: Path, *arguments: object) -> object:
        if path.parent.name in errors:
            raise errors[path.parent.name]
        return whole(path, *arguments)

    monkeypatch.setattr(read_volume, name, read)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nifti_geometry", "read_nifti"])
def test_what_nobody_foresaw_is_a_finding_with_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {type(error).__name__: error for error in UNFORESEEN}
    files = cases_of(tmp_path / "in", dict.fromkeys(errors, lambda data: data))
    _break(monkeypatch, errors, name)
    (report,) = ingest([files], str(tmp_path / "s.zarr"), OPTIONS)
    assert report.written == ("zgood",)
    codes = {error: "OUT_OF_MEMORY" if error == "MemoryError" else "UNREADABLE" for error in errors}
    expected = {error: (code, str(tmp_path / "in" / error / "T1.nii")) for error, code in codes.items()}
    assert errors_in(report.findings) == expected
    assert errors_in(check_source(files, OPTIONS).findings) == expected
    for found in report.findings:
        if found.code == "UNREADABLE":
            assert f"({found.case} in test_store_border.py:" in found.message
            assert str(errors[found.case])[:20] in found.message
    if name == "nifti_geometry":
        assert errors_in(forecast(files, str(tmp_path / "t.zarr"), OPTIONS).findings) == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ResourceError("disk"), UsageError("what"), SystemExit(3)])
def test_what_is_no_files_fault_passes_through(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)), one_case("P1", ()), one_file(Path("x.nii")):
        raise error


def test_the_border_keeps_what_was_meant_and_names_what_was_not() -> None:
    with pytest.raises(DataError, match=r"^mine$") as kept, one_file(Path("x.nii")):
        raise DataError("mine", code="MINE", file="y.nii")
    assert (kept.value.code, kept.value.file) == ("MINE", "y.nii")
    with pytest.raises(SourceError, match=r"^cannot read case 'P1' .ZeroDivisionError in ") as case:  # noqa: SIM117
        with one_case("P1", (Path("/d/a/T1.nii"), Path("/d/b/T2.nii"))):
            raise ZeroDivisionError
    assert case.value.file == "/d"
    with pytest.raises(ResourceError), one_file(Path("x.nii")):
        raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (("F.nii", "/d/T1.nii"), "/"),  # one relative, one absolute: nothing in common but the root
        (("a/F.nii", "b/T1.nii"), "{here}"),
        (("a/F.nii", "{here}/a/T1.nii"), "{here}/a"),
        ((), "."),
    ],
)
def test_a_folder_is_named_for_any_set_of_paths(
    paths: tuple[str, ...], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = tuple(Path(path.format(here=tmp_path)) for path in paths)
    with pytest.raises(SourceError) as case, one_case("P1", files):
        raise ZeroDivisionError
    assert case.value.file == folder.format(here=tmp_path)
    with one_case("P1", files):
        pass


@pytest.mark.slow
def test_the_files_of_a_case_that_is_in_are_looked_at_again(tmp_path: Path) -> None:
    """Whatever hashing them raises: the case counts as changed."""
    files = cases_of(tmp_path / "in", {"bad": lambda data: data})
    ingest([files], str(tmp_path / "s.zarr"), OPTIONS)
    text = b"ObjectType = Image\nNDims = 3\nElementDataFile = " + b"y" * 5000 + b"\n"
    (tmp_path / "in" / "bad" / "T1.nii").write_bytes(text)
    (report,) = ingest([files], str(tmp_path / "s.zarr"), OPTIONS)
    assert (report.skipped, report.failed) == (("zgood",), ("bad",))


@pytest.mark.slow
def test_with_several_workers(tmp_path: Path) -> None:
    files = cases_of(tmp_path / "in", {"bad": HEADERS["an offset of 1e30 mm"][0]})
    options = IngestOptions((8.0, 8.0, 8.0), workers=Workers(2, "threads"))
    (report,) = ingest([files], str(tmp_path / "s.zarr"), options)
    assert (report.written, report.failed) == (("zgood",), ("bad",))


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["nii", "nii.gz", "mgh", "mgz"])
def test_sixty_damages_are_read_rightly_or_found(format_name: str, tmp_path: Path) -> None:
    """One bit of the header or one of its fields: never anything but a prepared case or an error with its file."""
    path = tmp_path / f"T1.{format_name}"
    kind = nib.MGHImage if format_name.startswith("mg") else nib.Nifti1Image
    nib.save(kind(head(0), AFFINE.astype(np.float32)), path)
    is_packed = format_name in ("nii.gz", "mgz")
    whole = gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()
    case, recipe = CaseFiles("bad", {"T1": path}), Recipe((16.0, 16.0, 16.0))
    right = prepare_case(case, {}, recipe)
    rng = np.random.default_rng(5)
    order = ">" if kind is nib.MGHImage else "<"
    odd = [struct.pack(f"{order}f", value) for value in (1e30, -1e30, np.nan, np.inf, 0, -4)]
    odd += [struct.pack(f"{order}h", value) for value in (-1, 0, 32767)] + [struct.pack(f"{order}i", 2**31 - 1)]
    num_right = num_found = 0
    for number in range(60):
        at = int(rng.integers(0, 340 if order == "<" else 88))
        new = odd[rng.integers(len(odd))] if number % 2 else bytes([whole[at] ^ 1 << int(rng.integers(8))])
        data = put(whole, at, new)
        path.write_bytes(gzip.compress(data, 1) if is_packed else data)
        try:
            if estimate(case, recipe).memory_bytes > 1e9:
                continue
            prepared = prepare_case(case, {}, recipe)
        except DataError as error:
            assert error.file == str(path)  # noqa: PT017
            num_found += 1
        else:
            num_right += bool(prepared.images.shape == right.images.shape)
    assert num_found > 4
    assert num_right > 10


def test_the_readers_of_both_formats_are_inside_the_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nib.save(nib.MGHImage(head(0), AFFINE.astype(np.float32)), tmp_path / "T1.mgh")

    def fail(*arguments: object) -> None:
        raise TypeError("x")

    monkeypatch.setattr(mgh, "is_mapping", fail)
    for read in (read_volume.read_volume, read_volume.read_geometry):
        with pytest.raises(SourceError, match=r"TypeError in test_store_border\.py") as caught:
            read(tmp_path / "T1.mgh")
        assert caught.value.code == "UNREADABLE"
