"""NIfTI-Zarr: what the package nifti-zarr writes is read as the NIfTI file that it was, and it reads what we write."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import niizarr
import numpy as np
import pytest

from multiseg.errors import SourceError, UsageError
from multiseg.labels import LabelSpace
from multiseg.store.cases import Channel, sha256_of
from multiseg.store.formats.label_table import rows_of_space
from multiseg.store.formats.nifti_zarr_files import ZarrContent, check_zarr_file, write_nifti_zarr
from multiseg.store.formats.read_volume import read_geometry, read_volume

SHAPE = (7, 6, 5)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = nib.eulerangles.euler2mat(0.3, -0.2, 0.15) @ np.diag([-0.9, 1.1, 2.5])
OBLIQUE[:3, 3] = [31.25, -12.5, 7.125]


NEW_WRITER = version("nifti-zarr") not in ("1.0.0rc8",)


def image_of(dtype: str, shape: tuple[int, ...] = SHAPE) -> nib.Nifti1Image:
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    image = nib.Nifti1Image(voxels, OBLIQUE, dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    return image


def converted(folder: Path, image: nib.Nifti1Image, **options: object) -> tuple[Path, Path]:
    """The image as NIfTI, and as NIfTI-Zarr by the package."""
    file, into = folder / "T1.nii", folder / "T1.nii.zarr"
    nib.save(image, file)
    if options.get("zarr_version") == 2 and NEW_WRITER:
        pytest.skip("this nifti-zarr no longer writes Zarr 2")
    niizarr.nii2zarr(nib.load(file), str(into), chunk=4, **options)
    return file, into


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("int16", {}),
        ("float32", {"zarr_version": 2}),
        (">i2", {"zarr_version": 2}),
        ("uint8", {"nb_levels": 2, "shard": 8}),
    ],
)
def test_it_is_the_nifti_file_that_it_was(tmp_path: Path, dtype: str, options: dict[str, object]) -> None:
    image = image_of(dtype.lstrip(">"))
    if dtype[0] == ">":
        image = nib.Nifti1Image(image.dataobj, OBLIQUE, header=image.header.as_byteswapped(">"))
    image.header.set_slope_inter(*((1, 0) if dtype == "uint8" else (0.5, 3)))
    file, into = converted(tmp_path, image, **options)
    one, other = read_volume(file), read_volume(into)
    np.testing.assert_array_equal(other.voxels, one.voxels)
    assert other.voxels.dtype == one.voxels.dtype
    np.testing.assert_allclose(other.affine, one.affine, atol=1e-6)
    assert other.doubts == one.doubts
    assert other.sha256 == sha256_of(into) != one.sha256
    assert read_geometry(into).shape == SHAPE


def test_axes_of_ome_zarr_0_6(tmp_path: Path) -> None:
    """They are those of the coordinate system that the array's transformation leads to, wherever it stands."""
    file, into = converted(tmp_path, image_of("int16"))
    metadata = json.loads((into / "zarr.json").read_text())
    (scales,) = metadata["attributes"]["ome"]["multiscales"]
    if "axes" in scales:
        axes = scales.pop("axes")
        others = [{"name": "world", "axes": axes[::-1]}, {"name": "intrinsic", "axes": axes}]
        scales["coordinateSystems"] = others
        scales["datasets"][0]["coordinateTransformations"][0]["output"] = {"name": "intrinsic"}
        (into / "zarr.json").write_text(json.dumps(metadata))
    np.testing.assert_array_equal(read_volume(into).voxels, read_volume(file).voxels)
    scales["coordinateSystems"] = []
    (into / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(SourceError, match=r"OME metadata .* are incomplete"):
        read_volume(into)


def test_a_volume_of_several(tmp_path: Path) -> None:
    file, into = converted(tmp_path, image_of("int16", (*SHAPE, 3)))
    for index in range(3):
        ours, theirs = read_volume(Channel(into, index)), read_volume(Channel(file, index))
        np.testing.assert_array_equal(ours.voxels, theirs.voxels)
    with pytest.raises(SourceError, match="3-D"):
        read_volume(into)


def test_chunks_that_are_not_there_are_doubted(tmp_path: Path) -> None:
    _, into = converted(tmp_path, image_of("int16"))
    before = sha256_of(into)
    next(path for path in sorted((into / "0" / "c").rglob("*")) if path.is_file()).unlink()
    (code, text), *_ = read_volume(into).doubts
    assert code == "MISSING_CHUNKS"
    assert "1 of 8 chunks are not stored and are read as 0" in text
    assert sha256_of(into) != before


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    _, good = converted(tmp_path, image_of("int16"))

    def broken(name: str) -> Path:
        shutil.copytree(good, into := tmp_path / name / "T1.nii.zarr")
        return into

    into = broken("header")
    shutil.rmtree(into / "nifti")
    with pytest.raises(SourceError, match="has no array 'nifti'"):
        read_volume(into)
    into = broken("bytes")
    shutil.rmtree(into / "nifti" / "c")
    with pytest.raises(SourceError, match="the bytes of its NIfTI header are missing"):
        read_volume(into)
    into = broken("shape")
    text = json.loads((into / "0" / "zarr.json").read_text())
    text["shape"][2] = 6
    (into / "0" / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(SourceError, match=r"its header says \(7, 6, 5\) voxels, but its array has \(6, 6, 5"):
        read_volume(into)
    into = broken("type")
    text["shape"][2], text["data_type"] = 7, "int32"
    (into / "0" / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(SourceError, match="16 bits a voxel, but its array is int32"):
        read_volume(into)
    into = broken("axes")
    text = json.loads((into / "zarr.json").read_text())
    del text["attributes"]["ome"]["multiscales"]
    (into / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(SourceError, match="OME metadata"):
        read_volume(into)
    into = broken("chunk")
    chunk = next(path for path in (into / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"cannot read .*T1\.nii\.zarr"):
        read_volume(into)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_the_package_reads_what_we_write(tmp_path: Path, num_channels: int) -> None:
    shape = SHAPE if num_channels == 1 else (*SHAPE, 1, num_channels)
    image, labels = image_of("float32", shape), image_of("uint8")
    if num_channels > 1:
        np.asarray(image.dataobj)[..., 1] = 0
    rows, names = rows_of_space(LabelSpace.of(["lesion"])), ("FLAIR", "T1")[:num_channels]
    into = tmp_path / "x.nii.zarr"
    write_nifti_zarr(into, ZarrContent(image, names, {"ms": (labels, rows)}))
    for path, expected in ((into, image), (into / "labels" / "ms", labels)):
        found = niizarr.zarr2nii(str(path), str(tmp_path / "back.nii"))
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
        assert found.get_data_dtype() == expected.get_data_dtype()
    ome = json.loads((into / "zarr.json").read_text())["attributes"]["ome"]
    assert [channel["label"] for channel in ome["omero"]["channels"]] == list(names)
    for index in range(num_channels):
        volume = read_volume(Channel(into, index))
        np.testing.assert_array_equal(volume.voxels, np.asarray(image.dataobj).reshape(*SHAPE, -1)[..., index])
        assert volume.doubts == ()  # chunks of zeros are stored
    assert {path.name for path in tmp_path.iterdir()} == {"x.nii.zarr", "back.nii"}


def test_only_a_nifti_zarr_is_replaced_and_only_if_asked(tmp_path: Path) -> None:
    into = tmp_path / "x.nii.zarr"
    check_zarr_file(into, overwrite=False)
    write_nifti_zarr(into, ZarrContent(image_of("int16"), ("T1",)))
    with pytest.raises(UsageError, match="already exists"):
        check_zarr_file(into, overwrite=False)
    check_zarr_file(into, overwrite=True)
    write_nifti_zarr(into, ZarrContent(image_of("uint8"), ("T1",)))
    assert read_volume(into).voxels.dtype == np.uint8
    (tmp_path / "other.nii.zarr").mkdir()
    (tmp_path / "file.nii.zarr").write_text("x")
    for name in ("other.nii.zarr", "file.nii.zarr"):
        with pytest.raises(UsageError, match="is not a NIfTI-Zarr, and is not replaced"):
            check_zarr_file(tmp_path / name, overwrite=True)
