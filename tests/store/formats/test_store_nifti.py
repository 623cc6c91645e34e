"""Reading NIfTI: every orientation, every kind of damage, and the way home."""

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from multiseg.errors import ResourceError, SourceError
from multiseg.files import write_atomically
from multiseg.store.formats.nifti import write_like, write_nifti
from multiseg.store.formats.read_volume import read_geometry, read_volume
from multiseg.store.formats.volumes import axis_codes, to_ras, voxel_size_mm
from multiseg.store.preparation.grids import Grid, resample

SHAPE = (5, 6, 7)
ORIENTATIONS = [
    "".join(codes) for pairs in itertools.permutations(["LR", "PA", "IS"]) for codes in itertools.product(*pairs)
]
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.15, 0.1) * [0.9, 1.1, 3.0], [-30.5, 12.25, 7.0])


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32)


def saved(folder: Path, array: np.ndarray, affine: np.ndarray | None = OBLIQUE, name: str = "x.nii.gz", **kw) -> Path:
    nib.save(nib.Nifti1Image(array, affine, **kw), folder / name)
    return folder / name


def patched(folder: Path, array: np.ndarray, at: int, new: bytes) -> Path:
    """A file with some bytes of its header overwritten."""
    data = bytearray(nib.Nifti1Image(array, OBLIQUE).to_bytes())
    data[at : at + len(new)] = new
    (folder / "x.nii").write_bytes(data)
    return folder / "x.nii"


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_to_ras_and_home_again_loses_no_voxel(codes: str, values: np.ndarray, tmp_path: Path) -> None:
    affine = OBLIQUE @ np.linalg.inv(inv_ornt_aff(axcodes2ornt(codes), SHAPE))
    assert axis_codes(affine) == codes
    volume = read_volume(saved(tmp_path, values, affine, "x.nii"))
    turned = to_ras(volume)
    assert axis_codes(turned.affine) == "RAS"
    # One voxel keeps its place in space ...
    here = np.array([1, 2, 3, 1])
    there = np.rint(np.linalg.inv(turned.affine) @ volume.affine @ here).astype(int)
    assert turned.voxels[tuple(there[:3])] == values[1, 2, 3]
    # ... and all of them come back.
    home = resample(turned.voxels, Grid(turned.affine, turned.shape), Grid(volume.affine, volume.shape))
    np.testing.assert_array_equal(home, values)


def test_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_write_like_keeps_the_place_in_space(name: str, values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values.astype(np.int16), OBLIQUE)
    image.header.set_sform(OBLIQUE, 4)
    image.header.set_qform(OBLIQUE, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2.0, 5.0)
    image.header["cal_max"] = 900
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of the patient"))
    nib.save(image, tmp_path / "in.nii.gz")
    source = read_volume(tmp_path / "in.nii.gz")
    answer = np.zeros(SHAPE, dtype=np.uint8)
    answer[1, 2, 3] = 7
    write_like(tmp_path / name, answer, source.header)
    out = nib.load(tmp_path / name)
    np.testing.assert_array_equal(np.asanyarray(out.dataobj), answer)
    assert out.get_data_dtype() == np.uint8
    for key in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "quatern_b", "qoffset_x", "pixdim"):
        np.testing.assert_array_equal(out.header[key], image.header[key], err_msg=key)
    assert out.header.get_xyzt_units() == ("mm", "sec")
    assert float(out.header["cal_max"]) == 0
    assert not out.header.extensions


def test_write_like_keeps_a_qform_that_stands_alone(values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values, OBLIQUE)
    image.set_sform(None, 0)
    image.set_qform(OBLIQUE, 1)
    nib.save(image, tmp_path / "in.nii")
    write_like(tmp_path / "out.nii", values, read_volume(tmp_path / "in.nii").header)
    out = nib.load(tmp_path / "out.nii")
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (0, 1)
    np.testing.assert_allclose(out.affine, OBLIQUE, atol=1e-5)


