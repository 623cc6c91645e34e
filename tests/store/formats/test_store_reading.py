"""One content in every format: the same voxels at the same place, and every kind of damage named."""

import gzip
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from multiseg.errors import SourceError
from multiseg.store.cases import Channel, sha256_of
from multiseg.store.formats.nifti import write_like
from multiseg.store.formats.read_volume import read_geometry, read_volume
from multiseg.store.formats.volumes import axis_codes

SHAPE = (5, 6, 7)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.15, 0.1) * [0.9, 1.1, 3.0], [-30.5, 12.25, 7.0])
STRAIGHT = nib.affines.from_matvec(np.diag([0.9, 1.1, 3.0]), [-30.5, 12.25, 7.0])
ITK_NAMES = ("x.mha", "packed.mha", "x.mhd", "packed.mhd", "x.nrrd", "packed.nrrd", "x.nhdr", "packed.nhdr")
NIBABEL_NAMES = ("x.nii", "x.nii.gz", "x.mgh", "x.mgz")
ORIENTATIONS = [
    "".join(codes) for pairs in itertools.permutations(["LR", "PA", "IS"]) for codes in itertools.product(*pairs)
]


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 900, SHAPE).astype(np.int16)


def saved(folder: Path, name: str, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    """Write [i j k] voxels, or [i j k volume], under a name that tells the format."""
    path = folder / name
    folder.mkdir(exist_ok=True)
    if name in ITK_NAMES:
        SimpleITK.WriteImage(itk_image(array, affine), str(path), useCompression=name.startswith("packed"))
    else:
        kind = nib.MGHImage if name in ("x.mgh", "x.mgz") else nib.Nifti1Image
        nib.save(kind(array, affine), path)
    return path


def itk_image(array: np.ndarray, affine: np.ndarray) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.moveaxis(array.T, 0, -1) if array.ndim == 4 else array.T, array.ndim == 4)
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("name", [*NIBABEL_NAMES, *ITK_NAMES])
def test_one_content_in_every_format(name: str, affine: np.ndarray, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, name, values, affine)
    volume = read_volume(path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, values)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.doubts == ()
    assert volume.sha256 == sha256_of(path)
    geometry = read_geometry(path)
    assert (geometry.shape, geometry.bytes_a_voxel) == (SHAPE, 2)
    np.testing.assert_allclose(geometry.affine, volume.affine, atol=1e-12)


@pytest.mark.parametrize("name", ["x.mgz", "x.mha", "x.nrrd"])
def test_an_answer_goes_home_to_any_format(name: str, values: np.ndarray, tmp_path: Path) -> None:
    volume = read_volume(saved(tmp_path, name, values))
    answer = (values > 400).astype(np.uint8)
    write_like(tmp_path / "answer.nii.gz", answer, volume.header)
    home = read_volume(tmp_path / "answer.nii.gz")
    np.testing.assert_array_equal(home.voxels, answer)
    np.testing.assert_allclose(home.affine, OBLIQUE, atol=1e-5)
    assert home.doubts == ()


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_through_itk(codes: str, values: np.ndarray, tmp_path: Path) -> None:
    affine = OBLIQUE @ np.linalg.inv(inv_ornt_aff(axcodes2ornt(codes), SHAPE))
    for name in ("x.mha", "x.nrrd"):
        volume = read_volume(saved(tmp_path, name, values, affine))
        assert axis_codes(volume.affine) == codes
        np.testing.assert_allclose(volume.affine, affine, atol=1e-9)
        np.testing.assert_array_equal(volume.voxels, values)


