"""The brain in scans with their skull, found by the network that a model carries; a doubtful mask is named."""

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from json_documents import checked
from torch import Tensor, nn

from multiseg.cli.app import run as main_run
from multiseg.errors import CheckpointError, SourceError, UsageError
from multiseg.evaluation.brain_finding import find_brain
from multiseg.evaluation.brain_mask_file import write_brain_mask
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.preparation import recipe_for
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.brain_network import BRAIN_FILE, brain_network_at, carry_on, load_brain_network, place_in
from multiseg.models.builders import NETWORKS, Network, PartRules, build
from multiseg.models.contrasts import Contrasts, histogram
from multiseg.models.saved import BEST, Model, ModelInfo, save_model
from multiseg.store.findings import Doubt
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import Volume
from multiseg.store.preparation.grids import Grid
from multiseg.store.preparation.recipe import Recipe

SHAPE = (60, 64, 60)
SPACING_MM = 3.0
AFFINE = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])


class Bright(nn.Module):
    """Says brain where the image is bright; how sure it is, and what is bright, can be set."""

    def __init__(self, *ignored: object, sure: float = 9.0, least: float = 0.7, **also_ignored: object) -> None:
        super().__init__()
        self.sure, self.least = nn.Parameter(torch.tensor(sure)), nn.Parameter(torch.tensor(least))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        return torch.where(images > self.least, self.sure, -self.sure)


BRAIN_INFO = ModelInfo(
    builder="bright", numbers={}, axis=ModalityAxis("any sequence"), space=LabelSpace.of("tissue:brain"),
    spacing_mm=(6.0, 6.0, 6.0), patch=(16, 16, 16), trained_on={"any sequence": ("ms",)},
    databases={"ms": {"pathology": "ms", "num_cases": 3, "licence": "CC0"}},
)  # fmt: skip
INFO = ModelInfo(
    builder="multi_unet", numbers={"widths": [2, 4], "dropout": 0.0}, axis=ModalityAxis(("FLAIR", "T1")),
    space=LabelSpace(), spacing_mm=(6.0, 6.0, 6.0), patch=(16, 16, 16), trained_on={"FLAIR": ("ms",), "T1": ("ms",)},
    databases={"ms": {"recipe": Recipe(spacing_mm=(6.0, 6.0, 6.0), brain_mask="file").to_json()}},
)  # fmt: skip


@pytest.fixture(autouse=True)
def bright_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "bright", Network(Bright, PartRules("nothing")))


def depth_mm(centre: tuple[float, float, float] = (88.0, 95.0, 88.0)) -> np.ndarray:
    mm = SPACING_MM * np.indices(SHAPE)
    return np.asarray(np.linalg.norm(mm - np.reshape(centre, (3, 1, 1, 1)), axis=0))


def head(brain: float = 100.0, scalp: float = 50.0) -> np.ndarray:
    """A brain of 65 mm radius with a texture, a dark skull of 8 mm, a scalp of 6 mm, air."""
    far = depth_mm()
    image = np.where(far < 65, brain, np.where((far > 73) & (far < 79), scalp, 0))
    return np.asarray(image + np.random.default_rng(0).uniform(0, 2, SHAPE), np.float32)


def volume(image: np.ndarray) -> Volume:
    return Volume(image, AFFINE, b"", "", Path("scan.nii.gz"))


def found(*images: np.ndarray, sure: float = 9.0):
    network = Model(Bright(sure=sure).eval(), BRAIN_INFO)
    return find_brain(network, {f"S{n}": volume(image) for n, image in enumerate(images)}, Grid(AFFINE, SHAPE))


def ml(brain) -> float:
    return float(np.count_nonzero(brain.probability > 0.5)) * 0.216


BALL_ML = 4 / 3 * np.pi * 6.5**3


def test_the_brain_is_found_and_the_scalp_is_not() -> None:
    brain = found(head())
    assert ml(brain) == pytest.approx(BALL_ML, rel=0.08)
    assert brain.grid.spacing_mm == pytest.approx((6.0, 6.0, 6.0))
    assert brain.faults == ()


def test_holes_are_filled_and_other_parts_left_out() -> None:
    image = head()
    image[depth_mm() < 20] = 30  # a hole in the brain
    image[2:12, 2:12, 2:12] = 100  # as bright as brain, at a corner: 27 ml
    brain = found(image)
    assert ml(brain) == pytest.approx(BALL_ML, rel=0.08)
    assert brain.faults == ()
    image[2:20, 2:20, 2:20][depth_mm()[2:20, 2:20, 2:20] > 85] = 100
    (fault,) = found(image).faults
    assert "is not connected to it" in fault