def test_write_like_keeps_nifti_2_and_big_endian(values: np.ndarray, tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(values, OBLIQUE), tmp_path / "two.nii")
    nib.Nifti1Image(values, OBLIQUE, nib.Nifti1Header(endianness=">")).to_filename(tmp_path / "big.nii")
    for name, kind, size in (("two.nii", nib.Nifti2Image, 540), ("big.nii", nib.Nifti1Image, 348)):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, values)
        assert len(volume.header) == size
        write_like(tmp_path / "out.nii", volume.voxels, volume.header)
        out = nib.load(tmp_path / "out.nii")
        assert type(out) is kind
        np.testing.assert_array_equal(out.get_fdata(dtype=np.float32), values)
        np.testing.assert_allclose(out.affine, volume.affine, atol=1e-6)
    assert nib.load(tmp_path / "big.nii").header.endianness == ">"


def test_slope_and_intercept_are_honoured(tmp_path: Path) -> None:
    stored = np.arange(210, dtype=np.int16).reshape(SHAPE)
    image = nib.Nifti1Image(stored, OBLIQUE)
    data = bytearray(image.to_bytes())
    data[112:120] = np.array([0.5, -3], "<f4").tobytes()
    (tmp_path / "x.nii").write_bytes(data)
    np.testing.assert_array_equal(read_volume(tmp_path / "x.nii").voxels, stored * 0.5 - 3)


def test_a_trailing_singleton_is_no_fourth_axis(values: np.ndarray, tmp_path: Path) -> None:
    assert read_volume(saved(tmp_path, values[..., None])).shape == SHAPE
    with pytest.raises(SourceError, match=r"has shape \(5, 6, 7, 2\); a volume of one sequence is 3-D") as caught:
        read_volume(saved(tmp_path, np.stack([values, values], -1)))
    assert caught.value.code == "NOT_3D"
    with pytest.raises(SourceError, match=r"has shape \(5, 6\)"):
        read_volume(saved(tmp_path, values[..., 0]))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_gzip_never_passes(share: float, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, values)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(len(whole) - 1, int(share * len(whole)))])
    with pytest.raises(SourceError, match=r"Copy it again|is not a NIfTI, MGH") as caught:
        read_volume(path)
    assert caught.value.file == str(path)


def test_a_wrong_checksum_never_passes(values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, values)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="damaged gzip file") as caught:
        read_volume(path)
    assert caught.value.code == "DAMAGED_FILE"