@pytest.mark.parametrize("name", ["x.nii.gz", "x.mgz", "x.mha", "x.nrrd"])
def test_one_volume_of_several(name: str, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, name, np.stack([values, values + 1, values + 2], -1))
    for index in range(3):
        np.testing.assert_array_equal(read_volume(Channel(path, index)).voxels, values + index)
    assert read_volume(Channel(path, 1)).sha256 == sha256_of(Channel(path, 1)) != sha256_of(path)
    assert read_geometry(Channel(path, 1)).shape == SHAPE
    for read in (read_volume, read_geometry):
        with pytest.raises(SourceError, match=r"has shape \(5, 6, 7, 3\) and thus no volume 3"):
            read(Channel(path, 3))
        with pytest.raises(SourceError, match=r"has shape \(5, 6, 7, 3\); a volume of one sequence is 3-D") as caught:
            read(path)
        assert caught.value.code == "NOT_3D"


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2, 2), (5, 6, 0)])
def test_arrays_that_are_no_volume(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(nib.Nifti1Image(np.zeros(shape, np.int16), OBLIQUE).to_bytes())
    for read in (read_volume, read_geometry):
        with pytest.raises(SourceError, match=re.escape(f"has shape {shape}")):
            read(path)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((5, 6), np.int16)), str(tmp_path / "flat.mha"))
    with pytest.raises(SourceError, match=r"has shape \(6, 5\)"):
        read_volume(tmp_path / "flat.mha")


def test_singleton_axes_between_and_behind(values: np.ndarray, tmp_path: Path) -> None:
    for shape in ((5, 6, 7, 1, 1), (5, 6, 7, 1)):
        path = tmp_path / "x.nii"
        path.write_bytes(nib.Nifti1Image(values.reshape(shape), OBLIQUE).to_bytes())
        np.testing.assert_array_equal(read_volume(path).voxels, values)
    both = np.stack([values, values + 1], -1)[:, :, :, None]
    (tmp_path / "v.nii").write_bytes(nib.Nifti1Image(both, OBLIQUE).to_bytes())
    np.testing.assert_array_equal(read_volume(Channel(tmp_path / "v.nii", 1)).voxels, values + 1)


def _cut(data: bytes) -> bytes:
    return data[:-20]


def _flip(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 255]) + data[-39:]


@pytest.mark.parametrize(
    ("name", "file", "damage"),
    [
        ("x.nii", "x.nii", _cut),
        ("x.nii.gz", "x.nii.gz", _cut),
        ("x.nii.gz", "x.nii.gz", _flip),
        ("x.mgh", "x.mgh", lambda data: data[:400]),
        ("x.mgz", "x.mgz", _cut),
        ("x.mgz", "x.mgz", _flip),
        ("x.mha", "x.mha", _cut),
        ("packed.mha", "packed.mha", _cut),
        ("packed.mha", "packed.mha", _flip),
        ("x.mhd", "x.raw", _cut),
        ("x.mhd", "x.raw", lambda data: b""),
        ("packed.mhd", "packed.zraw", _cut),
        ("packed.mhd", "packed.zraw", _flip),
        ("x.nrrd", "x.nrrd", _cut),
        ("packed.nrrd", "packed.nrrd", _cut),
        ("packed.nrrd", "packed.nrrd", lambda data: data[:-2]),
        ("packed.nrrd", "packed.nrrd", _flip),
        ("x.nhdr", "x.raw", _cut),
        ("packed.nhdr", "packed.raw.gz", _cut),
        ("packed.nhdr", "packed.raw.gz", _flip),
    ],
)
def test_damage_never_passes(
    name: str, file: str, damage: Callable[[bytes], bytes], values: np.ndarray, tmp_path: Path
) -> None:
    path = saved(tmp_path, name, values)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(SourceError, match=r"[Cc]opy it again|Copy or export it again") as caught:
        read_volume(path)
    assert caught.value.code == "DAMAGED_FILE"
    assert caught.value.file == str(path)


@pytest.mark.parametrize("name", [*NIBABEL_NAMES, *ITK_NAMES])
@pytest.mark.parametrize("size", [0, 1, 20, 100])
def test_the_beginning_of_a_header_is_no_header(name: str, size: int, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, name, values)
    path.write_bytes(path.read_bytes()[:size])
    for read in (read_volume, read_geometry):
        with pytest.raises(SourceError) as caught:
            read(path)
        assert caught.value.code in ("DAMAGED_FILE", "NOT_NIFTI")


