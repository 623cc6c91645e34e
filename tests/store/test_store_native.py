"""The way home: what is written on the patient's own grid is what came from there, however the file was turned."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from json_documents import checked
from nibabel.orientations import apply_orientation, inv_ornt_aff
from sweeps import sample

from multiseg.cli.app import run
from multiseg.errors import StoreError
from multiseg.store.native import native_image, native_label, write_native
from multiseg.store.reader import Store, open_store

SIZE_MM = (2.0, 3.0, 2.5)
SHAPE = (24, 18, 20)
TURNS = [
    np.stack([axes, signs], axis=1)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""The 48 ways to permute and flip three axes."""
CASES = sample([f"T{at:02}" for at in range(48)], 10, always=["T00", "T05", "T10", "T17", "T28", "T35", "T47"])
"""Of every permutation one at least; those that are always there have all signs of each axis."""
FINER = sample(CASES, 4, always=["T00", "T17", "T47"])


def upright() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, label and affine of an oblique phantom: a smooth blob of 1 and one of 4 with a rim of 7, no symmetry."""
    rng = np.random.default_rng(0)
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * SIZE_MM
    affine[:3, 3] = (-31, 12.5, 7)
    mm = np.stack(np.meshgrid(*[np.arange(n) * size for n, size in zip(SHAPE, SIZE_MM, strict=True)], indexing="ij"))

    def away(*centre: float) -> np.ndarray:
        return np.linalg.norm(mm - np.reshape(centre, (3, 1, 1, 1)), axis=0)

    image = np.where(away(24, 27, 25) < 26, rng.integers(50, 500, SHAPE), 0).astype(np.float32)
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[away(16, 25, 25) < 11] = 1
    label[away(33, 29, 22) < 11] = 7
    label[away(33, 29, 22) < 8] = 4
    return image, label, affine


def save_turned(folder: Path, turn: np.ndarray, case: str) -> None:
    """The phantom as a scanner would have saved it with its axes in another order and direction: the same patient."""
    image, label, affine = upright()
    own = affine @ inv_ornt_aff(turn, SHAPE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("FLAIR", image), ("lesion", label)):
        saved = nib.Nifti1Image(np.ascontiguousarray(apply_orientation(array, turn)), own)
        saved.header["descrip"] = b"made by hand"
        nib.save(saved, folder / f"{case}_{name}.nii.gz")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turned")
    for case in CASES:
        save_turned(folder / "all", TURNS[int(case[1:])], case)
    for case in FINER:
        save_turned(folder / "finer", TURNS[int(case[1:])], case)
    return folder / "all"


def ingest(sources: Path, url: Path, spacing: str) -> Store:
    code = run([
        "ingest", str(sources), "--store", str(url), "--database", "turned", "--pattern", "{case}_{modality}.nii.gz",
        "--label", "lesion={case}_lesion.nii.gz", "--labels", "1=core,4=active,7=rim", "--spacing", spacing,
    ])  # fmt: skip
    assert code == 0
    return open_store(str(url))


@pytest.fixture(scope="module")
def same_size(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The cases in the voxel size that they have: nothing is resampled, only turned."""
    return ingest(sources, tmp_path_factory.mktemp("store") / "same.zarr", ",".join(map(str, SIZE_MM)))


