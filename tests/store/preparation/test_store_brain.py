"""Where the brain is: given, found by its brightness, or by another program that is asked out of process."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.errors import ResourceError, SourceError, UsageError
from multiseg.store.cases import CaseFiles
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import to_ras
from multiseg.store.preparation.brain import otsu_head
from multiseg.store.preparation.extraction import run_extraction
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.prepare import PreparedCase, prepare_case
from multiseg.store.preparation.recipe import Recipe

SHAPE = (40, 48, 36)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def radius() -> np.ndarray:
    """1 on the outer surface of a head that fills most of the box."""
    at = (np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2) / (np.array(SHAPE) * 0.4)
    return np.linalg.norm(at, axis=-1)


def head() -> np.ndarray:
    """Noisy air, bright scalp, dark skull, brain with dark ventricles; nothing is 0."""
    far = radius()
    image = np.select([far < 0.2, far < 0.8, far < 0.9, far < 1], [60, 300, 20, 400], 8)
    return (image + np.random.default_rng(0).normal(0, 3, SHAPE)).clip(1).astype(np.float32)


def save(folder: Path, name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), folder / name)
    return folder / name


def prepared(rule: str, images: dict[str, Path], mask: Path | None = None) -> PreparedCase:
    return prepare_case(CaseFiles("P1", images, brain_mask=mask), {}, Recipe((4.0,) * 3, brain_mask=rule))


def codes(case: PreparedCase) -> set[str]:
    return {doubt.code for doubt in case.doubts}


def test_otsu_finds_the_head_with_all_that_is_in_it() -> None:
    found, truth = otsu_head(head(), Grid(AFFINE, SHAPE)), radius() < 1
    assert 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth)) > 0.95
    assert found[radius() < 0.9].all()
    # A far bright spot, such as a marker, is no head.
    image = head()
    image[1:3, 1:3, 1:3] = 500
    assert not otsu_head(image, Grid(AFFINE, SHAPE))[:4, :4, :4].any()


def test_otsu_of_a_stripped_brain_is_the_brain() -> None:
    image = np.where(radius() < 0.8, head(), 0)
    found, truth = otsu_head(image, Grid(AFFINE, SHAPE)), radius() < 0.8
    assert 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth)) > 0.95


def test_otsu_by_recipe_masks_every_sequence_by_the_reference(tmp_path: Path) -> None:
    images = {"FLAIR": save(tmp_path, "F.nii", head()), "T1": save(tmp_path, "T1.nii", head()[:, ::-1] * 2)}
    case = prepared("otsu", images)
    np.testing.assert_array_equal(case.images[0] != 0, case.images[1] != 0)
    assert "NO_BACKGROUND" not in codes(case)
    assert "NO_BACKGROUND" in codes(prepared("nonzero", images))
    assert "brain mask made from it by Otsu's threshold" in case.sources[0]["steps"]
    first = np.rint(case.grid.affine[:3, 3] / 4).astype(int)
    assert np.all(np.abs(first - np.argwhere(radius() < 1).min(axis=0)) <= 1)


def test_a_rule_that_needs_a_mask_has_one_or_says_so(tmp_path: Path) -> None:
    images = {"T1": save(tmp_path, "T1.nii", head())}
    with pytest.raises(
        SourceError, match=r"this case has no brain mask, which the recipe needs\. Add its mask, or choose another rule"
    ) as caught:
        prepared("file", images)
    assert caught.value.code == "NO_BRAIN_MASK"
    mask = save(tmp_path, "m.nii", (radius() < 0.8).astype(np.uint8))
    assert np.count_nonzero(prepared("file", images, mask).images) == np.count_nonzero(radius() < 0.8)
    # Another rule leaves the mask alone, and its provenance says that.
    ignored = prepared("otsu", images, mask)
    assert np.count_nonzero(ignored.images) > 1.2 * np.count_nonzero(radius() < 0.8)
    assert ignored.sources[1]["steps"][-1] == "not used: the recipe takes the brain by otsu"


def program(folder: Path, body: str) -> str:
    """A command with a little brain extractor in it; `image` and `mask` are the file names it got."""
    script = folder / "my bet.py"
    script.write_text(f"import sys, nibabel as nib, numpy as np\nimage, mask = sys.argv[1:3]\n{body}\n")
    return f"{sys.executable} '{script}' {{image}} {{mask}}"


BRIGHT = (
    "i = nib.load(image)\n"
    "nib.save(nib.Nifti1Image((i.get_fdata() > 200).astype(np.uint8), i.affine), mask)\n"
    "print(image, file=sys.stderr)"
)


@pytest.mark.slow
def test_a_program_makes_the_mask(tmp_path: Path) -> None:
    """It gets the reference, and its answer is taken through its own orientation."""
    flip = (
        "i = nib.as_closest_canonical(nib.load(image)).as_reoriented([[0, -1], [2, 1], [1, 1]])\n"
        "nib.save(nib.Nifti1Image((i.get_fdata() > 200).astype(np.uint8), i.affine), mask)"
    )
    images = {"FLAIR": save(tmp_path, "F.nii", head()), "T1": save(tmp_path, "T1.nii", head() + 5)}
    for body in (BRIGHT, flip):
        command = program(tmp_path, body)
        case = prepared(f"command {command}", images)
        assert np.count_nonzero(case.images[0]) == np.count_nonzero(head() > 200)
        assert f"brain mask made from it by {command!r}" in case.sources[0]["steps"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('no licence found')", r"failed with exit code 1\. .*: 'no licence found'"),
        ("print('thinking')", r"wrote no mask\. .*: 'thinking'"),
        (
            "nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), mask)",
            r"has the shape \(5, 5, 5\), but",
        ),
        (BRIGHT.replace("> 200", "> 1e9"), "has 0 ml, which is not a brain"),
        ("import time; time.sleep(60)", r"did not finish within 0\.5 s"),
    ],
)
def test_a_program_that_fails_says_why_and_how_to_try_it(body: str, said: str, tmp_path: Path) -> None:
    image = save(tmp_path, "T1 of P1.nii", head())
    limit = 0.5 if "sleep" in body else 60.0
    with pytest.raises(SourceError, match=rf"brain extraction .*T1 of P1\.nii {said}|.*{said}") as caught:
        run_extraction(program(tmp_path, body), to_ras(read_volume(image)), image, limit)
    assert caught.value.code == "BRAIN_COMMAND"
    assert str(caught.value).endswith(f"my bet.py' '{image}' mask.nii.gz")


def test_no_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no fault of the case, so it ends the ingest."""
    images = {"T1": save(tmp_path, "T1.nii", head())}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ResourceError, match=r"cannot write .*gone: .*No such file.* TMPDIR=FOLDER"):
        prepared("command cp {image} {mask}", images)


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    image = save(tmp_path, "T1.nii", head())
    volume = to_ras(read_volume(image))
    with pytest.raises(
        UsageError, match=r"cannot run the program 'no-such-bet' for brain masks: No such file.* Is it installed\?"
    ):
        run_extraction("no-such-bet {image} {mask}", volume, image)
    told = program(tmp_path, BRIGHT + "\nopen(mask + '.args', 'w')")
    mask, _ = run_extraction(f"{told} ; touch {tmp_path}/trace $HOME", volume, image)
    assert mask.any()
    assert not (tmp_path / "trace").exists()
    with pytest.raises(UsageError, match="invalid command for brain masks"):
        run_extraction("bet 'open {image} {mask}", volume, image)