@pytest.mark.parametrize(("name", "file"), [("x.mhd", "x.raw"), ("packed.nhdr", "packed.raw.gz")])
def test_voxels_that_lie_elsewhere(name: str, file: str, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, name, values)
    whole = read_volume(path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b"\0")
    assert sha256_of(path) != whole.sha256
    (tmp_path / file).unlink()
    for read in (read_volume, read_geometry):
        with pytest.raises(SourceError, match=rf"has its voxels in .*{file}") as caught:
            read(path)
        assert caught.value.code == "MISSING_FILE"


def test_a_list_of_files_and_a_pattern(values: np.ndarray, tmp_path: Path) -> None:
    header = saved(tmp_path, "x.mhd", values).read_text()
    for k in range(SHAPE[2]):
        (tmp_path / f"s{k:02}.raw").write_bytes(values[:, :, k].T.tobytes())
    names = "\n".join(f"s{k:02}.raw" for k in range(SHAPE[2]))
    for named in (f"LIST\n{names}\n", f"s%02d.raw 0 {SHAPE[2] - 1} 1\n"):
        path = tmp_path / "list.mhd"
        path.write_text(header.replace("x.raw\n", named))
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.voxels, values)
        before = sha256_of(path)
        assert volume.sha256 == before
    (tmp_path / "s03.raw").write_bytes(bytes(60))
    assert sha256_of(path) != before


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "before"),
    [
        ("x.mhd", "x.raw", "NDims = 3\n", "NDims = 3\nHeaderSize = 9\n", b"nine bytes"[:9]),
        ("x.mhd", "x.raw", "NDims = 3\n", "NDims = 3\nHeaderSize = -1\n", b"any number of bytes"),
        ("x.nhdr", "x.raw", "encoding: raw\n", "encoding: raw\nbyte skip: 4\n", b"four"),
        ("x.nhdr", "x.raw", "encoding: raw\n", "encoding: raw\nbyte skip: -1\n", b"any number of bytes"),
        ("x.nhdr", "x.raw", "encoding: raw\n", "encoding: raw\nline skip: 2\n", b"one\ntwo\n"),
    ],
)
def test_what_stands_before_the_voxels(
    name: str, file: str, old: str, new: str, before: bytes, values: np.ndarray, tmp_path: Path
) -> None:
    path = saved(tmp_path, name, values)
    path.write_text(path.read_text().replace(old, new))
    (tmp_path / file).write_bytes(before + (tmp_path / file).read_bytes())
    np.testing.assert_array_equal(read_volume(path).voxels, values)
    assert read_geometry(path).shape == SHAPE


def test_bytes_before_the_voxels_do_not_count_as_voxels(values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, "x.nhdr", values)
    path.write_text(path.read_text().replace("encoding: raw\n", "encoding: raw\nbyte skip: 4\n"))
    (tmp_path / "x.raw").write_bytes(b"four" + (tmp_path / "x.raw").read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"shorter than its header says: \d+ of \d+ bytes"):
        read_geometry(path)


@pytest.mark.parametrize("name", ["x.mha", "x.nrrd"])
def test_big_endian_text_formats(name: str, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, name, values)
    data = path.read_bytes()
    header = data[: -values.nbytes].replace(b"MSB = False", b"MSB = True").replace(b"endian: little", b"endian: big")
    path.write_bytes(header + values.astype(">i2").tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(path).voxels, values)


def test_colours_and_complex_numbers_in_every_format(values: np.ndarray, tmp_path: Path) -> None:
    colours = np.zeros((*SHAPE, 3), np.uint8)
    for name in ("x.mha", "x.nrrd"):
        for read in (read_volume, read_geometry):
            with pytest.raises(SourceError, match="contains colours") as caught:
                read(saved(tmp_path, name, colours))
            assert caught.value.code == "COLOUR_IMAGE"
    text = saved(tmp_path, "x.nrrd", np.zeros((*SHAPE, 3), np.int16)).read_bytes()
    (tmp_path / "x.nrrd").write_bytes(text.replace(b"kinds: vector", b"kinds: RGB-color"))
    with pytest.raises(SourceError, match="contains colours"):
        read_volume(tmp_path / "x.nrrd")
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    (tmp_path / "x.nii").write_bytes(nib.Nifti1Image(rgb, OBLIQUE).to_bytes())
    with pytest.raises(SourceError, match="contains colours"):
        read_geometry(tmp_path / "x.nii")
    numbers = SimpleITK.GetImageFromArray(values.T.astype(np.complex64))
    for name in ("x.mha", "x.nrrd"):
        SimpleITK.WriteImage(numbers, str(tmp_path / name))
        with pytest.raises(SourceError, match=r"complex numbers|has shape \(5, 6, 7, 2\)"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["x.mgz", "x.mha", "x.nrrd"])