def test_a_network_that_is_not_sure_is_doubted() -> None:
    (fault,) = found(head(), sure=0.9).faults
    assert "Dice of only 0." in fault


def test_a_network_that_has_not_learnt_enough_is_doubted() -> None:
    def faults(**metrics: float) -> tuple[str, ...]:
        network = Model(Bright().eval(), replace(BRAIN_INFO, metrics=metrics))
        return find_brain(network, {"T1": volume(head())}, Grid(AFFINE, SHAPE)).faults

    (fault,) = faults(score=0.73, recipe=2)
    assert "Dice of only 0.730 on synthetic scans" in fault
    assert faults(score=0.87, recipe=2) == ()
    (fault,) = faults(score=0.87)  # of a version whose networks reached more on the scans that they learnt from
    assert "Dice of only 0.870 on synthetic scans" in fault


def test_a_sequence_that_shows_another_brain_is_named() -> None:
    half = head()
    half[:30] = 0
    (fault,) = [fault for fault in found(head(), head(), half).faults if "alone" in fault]
    assert "from S2 alone the mask would be another one (Dice 0.6" in fault


def make_run(folder: Path, brain: bool = True, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    network = build("multi_unet", 2, 1, widths=[2, 4], dropout=0.0)
    save_model(folder / BEST, network, replace(INFO, **changes))
    if brain:
        save_model(folder / BRAIN_FILE, Bright(), BRAIN_INFO)
    return folder


def scan(folder: Path, image: np.ndarray | None = None) -> Path:
    write_nifti(folder / "T1.nii.gz", head() if image is None else image, AFFINE)
    return folder / "T1.nii.gz"


def run_predict(folder: Path, run: Path, brain_mask: str | None = "model", image: np.ndarray | None = None):
    options = PredictOptions(brain_mask=brain_mask)
    return predict(run, {"T1": scan(folder, image)}, folder / "out.nii.gz", options, overwrite=True)


UNTRAINED = "LOOK_AT_THIS"
"""What the lesion network, which nobody trained, says of its own answer."""


def codes(doubts: Iterable[Doubt]) -> list[str]:
    return [doubt.code for doubt in doubts if doubt.code != UNTRAINED]


def test_predict_takes_the_brain_that_the_models_network_finds(tmp_path: Path) -> None:
    result = run_predict(tmp_path, make_run(tmp_path / "run"))
    assert result.prepared.brain_ml == pytest.approx(BALL_ML, rel=0.08)
    assert "brain mask made by the model's network from T1" in result.prepared.sources[0]["steps"]
    assert codes(result.doubts) == []


def test_a_doubtful_mask_is_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    save_model(run / BRAIN_FILE, Bright(sure=0.9), BRAIN_INFO)
    doubts = run_predict(tmp_path, run).doubts
    assert codes(doubts) == ["BRAIN_UNSURE"]
    assert "Dice of only 0." in doubts[0].message


def test_a_mask_at_the_border_is_a_warning(tmp_path: Path) -> None:
    image = np.roll(head(), 22, axis=2)
    image[:, :, :22] = 0
    assert "BRAIN_CUT" in {
        doubt.code for doubt in run_predict(tmp_path, make_run(tmp_path / "run"), image=image).doubts
    }


def test_no_brain_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    save_model(run / BRAIN_FILE, Bright(least=2.0), BRAIN_INFO)
    with pytest.raises(SourceError, match="found no brain in T1") as caught:
        run_predict(tmp_path, run)
    assert caught.value.code == "EMPTY_BRAIN"


def test_a_model_without_a_network_says_how_to_add_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"carries none.*train-brain STORE --into RUN"):
        run_predict(tmp_path, make_run(tmp_path / "run", brain=False))


def test_a_scan_with_skull_stays_an_error_that_names_the_network_if_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="or model, whose own network then finds it"):
        run_predict(tmp_path, make_run(tmp_path / "with"), None)
    with pytest.raises(UsageError, match="given brain masks") as caught:
        run_predict(tmp_path, make_run(tmp_path / "without", brain=False), None)
    assert "network" not in str(caught.value)
    with pytest.raises(UsageError, match="given brain masks"):
        recipe_for(INFO, "", "T1", "refuse")


