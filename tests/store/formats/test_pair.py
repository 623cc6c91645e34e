"""NIfTI in two files is what it would be in one; Analyze, and a half alone, are refused with the reason."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.errors import SourceError
from multiseg.store.cases import Channel, sha256_of
from multiseg.store.formats.nifti import write_like
from multiseg.store.formats.read_volume import read_geometry, read_volume
from multiseg.store.formats.volumes import axis_codes
from multiseg.store.sources.pattern_source import PatternSource, find_database
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_folder import look_into
from multiseg.store.sources.source_types import SourceOptions

LEFT_HANDED = np.array([[-2.0, 0, 0, 30], [0, 0, 3, -40], [0, 1.5, 0, -20], [0, 0, 0, 1]])


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-300, 300, shape or (4, 5, 6)).astype(np.int16)


def save_pair(folder: Path, kind: type = nib.Nifti1Pair, packed: str = "", name: str = "T1", **header: float) -> Path:
    """The path of the .img file."""
    image = kind(array(), LEFT_HANDED)
    if header:
        image.header.set_slope_inter(**header)
    nib.save(image, folder / f"{name}.img{packed}")
    return folder / f"{name}.img{packed}"


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_pair_is_read_by_either_name(tmp_path: Path, kind: type, packed: str) -> None:
    path = save_pair(tmp_path, kind, packed)
    header = path.with_name(f"T1.hdr{packed}")
    for half in (path, header):
        volume = read_volume(half)
        np.testing.assert_array_equal(volume.voxels, array())
        np.testing.assert_array_equal(volume.affine, LEFT_HANDED)
        assert axis_codes(volume.affine) == "LSA"
        assert volume.doubts == ()
        assert volume.sha256 == sha256_of(half)
        geometry = read_geometry(half)
        assert (geometry.shape, geometry.affine.tolist()) == ((4, 5, 6), LEFT_HANDED.tolist())
    assert volume.header[:4] == (540 if kind is nib.Nifti2Pair else 348).to_bytes(4, "little")


def test_both_halves_are_in_the_digest(tmp_path: Path) -> None:
    path = save_pair(tmp_path)
    before = sha256_of(path)
    header = path.with_suffix(".hdr")
    header.write_bytes(header.read_bytes().replace(b"\0" * 80, b"x" * 80, 1))
    assert sha256_of(path) != before


def test_halves_that_differ_in_how_they_are_packed_or_spelt(tmp_path: Path) -> None:
    path = save_pair(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "T1.IMG").write_bytes(path.read_bytes())
    (tmp_path / "a" / "T1.HDR").write_bytes(path.with_suffix(".hdr").read_bytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "a" / "T1.IMG").voxels, array())
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name("T1.img.gz").write_bytes(packed)
    np.testing.assert_array_equal(read_volume(path.with_name("T1.img.gz")).voxels, array())
    assert look_into(tmp_path).volumes == ("T1.img.gz", "a/T1.IMG")


def test_slopes_byte_order_and_an_offset(tmp_path: Path) -> None:
    header = nib.Nifti1Pair.header_class(endianness=">")
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(">i2")
    header.set_sform(LEFT_HANDED, 1)
    header.set_slope_inter(0.5, 10)
    header["vox_offset"] = 16
    (tmp_path / "T1.hdr").write_bytes(header.binaryblock)
    (tmp_path / "T1.img").write_bytes(b"x" * 16 + array().astype(">i2").tobytes(order="F"))
    volume = read_volume(tmp_path / "T1.img")
    np.testing.assert_allclose(volume.voxels, array() * 0.5 + 10)
    np.testing.assert_array_equal(volume.affine, LEFT_HANDED)
    assert read_geometry(tmp_path / "T1.hdr").shape == (4, 5, 6)


def test_a_volume_of_a_4d_pair(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(array(4, 5, 6, 2), LEFT_HANDED), tmp_path / "both.img")
    np.testing.assert_array_equal(read_volume(Channel(tmp_path / "both.img", 1)).voxels, array(4, 5, 6, 2)[..., 1])


def break_it(path: Path, how: str) -> Path:
    header = path.with_suffix(".hdr")
    match how:
        case "no header":
            header.unlink()
        case "no voxels":
            path.unlink()
            return header
        case "short":
            os.truncate(path, 100)
        case "short header":
            os.truncate(header, 200)
        case "text":
            header.write_text("ENVI\nsamples = 4\n")
        case "Analyze":
            nib.save(nib.AnalyzeImage(array(), np.diag([2.0, 2, 2, 1])), path)
        case "SPM":
            nib.save(nib.Spm99AnalyzeImage(array(), LEFT_HANDED), path)
        case "offset":
            header.write_bytes(header.read_bytes()[:108] + np.float32(np.nan).tobytes() + header.read_bytes()[112:])
    return path


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("no header", "MISSING_FILE", r"T1\.img is half of a pair .* but T1\.hdr is missing"),
        ("no voxels", "MISSING_FILE", r"T1\.hdr is half of a pair .* but T1\.img is missing"),
        ("short", "DAMAGED_FILE", "is shorter than its header says"),
        ("short header", "DAMAGED_FILE", r"T1\.hdr is a truncated header: 200 of 348 bytes"),
        ("text", "NOT_NIFTI", r"T1\.hdr is not the header of a NIfTI pair \(it begins with b'ENVI'\)"),
        ("Analyze", "ANALYZE", r"T1\.hdr is an Analyze 7\.5 header, which does not say which side is left"),
        ("SPM", "ANALYZE", "check left and right against the patient"),
        ("offset", "DAMAGED_FILE", "has its voxels at byte nan"),
    ],
)
@pytest.mark.parametrize("read", [read_volume, read_geometry])
def test_pairs_that_are_refused(tmp_path: Path, how: str, code: str, says: str, read: Callable) -> None:
    path = break_it(save_pair(tmp_path), how)
    with pytest.raises(SourceError, match=says) as raised:
        read(path)
    assert raised.value.code == code


def test_a_pattern_that_fits_both_halves(tmp_path: Path) -> None:
    (tmp_path / "ms" / "pat1").mkdir(parents=True)
    save_pair(tmp_path / "ms" / "pat1")
    for suffix, taken in (("*", "img"), ("hdr", "hdr"), ("img", "img")):
        files = find_database(PatternSource("db", tmp_path / "ms", f"{{case}}/{{modality}}.{suffix}"))
        assert [case.images["T1"].name for case in files.cases] == [f"T1.{taken}"]


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    """A lost half is its own case's error: neither the sequence nor the case is left out without a word."""
    for case in ("pat1", "pat2", "pat3"):
        (tmp_path / "ms" / case).mkdir(parents=True)
        save_pair(tmp_path / "ms" / case)
        save_pair(tmp_path / "ms" / case, name="FLAIR")
    (tmp_path / "ms" / "pat2" / "FLAIR.img").unlink()
    (tmp_path / "ms" / "pat3" / "FLAIR.hdr").unlink()
    files = find_source(tmp_path / "ms", SourceOptions(allow_unlabelled=True))
    assert {case.case: case.images["FLAIR"].name for case in files.cases} == {
        "pat1": "FLAIR.img", "pat2": "FLAIR.hdr", "pat3": "FLAIR.img",
    }  # fmt: skip
    assert [finding.code for finding in files.findings] == []
    for case in files.cases[1:]:
        with pytest.raises(SourceError, match="is half of a pair"):
            read_volume(case.images["FLAIR"])


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_an_answer_goes_home_as_one_file(tmp_path: Path, kind: type) -> None:
    volume = read_volume(save_pair(tmp_path, kind))
    write_like(tmp_path / "answer.nii.gz", np.ones(volume.shape, np.uint8), volume.header)
    answer = nib.load(tmp_path / "answer.nii.gz")
    np.testing.assert_array_equal(answer.affine, LEFT_HANDED)
    np.testing.assert_array_equal(answer.get_fdata(), np.ones((4, 5, 6)))
