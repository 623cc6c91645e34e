"""DICOM folders: series put together, guessed aloud, refused with reasons, and nobody's name in the store."""

import json
import locale
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from json_documents import checked
from looking import look

from multiseg.cli.app import run
from multiseg.errors import SourceError, UnconfirmedError, UsageError
from multiseg.store.cases import Series, sha256_of
from multiseg.store.formats.dicom_series import Slice, restore_locale
from multiseg.store.formats.read_volume import read_geometry, read_volume
from multiseg.store.sources.dicom_scans import b_value_of, read_slices

MR, SEG, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
NAME = "SECRET^PATIENT"
CONFIRMED = {"yes": True, "allow_unlabelled": True}
ROTATION = nib.eulerangles.euler2mat(0.2, -0.15, 0.1)
PATIENT = {
    "0010|0010": NAME, "0010|0020": "P1", "0010|1010": "045Y", "0010|0040": "F", "0020|000d": "1.2.3",
    "0008|0020": "20200131", "0008|0060": "MR", "0008|0008": "ORIGINAL\\PRIMARY\\M\\ND",
}  # fmt: skip
T1, T1C, T2 = (
    {"0018|0081": "3", "0018|0080": "600", "0008|103e": "ax t1"},
    {"0018|0081": "3", "0018|0080": "600", "0008|103e": "ax t1 post", "0018|0010": "Agent"},
    {"0018|0081": "95", "0018|0080": "4000", "0008|103e": "ax t2 tse"},
)


class Scanner:
    """Writes series of tiny oblique slices, one file each, in the order of a shuffled deck."""

    def __init__(self, root: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
        self.root, self.voxels, self.affine = root, np.rint(voxels).astype(np.int16), affine
        self.count = 0

    def series(
        self, *more: Mapping[str, str], skip: tuple[int, ...] = (), uid: str = "", folder: str = "dicom"
    ) -> Path:
        """Write the head as one series, without the slices in `skip`; its folder."""
        self.count += 1
        if self.count > 1:  # another sequence looks different
            drawn = np.random.default_rng(self.count).integers(200, 400, self.voxels.shape)
            self.voxels = np.where(self.voxels > 0, drawn, 0).astype(np.int16)
        tags = PATIENT | {"0020|000e": uid or f"1.2.3.{self.count}", "0020|0011": str(self.count)}
        for one in more:
            tags |= one
        into = self.root / folder
        into.mkdir(parents=True, exist_ok=True)
        for at, k in enumerate(np.random.default_rng(self.count).permutation(self.voxels.shape[2])):
            if k not in skip:
                self.slice(into / f"S{self.count:02}.{at}", int(k), tags | {"0008|0018": f"1.2.9.{self.count}.{k + 1}"})
        return into

    def slice(self, path: Path, k: int, tags: Mapping[str, str]) -> None:
        image = SimpleITK.GetImageFromArray(self.voxels[:, :, k].T)
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        image.SetSpacing(spacing[:2].tolist())
        lps = np.diag([-1.0, -1, 1]) @ self.affine[:3]
        place = {
            "0020|0032": lps @ [0, 0, k, 1],
            "0020|0037": np.concatenate([lps[:, 0] / spacing[0], lps[:, 1] / spacing[1]]),
        }
        for key, numbers in place.items():
            image.SetMetaData(key, "\\".join(f"{number:.10g}" for number in numbers))
        for key, text in ({"0008|0016": MR} | dict(tags)).items():
            image.SetMetaData(key, text)
        write(path, image)


def write(path: Path, image: SimpleITK.Image) -> None:
    """An image as DICOM with the IDs among its tags, whatever its file is called."""
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path.with_suffix(".dcm")))
    writer.Execute(image)
    path.with_suffix(".dcm").rename(path)


@pytest.fixture
def scanner(head, tmp_path: Path) -> Scanner:
    affine = head.affine.copy()
    affine[:3, :3] = ROTATION @ affine[:3, :3] @ np.diag([2.0, 1.8, 2.2])
    return Scanner(tmp_path, head.image()[::2, ::2, ::2], affine)


def files_of(folder: Path) -> Series:
    return Series(tuple(sorted(path for path in folder.iterdir() if path.is_file())))


