"""What a header claims is held against its file before memory is asked for."""

import gzip
import re
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from multiseg.errors import SourceError
from multiseg.store.formats.compression import gunzip, gunzip_head, gunzip_length, unpack
from multiseg.store.formats.dicom_elements import check_elements
from multiseg.store.formats.dicom_series import read_slice
from multiseg.store.formats.file_lengths import check_length, smallest_face
from multiseg.store.formats.read_volume import read_geometry, read_volume

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (5, 6, 7)
VOXELS = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
MB = 1_000_000


def nifti(folder: Path) -> bytes:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), folder / "whole.nii")
    return (folder / "whole.nii").read_bytes()


def with_sizes(data: bytes, *sizes: int) -> bytes:
    return data[:42] + struct.pack("<3h", *sizes) + data[48:]


def peak_of_reading(path: Path, match: str) -> int:
    """Bytes at the height of reading a file, which is refused."""
    tracemalloc.start()
    try:
        for read in (read_geometry, read_volume):
            with pytest.raises(SourceError, match=match) as caught:
                read(path)
            assert (caught.value.code, caught.value.file) == ("DAMAGED_FILE", str(path))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((5, 6, 8), "shorter than its header says: 772 of 832 bytes"),
        ((5, 6, 6), "longer than its header says: 772 bytes, but the header claims 712"),
        ((4, 6, 7), "longer than its header says: 772 bytes, but the header claims 688"),
        ((5, 5, 7), "longer than its header says: 772 bytes, but the header claims 702"),
        ((2000, 2000, 2000), r"shorter than its header says: \d+ of 16000000352 bytes"),
    ],
)
def test_sizes_that_do_not_fit_the_file(sizes: tuple[int, ...], said: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    data = with_sizes(nifti(tmp_path), *sizes)
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert peak_of_reading(path, said) < 2 * MB


@pytest.mark.slow
@pytest.mark.parametrize("lie", ["honest", "a false length", "several members"])
def test_a_gzip_bomb_is_never_unpacked_into_memory(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    data, zeros = nifti(tmp_path), gzip.compress(bytes(64 * MB), 9)
    bomb = gzip.compress(data + bytes(64 * MB), 9)
    whole = {
        "honest": bomb,
        "a false length": bomb[:-4] + len(data).to_bytes(4, "little"),
        "several members": gzip.compress(data) + zeros,
    }
    path.write_bytes(whole[lie])
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"longer than its header says|decompresses to more than") as caught:
        read_volume(path)
    assert caught.value.code == "DAMAGED_FILE"
    assert tracemalloc.get_traced_memory()[1] < 25 * MB
    tracemalloc.stop()


def test_what_follows_the_voxels_of_an_mgz_file_is_right(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(VOXELS, AFFINE.astype(np.float32)), tmp_path / "x.mgh")
    (tmp_path / "x.mgz").write_bytes(gzip.compress((tmp_path / "x.mgh").read_bytes() + bytes(5000)))
    np.testing.assert_array_equal(read_volume(tmp_path / "x.mgz").voxels, VOXELS)


@pytest.mark.parametrize(
    ("name", "size", "other"), [("x.mha", b"DimSize = 5 6 7", b"DimSize = 5 6 6"), ("x.nrrd", b"5 6 7", b"5 5 7")]
)
def test_text_headers_that_claim_too_little(name: str, size: bytes, other: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS.T), str(path))
    np.testing.assert_array_equal(read_volume(path).voxels, VOXELS)
    path.write_bytes(path.read_bytes().replace(size, other))
    assert peak_of_reading(path, "longer than its header says") < 2 * MB


@pytest.mark.parametrize("name", ["x.mha", "x.nrrd"])
def test_packed_voxels_that_claim_too_much(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS.T), str(path), useCompression=True)
    path.write_bytes(path.read_bytes().replace(b"5 6 7", b"5000 6000 7000"))
    assert peak_of_reading(path, "shorter than its header says") < 2 * MB


@pytest.mark.parametrize("target", ["/dev/zero", "."])
def test_voxels_that_lie_in_no_file(target: str, tmp_path: Path) -> None:
    path = tmp_path / "x.mhd"
    path.write_text(
        "ObjectType = Image\nNDims = 3\nCompressedData = True\nDimSize = 5 6 7\nElementType = MET_SHORT\n"
        f"ElementSpacing = 1 1 1\nElementDataFile = {target}\n"
    )
    for read in (read_geometry, read_volume):
        with pytest.raises(SourceError, match="has its voxels in") as caught:
            read(path)
        assert caught.value.code == "MISSING_FILE"


def test_a_metaimage_without_a_voxel_size_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS.T), str(path))
    assert "NO_VOXEL_SIZE" not in dict(read_volume(path).doubts)
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing", b"ElementSpacinf"))
    assert "1 mm is assumed" in dict(read_volume(path).doubts)["NO_VOXEL_SIZE"]