def test_a_skull_that_is_taken_for_brain_is_a_hint_at_the_network(tmp_path: Path) -> None:
    databases = {"ms": {"recipe": Recipe(spacing_mm=(6.0, 6.0, 6.0)).to_json()}}
    run = make_run(tmp_path / "run", databases=databases)
    assert {"NO_BACKGROUND", "BRAIN_NETWORK"} <= set(codes(run_predict(tmp_path, run, None).doubts))
    assert "BRAIN_NETWORK" not in [doubt.code for doubt in run_predict(tmp_path, run, "model").doubts]


def test_a_model_made_from_one_that_carries_a_network_carries_it(tmp_path: Path) -> None:
    run, child = make_run(tmp_path / "run"), tmp_path / "child"
    child.mkdir()
    carry_on(run / BEST, child)
    assert (child / BRAIN_FILE).read_bytes() == (run / BRAIN_FILE).read_bytes()
    (child / BRAIN_FILE).write_bytes(b"its own")
    carry_on(run / BEST, child)
    assert (child / BRAIN_FILE).read_bytes() == b"its own"


def test_another_model_is_no_brain_network(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / BRAIN_FILE).write_bytes((run / BEST).read_bytes())
    assert load_brain_network(run) is None
    with pytest.raises(UsageError, match=r"carries none"):
        run_predict(tmp_path, run)
    with pytest.raises(UsageError, match="never replaced"):
        place_in(run, overwrite=True)
    assert (run / BRAIN_FILE).read_bytes() == (run / BEST).read_bytes()
    (run / BRAIN_FILE).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_brain_network(run)


def test_the_mask_can_be_written_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    for model in (run, run / BRAIN_FILE):
        written = write_brain_mask(model, {"any": scan(tmp_path)}, tmp_path / "mask.nii.gz", overwrite=True)
        mask = read_volume(tmp_path / "mask.nii.gz").voxels
        assert written.ml == pytest.approx(np.count_nonzero(mask) * SPACING_MM**3 / 1000)
        assert 2 * np.count_nonzero(mask[depth_mm() < 65]) / (mask.sum() + (depth_mm() < 65).sum()) > 0.95
        assert (written.reference, written.doubts) == ("any", ())
    assert brain_network_at(run) is not None
    assert (
        main_run(["brain-mask", str(run), f"T1={scan(tmp_path)}", "-o", str(tmp_path / "told.nii.gz"), "--json"]) == 0
    )
    assert checked(capsys.readouterr().out, "brain-mask")["ml"] == pytest.approx(written.ml)
    with pytest.raises(UsageError, match="carries none"):
        write_brain_mask(make_run(tmp_path / "bare", brain=False), {"T1": scan(tmp_path)}, tmp_path / "other.nii.gz")


@pytest.mark.slow
def test_a_cohort_is_done_again_by_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, source = make_run(tmp_path / "run"), tmp_path / "source" / "p1"
    source.mkdir(parents=True)
    scan(source)
    words = ["predict", str(run), str(source.parent), "-o", str(tmp_path / "out"), "--brain-mask", "model", "--json"]
    for sure, outcome, expected in (
        (9.0, "segmented", []),
        (9.0, "unchanged", []),
        (0.9, "segmented", ["BRAIN_UNSURE"]),
    ):
        save_model(run / BRAIN_FILE, Bright(sure=sure), BRAIN_INFO)
        assert main_run([*words, "--yes"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told[outcome] == ["p1"]
        found = [doubt["code"] for doubt in told["cases"]["p1"]["doubts"]]
        assert [code for code in found if code != UNTRAINED] == expected
    (row,) = csv.DictReader((tmp_path / "out" / "cases.csv").read_text().splitlines())
    assert "BRAIN_UNSURE" in row["doubts"]


def test_a_sequence_that_looks_like_another_is_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    given = run_predict(tmp_path, run)
    own = histogram(given.prepared.images[0])
    assert own is not None
    other = own[::-1].copy()
    network = build("multi_unet", 2, 1, widths=[2, 4], dropout=0.0)
    for means, expected in (
        ({"T1": {"ms": own}, "FLAIR": {"ms": other}}, []),
        ({"T1": {"ms": other}, "FLAIR": {"ms": own}}, ["LOOKS_LIKE_OTHER"]),
    ):
        save_model(run / BEST, network, INFO, contrasts=Contrasts(means, margin=0.01))
        doubts = run_predict(tmp_path, run).doubts
        assert codes(doubts) == expected
        assert all("T1 looks like FLAIR" in doubt.message for doubt in doubts if doubt.code != UNTRAINED)