def test_a_series_in_any_order_is_the_volume_it_was(scanner: Scanner) -> None:
    volume = read_volume(files_of(scanner.series(T1)))
    # DICOM has right-handed slices: here k runs as it did, since i and j do.
    np.testing.assert_allclose(volume.affine, scanner.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.voxels, scanner.voxels)
    assert volume.sha256 == sha256_of(files_of(scanner.root / "dicom"))
    one = next(p for p in (scanner.root / "dicom").iterdir())
    assert one.suffix[1:].isdigit()


def test_texts_with_accents_are_read_after_a_series(scanner: Scanner) -> None:
    before = locale.setlocale(locale.LC_ALL)
    series = scanner.series(T1)
    locale.setlocale(locale.LC_ALL, before)  # which writing it changed
    read_volume(files_of(series))
    assert locale.setlocale(locale.LC_ALL) == before


def test_threads_that_read_at_once_restore_the_locale() -> None:
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    expected = locale.setlocale(locale.LC_ALL)
    try:
        with ExitStack() as second, ExitStack() as first:
            first.enter_context(restore_locale())
            locale.setlocale(locale.LC_ALL, "C")  # as GDCM does
            second.enter_context(restore_locale())
        assert locale.setlocale(locale.LC_ALL) == expected
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_geometry_from_the_ends_of_a_sorted_series(scanner: Scanner) -> None:
    volume = read_volume(files_of(scanner.series(T1)))
    lps = np.diag([-1.0, -1, 1]) @ scanner.affine[:3]
    paths = files_of(scanner.root / "dicom").files
    at = {path: tuple(map(float, _tag(path, "0020|0032").split("\\"))) for path in paths}
    ordered = Series(tuple(sorted(paths, key=lambda path: np.dot(at[path], np.cross(lps[:, 0], lps[:, 1])))))
    geometry = read_geometry(ordered)
    assert geometry.shape == volume.shape
    assert geometry.bytes_a_voxel == 2
    np.testing.assert_allclose(geometry.affine, volume.affine, atol=1e-6)


def first_error(report: dict) -> str:
    """What the first error says."""
    return next(finding["message"] for finding in report["findings"] if finding["severity"] == "error")


def _tag(path: Path, key: str) -> str:
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetMetaData(key)


def _scaling(inter: bytes, slope: bytes) -> bytes:
    """The elements of the rescale intercept and slope, as they are written in a file."""
    return b"".join(
        b"\x28\x00" + element + len(text).to_bytes(4, "little") + text
        for element, text in ((b"\x52\x10", inter), (b"\x53\x10", slope))
    )


def test_each_slice_has_its_own_slope(scanner: Scanner) -> None:
    """Philips scales every slice by itself; the first one's whole numbers must not round the others."""
    folder = scanner.series(T1)
    plain_slope, slope = _scaling(b"0 ", b"1 "), _scaling(b"3 ", b"0.5 ")
    for path in files_of(folder).files:
        if _k_of(scanner, path) > 0:
            data = path.read_bytes().replace(plain_slope, b"")
            at = data.rfind(b"\xe0\x7f\x10\x00")
            path.write_bytes(data[:at] + slope + data[at:])
    expected = scanner.voxels * 0.5 + 3
    expected[..., 0] = scanner.voxels[..., 0]
    np.testing.assert_array_equal(read_volume(files_of(folder)).voxels, expected)
    assert (expected % 1 == 0.5).any()


def _k_of(scanner: Scanner, path: Path) -> int:
    position = np.array(list(map(float, _tag(path, "0020|0032").split("\\")))) * [-1, -1, 1]
    return round((np.linalg.inv(scanner.affine) @ [*position, 1])[2])