@pytest.mark.slow
def test_unpacking() -> None:
    data = np.random.default_rng(1).bytes(300_000) + bytes(900_000)
    packed = gzip.compress(data[:700_000]) + gzip.compress(data[700_000:]) + bytes(100)
    assert gunzip(packed, len(data)) == data
    assert gunzip_length(packed, 10**9) == len(data)
    assert gunzip_length(packed, 1000) > 1000
    assert gunzip_head(packed[:150_000], 100_000) == data[:100_000]
    with pytest.raises(ValueError, match="more than the 1199999 bytes"):
        gunzip(packed, len(data) - 1)
    for cut in (1, 10, len(packed) // 2):
        with pytest.raises(EOFError):
            gunzip(gzip.compress(data)[:-cut], len(data))
    import bz2
    import zlib

    assert unpack(bz2.compress(data) + bz2.compress(data), "bzip2", 2 * len(data)) == data + data
    assert unpack(zlib.compress(data), "zlib", len(data)) == data
    with pytest.raises(ValueError, match="more than"):
        unpack(bz2.compress(data), "bzip2", 1000)
    with pytest.raises(EOFError):
        unpack(bz2.compress(data)[:-8], "bzip2", len(data))


def test_faces() -> None:
    assert smallest_face((5, 6, 7), 2) == 60
    assert smallest_face((5, 6, 1), 2) == 10
    check_length(Path("x"), 100, 90)  # nothing is known of what follows
    check_length(Path("x"), 100, 90, 11)
    with pytest.raises(SourceError, match="longer"):
        check_length(Path("x"), 100, 90, 10)


def dicom(path: Path) -> bytes:
    """A slice of 24 x 26 voxels with a patient's name."""
    image = SimpleITK.GetImageFromArray(np.arange(24 * 26, dtype=np.int16).reshape(26, 24))
    for key, text in {"0010|0010": "SECRET^NAME", "0010|0020": "P055", "0008|0060": "MR"}.items():
        image.SetMetaData(key, text)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    writer.Execute(image)
    return path.read_bytes()


def explicit(data: bytes) -> bytes:
    """The same file's first elements with a sequence, their kinds written out."""
    meta = data[: data.index(b"1.2.840.10008.1.2\0")].rsplit(b"\x02\0\x10\0UI", 1)[0]
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\0\x50\x11UI\x04\x001.2\0\xfe\xff\x0d\xe0\0\0\0\0"
    body = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    body += b"\x10\0\x10\0PN\x0c\0SECRET^NAME " + b"\x28\0\x10\0US\x02\0\x1a\0" + b"\x28\0\x11\0US\x02\0\x18\0"
    body += (
        b"\x28\0\0\x01US\x02\0\x10\0" + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 24 * 26 * 2) + bytes(24 * 26 * 2)
    )
    return meta + b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0" + body


def flipped(data: bytes, before: bytes, offset: int, bit: int) -> bytes:
    """One bit flipped so many bytes before some bytes."""
    at = data.index(before) - offset
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


@pytest.mark.parametrize("kind", ["implicit", "explicit"])
@pytest.mark.parametrize("damage", ["a length", "rows", "voxels", "the head"])
def test_a_dicom_element_that_claims_more_than_the_file_has(damage: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    data = dicom(path)
    if kind == "explicit":
        data = explicit(data)
        path.write_bytes(data)
    check_elements(path)
    pixels, rows = data.index(b"\xe0\x7f\x10\0"), data.index(b"\x28\0\x10\0") + 8
    damaged, said = {
        # The last byte of an implicit length counts in 16 million; GDCM asked for 268 MB for one such name.
        "a length": (
            flipped(data, b"SECRET", 1, 4),
            r"\(0010,0010\) claims 268435468 bytes" if kind == "implicit" else r"\(0010,0010\) claims 4108 bytes",
        ),
        "rows": (
            data[:rows] + b"\x1b" + data[rows + 1 :],
            "image of 27 x 24 voxels should have 1296 bytes, but has 1248",
        ),
        "voxels": (data[:-30], r"\(7fe0,0010\) claims 1248 bytes, but 1218 are left"),
        "the head": (data[:132] + b"\x22" + data[133:], "it has no transfer syntax"),
    }[damage]
    assert pixels
    path.write_bytes(damaged)
    for read in (check_elements, read_slice):
        with pytest.raises(SourceError, match=said) as caught:
            read(path)
        assert (caught.value.code, caught.value.file) == ("DAMAGED_FILE", str(path))


def test_dicom_sequences_are_walked_through(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    data = explicit(dicom(path))
    inside = data.index(b"\x50\x11UI\x04\0") + 4
    path.write_bytes(data[:inside] + b"\xff\xff" + data[inside + 2 :])
    with pytest.raises(SourceError, match=r"\(0008,1150\) claims 65535 bytes"):
        check_elements(path)
    path.write_bytes(data.replace(b"\xfe\xff\x00\xe0", b"\xfe\xff\x00\xe1"))
    with pytest.raises(SourceError, match=re.escape("(fffe,e100) in place of an item")):
        check_elements(path)
    path.write_bytes(data.replace(b"\x10\0\x10\0PN", b"\x10\0\x10\0QN"))
    with pytest.raises(SourceError, match="unknown value representation 'QN'"):
        check_elements(path)