def test_not_a_number_in_every_format(name: str, tmp_path: Path) -> None:
    broken = np.zeros(SHAPE, np.float32)
    broken[0, 0, :2] = np.nan
    with pytest.raises(SourceError, match="has 2 voxels that are NaN"):
        read_volume(saved(tmp_path, name, broken))


@pytest.mark.parametrize("name", ["x.nii.gz", "x.mgz", "x.mha"])
def test_a_mask_keeps_its_own_values(name: str, tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[1:3] = 0.9999
    np.testing.assert_array_equal(read_volume(saved(tmp_path, name, mask)).voxels, mask)
    codes = (mask > 0).astype(np.uint8)
    assert read_volume(saved(tmp_path, name, codes)).voxels.dtype == np.uint8


@pytest.mark.parametrize(("name", "wrong"), [
    ("x.mha", "scan.nii.gz"), ("x.nrrd", "scan.mha"), ("x.nii", "scan.nii.gz"), ("x.nii.gz", "scan.nii"),
    ("x.mgz", "scan.mgh"), ("x.mgh", "scan.nii.gz"), ("packed.nrrd", "scan"),
])  # fmt: skip
def test_content_tells_what_a_name_does_not(name: str, wrong: str, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, name, values).rename(tmp_path / wrong)
    np.testing.assert_array_equal(read_volume(path).voxels, values)
    assert read_geometry(path).shape == SHAPE


@pytest.mark.parametrize("name", ["x.nii", "x.mgh"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_gzip_in_gzip(name: str, layers: int, values: np.ndarray, tmp_path: Path) -> None:
    data = saved(tmp_path, name, values).read_bytes()
    for _ in range(layers):
        data = gzip.compress(data)
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, values)
    assert [code for code, _ in volume.doubts] == (["DOUBLE_GZIP"] if layers > 1 else [])
    assert read_geometry(path).shape == SHAPE


def test_a_gzip_file_of_several_members(values: np.ndarray, tmp_path: Path) -> None:
    """As block compressors write them: also where the members are alike, and all but one could be lost."""
    whole = nib.Nifti1Image(np.zeros(SHAPE, np.int16), OBLIQUE).to_bytes()
    blocks = [whole[at : at + 193] for at in range(0, len(whole), 193)]
    assert [len(block) for block in blocks] == [193] * 4
    path = tmp_path / "x.nii.gz"
    path.write_bytes(b"".join(gzip.compress(block) for block in blocks))
    assert read_volume(path).shape == SHAPE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.mha", "x.mhd", "x.nrrd", "x.nhdr", "x.nii", "x.mgh"])
def test_a_damaged_header_is_an_error_and_no_crash(name: str, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(tmp_path, name, values)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 420), 3):
            damaged[at] = rng.choice([0, 10, 32, 45, 57, 255, rng.integers(256)])
        path.write_bytes(damaged)
        for read in (read_volume, read_geometry):
            try:
                read(path)
            except SourceError as error:
                assert error.code  # noqa: PT017


def test_what_is_refused_says_what_to_do(values: np.ndarray, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(values, OBLIQUE), tmp_path / "pair.hdr")
    (tmp_path / "pair.hdr").rename(tmp_path / "half.nii")
    for read in (read_volume, read_geometry):
        with pytest.raises(
            SourceError, match=r"half of a NIfTI or Analyze pair .* nib-convert half\.hdr half\.nii\.gz"
        ) as caught:
            read(tmp_path / "half.nii")  # by its name no half, whose other one could be found
        assert caught.value.code == "NOT_NIFTI"
    packed = tmp_path / "x.mha.gz"
    packed.write_bytes(gzip.compress(saved(tmp_path, "x.mha", values).read_bytes()))
    with pytest.raises(SourceError, match=r"in gzip\. Decompress it first"):
        read_volume(packed)
    with pytest.raises(SourceError, match="does not exist"):
        read_geometry(tmp_path / "none.nii")


def test_metaimage_slope_units_and_orientation(values: np.ndarray, tmp_path: Path) -> None:
    data = saved(tmp_path, "x.mha", values, STRAIGHT).read_bytes()
    slope = b"NDims = 3\nElementToIntensityFunctionSlope = 0.5\nElementToIntensityFunctionOffset = 3\n"
    (tmp_path / "x.mha").write_bytes(data.replace(b"NDims = 3\n", slope))
    np.testing.assert_array_equal(read_volume(tmp_path / "x.mha").voxels, values * 0.5 + 3)
    (tmp_path / "x.mha").write_bytes(data.replace(b"NDims = 3\n", b"NDims = 3\nDistanceUnits = cm\n"))
    volume = read_volume(tmp_path / "x.mha")
    np.testing.assert_allclose(volume.affine[:3], STRAIGHT[:3] * 10)
    assert "its header gives lengths in cm" in dict(volume.doubts)["UNITS"]
    (tmp_path / "x.mha").write_bytes(re.sub(rb"TransformMatrix = [^\n]*\n", b"", data))
    assert "no TransformMatrix" in dict(read_volume(tmp_path / "x.mha").doubts)["NO_ORIENTATION"]
    (tmp_path / "x.mha").write_bytes(data.replace(b"NDims = 3\n", b"NDims = 3\nHeaderSize = many\n"))
    with pytest.raises(SourceError, match=r"invalid header: .*'many'"):
        read_volume(tmp_path / "x.mha")


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("LPS", (-1, -1, 1))],
)
def test_nrrd_spaces(space: str, signs: tuple[int, int, int], values: np.ndarray, tmp_path: Path) -> None:
    data = saved(tmp_path, "x.nrrd", values, np.diag([-1.0, -1, 1, 1]) @ STRAIGHT).read_bytes()
    (tmp_path / "x.nrrd").write_bytes(data.replace(b"space: left-posterior-superior", f"space: {space}".encode()))
    volume = read_volume(tmp_path / "x.nrrd")
    np.testing.assert_allclose(volume.affine, np.diag([*signs, 1]) @ STRAIGHT, atol=1e-9)
    assert volume.doubts == ()