@pytest.mark.parametrize(
    ("skip", "said"),
    [((6,), "1 of 12 slices seem to be missing"), ((4, 5, 9), "3 of 12 slices seem to be missing")],
)
def test_missing_slices_are_counted(scanner: Scanner, skip: tuple[int, ...], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        read_volume(files_of(scanner.series(T1, skip=skip)))
    assert caught.value.code == "MISSING_SLICES"


def test_slices_that_are_no_one_volume(scanner: Scanner) -> None:
    twice = scanner.series(T1)
    (twice / "copy.1").write_bytes(files_of(twice).files[0].read_bytes())
    with pytest.raises(SourceError, match=r"copy\.1.* have the same position|have the same position") as caught:
        read_volume(files_of(twice))
    assert caught.value.code == "DUPLICATE_SLICES"
    with pytest.raises(SourceError, match="a series of one slice is not a volume"):
        read_volume(Series(files_of(twice).files[:1]))
    with pytest.raises(SourceError, match="a series of one slice is not a volume"):
        read_volume(files_of(twice).files[0])
    with pytest.raises(SourceError, match=r"gone\.1 does not exist"):
        read_volume(Series((*files_of(twice).files, twice / "gone.1")))


def test_nothing_is_guessed_in_silence(scanner: Scanner, ingested: Callable) -> None:
    for tags in (T1, T1C, T2):
        scanner.series(tags)
    done = ingested(scanner.root / "dicom")
    assert done.code == 2
    assert not done.url.exists()
    table = {row["series"]: row for row in done.report["series"]}
    assert {name: row["sequence"] for name, row in table.items()} == {
        "ax t1": "T1",
        "ax t1 post": "T1c",
        "ax t2 tse": "T2",
    }
    assert table["ax t2 tse"]["slices"] == "12"
    assert table["ax t2 tse"]["TE"] == "95"
    assert "contrast agent recorded" in table["ax t1 post"]["why"]
    assert "add --yes" in done.said
    assert "--modality 'ax t1'=T1c" in done.said
    assert "--allow-unlabelled" in done.said
    assert NAME not in json.dumps(done.report) + done.said


@pytest.mark.slow
def test_a_study_becomes_a_case(scanner: Scanner, ingested: Callable) -> None:
    for tags in (T1, T1C, T2):
        scanner.series(tags)
    scanner.series({"0008|103e": "localizer"}, folder="dicom/more")
    done = ingested(scanner.root / "dicom", "--yes", "--allow-unlabelled")
    assert done.code == 0, done.said
    assert done.codes("error", "warning") == []
    (case,) = done.store["dicom"].cases
    assert (case.name, case.subject, case.session) == ("P1_20200131", "P1", "20200131")
    assert case.modalities == ("T1", "T1c", "T2")
    assert dict(case.participant) == {"age": 45.0, "sex": "F"}
    left = [f["message"] for f in done.report["findings"] if f["code"] == "SERIES_LEFT_OUT"]
    assert len(left) == 1
    assert "'localizer' is left out (a localiser)" in left[0]
    kept = b"".join(path.read_bytes() for path in done.url.rglob("*") if path.is_file())
    assert NAME.encode() not in kept
    assert b"SECRET" not in kept


@pytest.mark.slow
def test_the_same_folder_again_is_there_already(scanner: Scanner, ingested: Callable) -> None:
    scanner.series(T1)
    first = ingested(scanner.root / "dicom", "--yes", "--allow-unlabelled")
    again = ingested(scanner.root / "dicom", "--yes", "--allow-unlabelled", "--store", str(first.url))
    assert again.report["skipped"] == ["P1_20200131"]


def test_without_labels_it_must_be_said(scanner: Scanner) -> None:
    scanner.series(T1)
    found = look(scanner.root / "dicom", yes=True)
    assert found.errors == [("MISSING_FILE", "P1_20200131")]
    assert "--allow-unlabelled" in found.messages("MISSING_FILE")[0]


def test_a_person_names_the_series(scanner: Scanner) -> None:
    scanner.series({"0008|103e": "seq a"})
    scanner.series({"0008|103e": "Seq B"})
    found = look(scanner.root / "dicom", allow_unlabelled=True, modalities={"seq a": "FLAIR", "seq b": "skip"})
    assert (found.modalities, found.errors) == ({"P1_20200131": ("FLAIR",)}, [])
    with pytest.raises(UsageError, match=r"'seq c', but no series has that name\. Series are Seq B, seq a"):
        look(scanner.root / "dicom", **CONFIRMED, modalities={"seq c": "FLAIR"})


@pytest.mark.slow
def test_two_series_of_one_sequence(scanner: Scanner) -> None:
    scanner.series(T1)
    scanner.series(T1)
    scanner.series(T2)
    found = look(scanner.root / "dicom", **CONFIRMED)
    assert found.errors == [("DUPLICATE_CASE", "P1_20200131")]
    (message,) = found.messages("DUPLICATE_CASE")
    assert "are T1: 'ax t1' (12 slices), 'ax t1 [2]' (12 slices)" in message
    assert '--modality "ax t1 [2]"=skip' in message
    chosen = look(scanner.root / "dicom", **CONFIRMED, modalities={"ax t1 [2]": "skip"})
    assert (chosen.modalities, chosen.errors) == ({"P1_20200131": ("T1", "T2")}, [])


@pytest.mark.slow
def test_several_volumes_in_one_series_are_told_apart(scanner: Scanner) -> None:
    for echo in ("15", "90"):
        scanner.series({"0008|103e": "ax pd t2", "0018|0081": echo, "0018|0080": "3000"}, uid="1.2.3.77")
    for b in ("0", "1000"):
        scanner.series({"0008|103e": "ep2d_diff", "0018|9087": b}, uid="1.2.3.78")
    with pytest.raises(UnconfirmedError) as asked:
        look(scanner.root / "dicom")
    assert {row["series"]: row["sequence"] for row in asked.value.rows} == {
        "ax pd t2 [TE 15]": "PD",
        "ax pd t2 [TE 90]": "T2",
        "ep2d_diff [b 0]": "",
        "ep2d_diff [b 1000]": "DWI",
    }
    assert look(scanner.root / "dicom", **CONFIRMED).modalities == {"P1_20200131": ("PD", "T2", "DWI")}


def test_the_table_shows_names_as_they_are(scanner: Scanner, capsys: pytest.CaptureFixture[str]) -> None:
    for b in ("0", "1000"):
        scanner.series({"0008|103e": "ep2d_diff", "0018|9087": b}, uid="1.2.3.78")
    assert run(["ingest", str(scanner.root / "dicom"), "--store", str(scanner.root / "x.zarr")]) == 2
    shown = capsys.readouterr().out
    command = ["ingest", str(scanner.root / "dicom"), "--store", str(scanner.root / "x.zarr"), "--json"]
    assert run(command) == 2
    ((guesses),) = checked(capsys.readouterr().out, "guesses")
    assert "--yes" in guesses["to_do"]
    assert "ep2d_diff [b 1000]" in shown
    assert "diffusion, b = 1000" in shown


def test_volumes_that_no_tag_tells_apart(scanner: Scanner, ingested: Callable) -> None:
    for _ in range(2):
        scanner.series(T1, uid="1.2.3.79")
    done = ingested(scanner.root / "dicom", "--yes", "--allow-unlabelled")
    assert done.code == 3
    assert done.codes("error") == ["DUPLICATE_SLICES"]


@pytest.mark.slow
def test_a_series_with_a_gap_keeps_its_case_out(scanner: Scanner, ingested: Callable) -> None:
    scanner.series(T1)
    scanner.series(T2, skip=(7,))
    assert [row["fault"] for row in ingested(scanner.root / "dicom").report["series"]] == ["", "MISSING_SLICES"]
    done = ingested(scanner.root / "dicom", "--yes", "--allow-unlabelled")
    assert done.code == 3
    assert done.codes("error") == ["MISSING_SLICES"]
    assert "series 'ax t2 tse', used as T2" in first_error(done.report)
    without = ingested(scanner.root / "dicom", "--yes", "--allow-unlabelled", "--modality", "ax t2 tse=skip")
    assert without.code == 0


def test_a_damaged_slice_at_the_end_is_not_overlooked(scanner: Scanner, ingested: Callable) -> None:
    folder = scanner.series(T1)
    last = max(files_of(folder).files, key=lambda path: _k_of(scanner, path))
    last.write_bytes(last.read_bytes()[:-50])
    done = ingested(folder, "--yes", "--allow-unlabelled")
    assert done.code == 3
    assert done.codes("error") == ["DAMAGED_FILE"]


def test_what_is_no_scan_is_counted_and_left_alone(scanner: Scanner) -> None:
    folder = scanner.series(T1)
    for name, uid in (("DICOMDIR", "1.2.840.10008.1.3.10"), ("seg.dcm", SEG), ("rt.dcm", RTSTRUCT)):
        meta = b"\x02\x00\x02\x00UI" + len(uid).to_bytes(2, "little") + uid.encode()
        (folder / name).write_bytes(bytes(128) + b"DICM" + meta)
    (folder / "no.dcm").write_bytes(b"hello" * 100)
    (folder / "README").write_text("hello")
    found = look(folder, **CONFIRMED)
    assert (list(found.cases), found.errors) == (["P1_20200131"], [])
    (not_read,) = found.messages("NOT_READ")
    assert "2 DICOM files are not scans and are not read: 1 RTSTRUCT (contours), 1 SEG" in not_read
    assert "1 files are named as DICOM but are not: no.dcm" in found.messages("NOT_DICOM")[0]


@pytest.mark.slow
def test_colours_and_captures_are_refused(scanner: Scanner, ingested: Callable) -> None:
    folder = scanner.series(T1)
    colours = SimpleITK.GetImageFromArray(np.zeros((8, 8, 3), np.uint8), isVector=True)
    for key, text in (PATIENT | {"0020|000e": "1.2.3.99", "0008|103e": "ax t2 capture"}).items():
        colours.SetMetaData(key, text)
    write(folder / "capture.dcm", colours)
    done = ingested(folder, "--yes", "--allow-unlabelled")
    assert done.codes("error") == ["COLOUR_IMAGE"]
    assert ingested(folder, "--yes", "--allow-unlabelled", "--modality", "ax t2 capture=skip").code == 0


def test_two_people_and_two_visits(scanner: Scanner) -> None:
    scanner.series(T1)
    scanner.series(T1, {"0020|000d": "1.2.4", "0008|0020": "20210131", "0010|0040": "M"})
    scanner.series(T1, {"0020|000d": "1.2.5", "0010|0020": ""}, folder="dicom/somebody")
    found = look(scanner.root / "dicom", **CONFIRMED)
    assert found.errors == []
    cases = {name: case.subject for name, case in found.cases.items()}
    assert cases == {"P1_20200131": "P1", "P1_20210131": "P1", "somebody_20200131": "somebody"}
    assert "patient 'P1' has more than one sex" in found.messages("TWO_PATIENTS")[0]
    assert "such as 'somebody'" in found.messages("NO_PATIENT_ID")[0]
    assert {"TWO_PATIENTS", "NO_PATIENT_ID"} <= set(found.codes("warning"))


@pytest.mark.parametrize(
    ("tags", "b_value"),
    [
        ({"0018|9087": "800", "0008|0070": "SIEMENS", "0019|100c": "5"}, 800),
        ({"0008|0070": "SIEMENS", "0019|100c": "1000"}, 1000),
        ({"0008|0070": "GE MEDICAL SYSTEMS", "0043|1039": "1000000800\\8\\0\\0"}, 800),
        ({"0008|0070": "Philips", "0019|100c": "1000"}, None),
        ({}, None),
    ],
)
def test_makers_had_their_own_b_values(tags: dict[str, str], b_value: float | None) -> None:
    assert b_value_of(Slice(Path("x"), tags, (8, 8, 1), 1)) == b_value


def test_a_makers_own_b_value_is_read_from_the_file(scanner: Scanner) -> None:
    path = scanner.root / "slice"
    scanner.slice(path, 0, {"0008|0070": "SIEMENS", "0019|0010": "SIEMENS MR HEADER", "0019|100c": "800"})
    (one,), errors = read_slices([path])
    assert errors == []
    assert b_value_of(one) == 800


@pytest.mark.slow
def test_patient_ids_and_dates_become_names_unless_others_are_asked_for(scanner: Scanner, ingested: Callable) -> None:
    scanner.series(T1)
    how = (scanner.root, "--yes", "--allow-unlabelled")
    real = ingested(*how)
    assert real.report["written"] == ["P1_20200131"]
    (said,) = [f["message"] for f in real.report["findings"] if f["code"] == "REAL_NAMES"]
    assert "such as 'P1_20200131'" in said
    assert "--pseudonyms FILE" in said
    other = ingested(*how, "--pseudonyms", str(scanner.root.parent / "names.json"))
    assert "REAL_NAMES" not in other.codes()
    (case,) = other.store.cases
    assert [case.name] == other.report["written"]
    assert not {"P1", "20200131"} & {case.subject, case.session}
    kept = [path.read_bytes() for path in other.url.rglob("*") if path.is_file()]
    assert not any(b"20200131" in data for data in kept)
    assert json.loads((scanner.root.parent / "names.json").read_text())["names"]["subject"] == {"P1": case.subject}


def test_a_length_that_one_bit_made_huge_is_the_cases_finding(scanner: Scanner, ingested: Callable) -> None:
    folder = scanner.series(T1)
    path = sorted(folder.iterdir())[2]
    data = bytearray(path.read_bytes())
    data[data.index(b"SECRET") - 1] ^= 0x10  # 268 MB for a name
    path.write_bytes(data)
    done = ingested(scanner.root, "--yes", "--allow-unlabelled")
    assert done.code == 3
    found = [f for f in done.report["findings"] if f["code"] == "DAMAGED_FILE"]
    assert [(f["case"], f["file"]) for f in found] == [("P1_20200131", str(path))]
    assert "(0010,0010) claims 2684354" in found[0]["message"]