@pytest.fixture(scope="module")
def finer(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Some in voxels of 1.7 mm, which fit the files' of 2 x 3 x 2.5 mm nowhere."""
    return ingest(sources.parent / "finer", tmp_path_factory.mktemp("store") / "finer.zarr", "1.7")


def source(folder: Path, case: str, name: str) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{case}_{name}.nii.gz").dataobj)


def test_there_are_48_turns_and_all_differ() -> None:
    _, label, _ = upright()
    assert (
        len({(turned := apply_orientation(label, turn)).tobytes() + str(turned.shape).encode() for turn in TURNS}) == 48
    )


@pytest.mark.parametrize("case", CASES)
def test_without_resampling_a_label_comes_home_voxel_for_voxel(
    case: str, same_size: Store, sources: Path, tmp_path: Path
) -> None:
    write_native(same_size["turned"], same_size["turned"][case], tmp_path)
    written = nib.load(tmp_path / "label-lesion.nii.gz")
    original = nib.load(sources / f"{case}_lesion.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(original.dataobj))
    np.testing.assert_array_equal(written.affine, original.affine)
    assert written.header["descrip"] == original.header["descrip"] == b"made by hand"
    flair = np.asarray(nib.load(tmp_path / "FLAIR.nii.gz").dataobj)
    expected = source(sources, case, "FLAIR")
    np.testing.assert_array_equal(flair == 0, expected == 0)
    np.testing.assert_allclose(flair, expected, atol=0.2)  # float16 of values up to 2 standard deviations of 130


@pytest.mark.slow
@pytest.mark.parametrize("case", FINER)
def test_through_finer_voxels_a_label_comes_home_to_a_dice_of_0_98(case: str, finer: Store, sources: Path) -> None:
    """Measured: the Dice of all lesions (two smooth balls 22 mm wide, 9 voxels) and of the core alone, there and
    back between voxels of 2 x 3 x 2.5 mm and of 1.7 mm. A lesion of few voxels, or a store with voxels larger
    than the file's, keeps less."""
    database = finer["turned"]
    home = database.schemas["lesion"].decode(native_label(database, database[case], "lesion"))
    expected = source(sources, case, "lesion")
    assert home.shape == expected.shape
    assert dice(home > 0, expected > 0) >= 0.98
    assert dice(home == 1, expected == 1) >= 0.98


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_a_resampled_image_comes_home_dampened_but_in_place(finer: Store, sources: Path) -> None:
    """White noise loses contrast on the way; what is left is where it was, and the border is not darkened."""
    for case in ("T00", "T17", "T47"):
        home = native_image(finer["turned"], finer["turned"][case], "FLAIR")
        expected = source(sources, case, "FLAIR")
        inside = (home > 0) & (expected > 0)
        assert np.corrcoef(home[inside], expected[inside])[0, 1] > 0.85
        assert dice(home > 0, expected > 0) > 0.98
        assert home[inside].min() > 40


def test_a_real_patient_comes_home(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ms").mkdir()
    (tmp_path / "ms" / "patient07").symlink_to(data / "ms" / "patient07")
    url = str(tmp_path / "brain.zarr")
    pattern = ["--pattern", "{case}/{modality}.nii.gz", "--label", "{case}/lesion.nii.gz"]
    assert run(["ingest", str(tmp_path / "ms"), "--store", url, *pattern]) == 0
    assert run(["info", url, "--case", "ms/patient07", "--write", str(tmp_path / "home")]) == 0
    for ours, theirs, tolerance in (("label-lesion", "lesion", 0), ("FLAIR", "FLAIR", 0.5), ("T1", "T1", 0.5)):
        home = nib.load(tmp_path / "home" / f"{ours}.nii.gz")
        original = nib.load(data / "ms" / "patient07" / f"{theirs}.nii.gz")
        np.testing.assert_array_equal(home.affine, original.affine)
        array, expected = np.asarray(home.dataobj), np.asarray(original.dataobj)
        inside = array != 0 if tolerance else np.s_[:]
        np.testing.assert_allclose(array[inside], expected[inside], atol=tolerance)


# --- numbers, names, places ---


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Ingest one case with these label values and options, and write it home from the command line."""

    def write(label: np.ndarray, *options: str) -> Path:
        image, _, affine = upright()
        folder = tmp_path / "source"
        folder.mkdir()
        nib.save(nib.Nifti1Image(image, affine), folder / "P_T1.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "P_seg.nii.gz")
        arguments = ["--pattern", "{case}_{modality}.nii.gz", "--label", "seg={case}_seg.nii.gz", *options]
        url = str(tmp_path / "brain.zarr")
        spacing = ",".join(map(str, SIZE_MM))
        assert run(["ingest", str(folder), "--store", url, "--database", "db", "--spacing", spacing, *arguments]) == 0
        assert run(["info", url, "--case", "db/P", "--write", str(tmp_path / "home")]) == 0
        assert "label-seg.nii.gz" in capsys.readouterr().out
        return tmp_path / "home"

    return write


def test_big_numbers_and_several_for_one_structure(written: Callable[..., Path]) -> None:
    label = np.zeros(SHAPE, dtype=np.int32)
    label[4:8, 4:8, 4:8] = 2035
    label[8:10, 4:8, 4:8] = 1035
    label[4:8, 8:10, 4:8] = -2
    label[4:8, 4:8, 8:10] = 9
    home = written(label, "--labels", "seg:2035=insula,1035=insula,-2=unsure,9=ignore")
    found = np.asarray(nib.load(home / "label-seg.nii.gz").dataobj)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.where(label == 1035, 2035, label))
    assert (home / "label-seg.tsv").read_text().splitlines() == [
        "index\tname\tkind\tcolor\tstands_for",
        "0\tbackground\tn/a\t#000000\t0",
        "2035\tinsula\tlesion\t#4daf4a\t2035,1035",
        "-2\tunsure\tlesion\t#e7b416\t-2",
        "9\tignore\tn/a\t#000000\t9",
    ]
    assert "    2    " not in (home / "label-seg.itksnap.txt").read_text()


def test_nothing_is_written_over(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    home = written(np.pad(np.ones((4, 4, 4), np.uint8), [(6, n - 10) for n in SHAPE]))
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    assert set(before) == {"T1.nii.gz", "label-seg.nii.gz", "label-seg.tsv", ".multiseg-labels.json"}
    (home / "T1.nii.gz").unlink()
    url = str(home.parent / "brain.zarr")
    assert run(["info", url, "--case", "db/P", "--write", str(home)]) == 2
    assert "label-seg.nii.gz already exists. Choose another name, or pass --overwrite" in capsys.readouterr().err
    assert {path.name for path in home.iterdir()} == {"label-seg.nii.gz", "label-seg.tsv", ".multiseg-labels.json"}
    assert run(["info", url, "--write", str(home)]) == 2
    assert "--write needs a case" in capsys.readouterr().err


def test_what_a_case_does_not_have(same_size: Store, store_url: str) -> None:
    database = same_size["turned"]
    with pytest.raises(StoreError, match=r"case 'T00' of 'turned' has no annotation 'tissue'\. It has: lesion"):
        native_label(database, database["T00"], "tissue")
    with pytest.raises(StoreError, match=r"case 'T00' of 'turned' has no 'T1'\. It has: FLAIR"):
        native_image(database, database["T00"], "T1")
    cedar = open_store(store_url)["cedar"]
    with pytest.raises(StoreError, match="case 'C003' of 'cedar' has no 'FLAIR'"):
        native_image(cedar, cedar["C003"], "FLAIR")


def test_a_header_that_does_not_place_the_grid_is_left_out(
    same_size: Store, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an ingest from a file that is not NIfTI, or whose affine was not believed."""
    database = same_size["turned"]
    native, header = database.native(database["T05"])
    moved = nib.Nifti1Header(header)
    moved.set_sform(np.diag([1.0, 1, 1, 1]), code=1)
    for at, other in enumerate((bytes(moved.binaryblock), b"")):
        monkeypatch.setattr(database, "native", lambda case, other=other: (native, other))
        write_native(database, database["T05"], tmp_path / str(at))
        written = nib.load(tmp_path / str(at) / "label-lesion.nii.gz")
        np.testing.assert_allclose(written.affine, native.affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(written.dataobj), source(sources, "T05", "lesion"))


# --- provenance ---


def test_the_provenance_of_a_case(same_size: Store, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", same_size.url, "--case", "turned/T05", "--json"]) == 0
    told = checked(capsys.readouterr().out, "info")
    digests = {s["role"]: s["sha256"] for s in told["sources"]}
    file = sources / "T05_FLAIR.nii.gz"
    assert digests["FLAIR"] == hashlib.sha256(file.read_bytes()).hexdigest()
    image = nib.load(file)
    assert told["native_shape"] == list(image.shape)
    assert told["native_voxel_mm"] == pytest.approx(image.header.get_zooms(), abs=1e-4)
    assert told["native_axes"] == "".join(nib.aff2axcodes(image.affine))
    np.testing.assert_allclose(told["native_affine"], image.affine)
    assert any("turned from" in step for s in told["sources"] for step in s["steps"])

    assert run(["info", same_size.url, "--case", "turned/T05"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "x".join(map(str, image.shape)),
        told["native_axes"],
        digests["FLAIR"][:16],
        "z-score inside the brain",
    ):
        assert text in shown
    assert f"{image.affine[0, 3]:.6g}" in shown