def test_a_nrrd_file_without_a_space(values: np.ndarray, tmp_path: Path) -> None:
    data = saved(tmp_path, "x.nrrd", values, STRAIGHT).read_bytes()
    (tmp_path / "x.nrrd").write_bytes(data.replace(b"space: left-posterior-superior", b"space dimension: 3"))
    doubts = dict(read_volume(tmp_path / "x.nrrd").doubts)
    assert "run towards right, front, head" in doubts["NO_ORIENTATION"]


def test_mgh_without_orientation_and_with_bad_sizes(values: np.ndarray, tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path, "x.mgh", values).read_bytes())
    data[28:30] = b"\0\0"  # goodRASFlag
    (tmp_path / "x.mgh").write_bytes(data)
    assert "goodRASFlag is 0" in dict(read_volume(tmp_path / "x.mgh").doubts)["NO_ORIENTATION"]
    data[28:34] = b"\0\1" + np.array([-1], ">f4").tobytes()
    (tmp_path / "x.mgh").write_bytes(data)
    for read in (read_volume, read_geometry):
        with pytest.raises(SourceError) as caught:
            read(tmp_path / "x.mgh")
        assert caught.value.code == "BAD_AFFINE"


@pytest.mark.parametrize("name", ["T1.mgz", "aseg.mgz"])
def test_a_real_freesurfer_subject(name: str, data: Path) -> None:
    path = data / "freesurfer" / "bert" / name
    volume, theirs = read_volume(path), nib.load(path)
    assert axis_codes(volume.affine) == "LIA"
    np.testing.assert_array_equal(volume.voxels, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(volume.affine, theirs.affine)
    assert volume.doubts == ()