@pytest.mark.parametrize("size", [1, 100, 347, 348, 352, 500])
def test_a_short_plain_file_never_passes(size: int, values: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(nib.Nifti1Image(values, OBLIQUE).to_bytes()[:size])
    with pytest.raises(SourceError, match=r"is not a NIfTI, MGH|is shorter than its header says"):
        read_volume(path)


def test_a_header_that_claims_any_size_asks_for_no_memory(values: np.ndarray, tmp_path: Path) -> None:
    huge = np.array([3, 32767, 32767, 32767], "<i2").tobytes()
    with pytest.raises(SourceError, match=r"is shorter than its header says: 1192 of \d{15} bytes"):
        read_volume(patched(tmp_path, values, 40, huge))


def test_voxels_cannot_begin_in_the_header(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has its voxels at byte 0, within its header"):
        read_volume(patched(tmp_path, values, 108, bytes(4)))


@pytest.mark.parametrize("magic", [b"n+3\0", b"ni1\0", b"\0\0\0\0"])
def test_a_wrong_magic_is_no_nifti(magic: bytes, values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not a NIfTI, MGH|is half of a NIfTI"):
        read_volume(patched(tmp_path, values, 344, magic))


def test_what_nibabel_mends_in_silence_is_a_doubt(values: np.ndarray, tmp_path: Path) -> None:
    volume = read_volume(patched(tmp_path, values, 254, np.array([77], "<i2").tobytes()))
    assert "HEADER_REPAIRED" in dict(volume.doubts)
    assert "sform_code 77 not valid" in dict(volume.doubts)["HEADER_REPAIRED"]


def test_files_that_are_no_volume(values: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "text.nii").write_text("hello" * 200)
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello" * 200))
    for name in ("text.nii", "empty.nii", "text.nii.gz"):
        with pytest.raises(SourceError, match=r"is not a NIfTI, MGH|is half of a NIfTI"):
            read_volume(tmp_path / name)
    with pytest.raises(SourceError, match=r"missing\.nii does not exist") as caught:
        read_volume(tmp_path / "missing.nii")
    assert caught.value.code == "MISSING_FILE"
    with pytest.raises(SourceError, match="is a folder, a pipe or a device, not a file"):
        read_volume(tmp_path)


def test_voxels_that_are_no_intensities(values: np.ndarray, tmp_path: Path) -> None:
    broken = values.copy()
    broken[0, 0, :2] = np.nan, np.inf
    with pytest.raises(SourceError, match="has 2 voxels that are NaN or infinite"):
        read_volume(saved(tmp_path, broken))
    with pytest.raises(SourceError, match="has 210 voxels that are NaN or infinite in float32"):
        read_volume(saved(tmp_path, np.full(SHAPE, 1e300)))
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(SourceError, match="contains colours"):
        read_volume(saved(tmp_path, rgb))
    with pytest.raises(SourceError, match="complex numbers"):
        read_volume(saved(tmp_path, values.astype(np.complex64)))


def test_an_affine_that_is_no_mapping(values: np.ndarray, tmp_path: Path) -> None:
    flat = OBLIQUE.copy()
    flat[:, 2] = 0
    image = nib.Nifti1Image(values, None)
    image.header.set_sform(flat, 1)
    data = image.to_bytes()
    (tmp_path / "x.nii").write_bytes(data)
    with pytest.raises(SourceError, match="affine that is not invertible") as caught:
        read_volume(tmp_path / "x.nii")
    assert caught.value.code == "BAD_AFFINE"


def test_no_orientation_is_said_as_it_is_taken(values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values, None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    (tmp_path / "x.nii").write_bytes(image.to_bytes())
    volume = read_volume(tmp_path / "x.nii")
    assert axis_codes(volume.affine) == "LAS"
    assert "run towards left, front, head" in dict(volume.doubts)["NO_ORIENTATION"]


def test_two_forms_that_contradict_each_other(values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values, OBLIQUE)
    image.set_qform(OBLIQUE, 1)
    assert not read_volume(_saved_image(image, tmp_path)).doubts
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 2
    image.set_qform(shifted, 1)
    volume = read_volume(_saved_image(image, tmp_path))
    assert [code for code, _ in volume.doubts] == ["SFORM_QFORM"]
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


def test_the_distance_between_two_forms_is_named(values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values, OBLIQUE)
    shifted = OBLIQUE.copy()
    shifted[1, 3] += 12.5
    image.set_qform(shifted, 1)
    doubts = dict(read_volume(_saved_image(image, tmp_path)).doubts)
    assert "differ by 12.5 mm; the sform is used" in doubts["SFORM_QFORM"]


def test_a_form_that_is_no_mapping_gives_way(values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values, OBLIQUE)
    image.set_qform(OBLIQUE, 1)
    for broken in (0.0, np.nan):
        image.header["srow_x"] = broken
        volume = read_volume(_bytes_of(image, tmp_path))
        assert "its sform is not invertible; the qform is used" in dict(volume.doubts)["BAD_SFORM"]
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
        write_like(tmp_path / "answer.nii", values, volume.header)
        np.testing.assert_allclose(nib.load(tmp_path / "answer.nii").affine, OBLIQUE, atol=1e-5)
    image = nib.Nifti1Image(values, OBLIQUE)
    image.set_qform(OBLIQUE, 1)
    image.header["quatern_b"] = 7
    volume = read_volume(_bytes_of(image, tmp_path))
    assert "the sform is used" in dict(volume.doubts)["BAD_QFORM"]
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    image.header["srow_x"] = 0
    with pytest.raises(SourceError, match="affine that is not invertible") as caught:
        read_volume(_bytes_of(image, tmp_path))
    assert caught.value.code == "BAD_AFFINE"


@pytest.mark.parametrize(("unit", "factor", "name"), [("meter", 1000.0, "metres"), ("micron", 0.001, "micrometres")])
@pytest.mark.parametrize("form", ["sform", "qform", "none"])
def test_units_become_millimetres(
    form: str, unit: str, factor: float, name: str, values: np.ndarray, tmp_path: Path
) -> None:
    stored = OBLIQUE.copy()
    stored[:3] /= factor
    image = nib.Nifti1Image(values, stored)
    image.header.set_xyzt_units(unit)
    if form == "qform":
        image.set_qform(stored, 1)
        image.set_sform(None, 0)
    if form == "none":
        image.set_qform(None, 0)
        image.set_sform(None, 0)
        assert voxel_size_mm(read_volume(_bytes_of(image, tmp_path)).affine) == pytest.approx((0.9, 1.1, 3.0))
        return
    volume = read_volume(_saved_image(image, tmp_path))
    np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-4, atol=1e-4)
    assert f"its header is in {name}, so its voxels are 0.9 x 1.1 x 3 mm" in dict(volume.doubts)["UNITS"]
    write_like(tmp_path / "answer.nii", values, volume.header)
    assert nib.load(tmp_path / "answer.nii").header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(nib.load(tmp_path / "answer.nii").affine, stored, rtol=1e-5, atol=1e-5)


def test_units_that_are_not_named_are_millimetres(values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values, OBLIQUE)
    image.header.set_xyzt_units("unknown")
    volume = read_volume(_saved_image(image, tmp_path))
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert not volume.doubts


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan])
def test_a_voxel_size_that_is_none_is_not_mended(size: float, values: np.ndarray, tmp_path: Path) -> None:
    path = patched(tmp_path, values, 84, np.array([size], "<f4").tobytes())
    for read in (read_volume, read_geometry):
        with pytest.raises(SourceError, match=rf"voxel size, 0\.9 x {size:g} x 3 mm") as caught:
            read(path)
        assert caught.value.code == "BAD_AFFINE"


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_that_is_none(slope: float, values: np.ndarray, tmp_path: Path) -> None:
    path = patched(tmp_path, values, 112, np.array([slope, 5], "<f4").tobytes())
    np.testing.assert_array_equal(read_volume(path).voxels, values)


def test_scaled_codes_are_exact_where_float64_is_needed(tmp_path: Path) -> None:
    stored = np.arange(210, dtype=np.int16).reshape(SHAPE)
    path = patched(tmp_path, stored, 112, np.array([0.1, -1000], "<f4").tobytes())
    expected = (stored.astype(np.float64) * np.float64(np.float32(0.1)) - 1000).astype(np.float32)
    np.testing.assert_array_equal(read_volume(path).voxels, expected)


def _bytes_of(image: nib.Nifti1Image, folder: Path) -> Path:
    """The file with its header as it stands: nibabel would repair it on the way."""
    image.header["vox_offset"] = 352
    data = image.header.binaryblock + bytes(4) + np.asanyarray(image.dataobj).tobytes(order="F")
    (folder / "form.nii").write_bytes(data)
    return folder / "form.nii"


def _saved_image(image: nib.Nifti1Image, folder: Path) -> Path:
    nib.save(image, folder / "form.nii")
    return folder / "form.nii"


def test_write_nifti_round_trip(values: np.ndarray, tmp_path: Path) -> None:
    write_nifti(tmp_path / "new" / "x.nii.gz", values, OBLIQUE)
    volume = read_volume(tmp_path / "new" / "x.nii.gz")
    np.testing.assert_array_equal(volume.voxels, values)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert not volume.doubts


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "answer.nii"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(ResourceError, match="cannot write"):
        write_atomically(path / "below", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["answer.nii"]
