"""Several structures in a picture: each in its colour and with its own Dice, none merged and none left out unsaid."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from torch import Tensor, nn

from multiseg.colours import colour_of
from multiseg.evaluation import montage
from multiseg.evaluation.case_panel import CasePanel
from multiseg.evaluation.montage import save_montage
from multiseg.evaluation.overlay import save_overlay
from multiseg.evaluation.panels import answer_panel, compared_panel
from multiseg.evaluation.prediction import predict
from multiseg.evaluation.prediction_inputs import PredictOptions
from multiseg.evaluation.slice_panel import choose_view, slice_of
from multiseg.labels import IGNORE, LabelSpace, SpaceLabel
from multiseg.modalities import ModalityAxis
from multiseg.models.saved import Model, ModelInfo
from multiseg.store.formats.nifti import write_nifti

SHAPE = (24, 28, 10)
NAMES = tuple(f"structure {letter}" for letter in "ABCDEFGH")
MM = (1.0, 1.0, 1.0)


def stripes(shift: int = 0) -> np.ndarray:
    """Eight structures as stripes along j, three voxels wide, in a flat brain."""
    codes = np.zeros(SHAPE, dtype=np.uint8)
    for code in range(1, 9):
        codes[4:20, 3 * code - 1 + shift : 3 * code + 2 + shift, 2:8] = code
    return codes


def flat() -> np.ndarray:
    """An image that is drawn black, so that colours lie over nothing."""
    image = np.zeros(SHAPE, dtype=np.float32)
    image[2:22, 1:27, 1:9] = 5.0
    return image


def compared(truth: np.ndarray, predicted: np.ndarray, annotated: tuple[int, ...] = (1,) * 8) -> CasePanel:
    looked_for = np.array(annotated, dtype=bool)
    return compared_panel("db/case", "glioma", {"T1": flat()}, truth, predicted, NAMES, looked_for, MM)


def test_every_structure_has_its_own_dice() -> None:
    truth, predicted = stripes(), stripes(1)  # a stripe of three voxels moved by one: 2 * 2 / (3 + 3)
    truth[truth == 2] = 0
    truth[truth == 3] = 0
    predicted[predicted == 3] = 0
    predicted[predicted == 4] = 0
    predicted[truth == 5] = 5
    predicted[2, 1, 1], truth[2, 1, 1] = 8, IGNORE  # where nobody is to look
    found = compared(truth, predicted, (1, 1, 1, 1, 1, 0, 1, 1)).values
    assert found == {
        "structure A": "0.67",
        "structure B": "false alarm",
        "structure C": "none",
        "structure D": "0.00",
        "structure E": "0.86",  # 2 * 3 / (3 + 4)
        "structure F": "not annotated",
        "structure G": "0.67",
        "structure H": "0.67",
    }


def test_one_structure_is_outlined_with_its_dice() -> None:
    truth, predicted = (np.where(codes == 1, 1, 0).astype(np.uint8) for codes in (stripes(), stripes(1)))
    for codes in (truth, predicted):
        codes[0, 0, 0] = IGNORE if codes is truth else 1
    found = compared_panel("a/b", "stroke", {"T1": flat()}, truth, predicted, ("lesion",), np.array([True]), MM)
    assert (found.caption, found.parcels, found.values) == ("stroke\nDice 0.67", {}, {})
    assert found.truth is not None
    assert found.predicted is not None
    assert (int(found.truth.sum()), int(found.predicted.sum())) == (16 * 3 * 6, 16 * 3 * 6)
    empty = compared_panel("a/b", "s", {"T1": flat()}, 0 * truth, 0 * truth, ("lesion",), np.array([True]), MM)
    assert empty.caption == "s\nnone"


@pytest.mark.slow
def test_each_structure_lies_in_its_own_colour_in_truth_and_prediction(tmp_path: Path) -> None:
    predicted = stripes()
    predicted[predicted == 8] = 0
    save_montage(tmp_path / "m.png", [compared(stripes(), predicted)])
    pixels = np.asarray(imread(tmp_path / "m.png"))[..., :3]
    cells = pixels[: -pixels.shape[0] // 4]
    edge = int(0.75 * cells.shape[1])  # between the columns truth and prediction
    for at in range(8):
        expected = 0.6 * np.array(to_rgb(colour_of(at)))
        hit = np.abs(cells - expected).max(axis=-1) < 0.02
        truth, prediction = hit[:, edge - 300 : edge].sum(), hit[:, edge:].sum()
        assert truth > 500, NAMES[at]
        assert (prediction > 500) == (at < 7), NAMES[at]


@pytest.mark.slow
def test_what_does_not_fit_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    write = montage._write

    def noted(figure: object, page: object, x: float, y: float, text: str, **style: object) -> None:
        said.append(text)
        write(figure, page, x, y, text, **style)  # type: ignore[arg-type]

    monkeypatch.setattr(montage, "_write", noted)
    save_montage(tmp_path / "eight.png", [compared(stripes(), stripes())])
    assert [text for text in said if text in NAMES] == list(NAMES)
    assert said.count("1.00") == 8
    said.clear()
    names = tuple(f"a structure of the atlas, number {number}" for number in range(100))
    codes = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 101).astype(np.uint8)
    panel = answer_panel("answer.nii.gz", {"T1": flat()}, codes, dict.fromkeys(names, 1.0), MM)
    save_montage(tmp_path / "hundred.png", [panel])
    (more,) = [text for text in said if text.startswith("and ")]
    assert int(more.split()[1]) + sum(text.startswith("a structure") for text in said) == 100
    entries = montage._legend_entries([slice_of(panel)], montage._colours([slice_of(panel)]))
    assert len(entries) == 60
    assert entries[-1].get_label() == "and 41 more"


def test_the_slice_shows_as_much_of_all_structures_as_can_be(tmp_path: Path) -> None:
    codes = np.zeros(SHAPE, dtype=np.uint8)
    codes[4:20, 4:24, 2] = 1  # large, and alone
    codes[4:12, 4:24, 6] = 1
    codes[12:14, 4:8, 6] = 2
    assert choose_view(answer_panel("a", {"T1": flat()}, codes, {"x": 1.0, "y": 1.0}, MM)).k == 6


class Bands(nn.Module):
    """Says of each voxel the structure whose number its value was before z-scoring."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        values = images.sum(1, keepdim=True)
        wanted = (torch.arange(9.0)[None, :, None, None, None] - 4.5) / 2.2913  # mean and deviation of 1 to 8
        return -self.scale * (values - wanted).abs()


@pytest.mark.slow
def test_a_prediction_of_eight_structures_is_told_apart(tmp_path: Path) -> None:
    kinds = ("lesion", "tissue") * 4
    space = LabelSpace(tuple(SpaceLabel(name, kind) for name, kind in zip(NAMES, kinds, strict=True)))
    info = ModelInfo(
        builder="multi_unet", numbers={}, axis=ModalityAxis(("T1",)), space=space, spacing_mm=MM, patch=(16, 16, 16),
        trained_on={"T1": ("db",)}, databases={},
    )  # fmt: skip
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, SHAPE)  # few values would be a segmentation
    image = np.where(stripes() > 0, stripes() + noise, 0).astype(np.float32)
    write_nifti(tmp_path / "t1.nii.gz", image, np.eye(4))
    model = Model(Bands(), info)
    result = predict(model, {"T1": tmp_path / "t1.nii.gz"}, tmp_path / "out.nii.gz", PredictOptions("nonzero"))
    assert result.volumes_ml == pytest.approx(dict.fromkeys(NAMES, 16 * 3 * 6 / 1000))
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), stripes())
    (comment, _) = nib.load(tmp_path / "out.nii.gz").header.extensions
    assert [one["name"] for one in comment.json()["labels"]] == ["background", *NAMES]
    rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert [(row[1], row[2]) for row in rows[2:]] == list(zip(NAMES, kinds, strict=True))
    assert [row[3] for row in rows[2:]] == [colour_of(at) for at in range(8)]
    assert (tmp_path / "out.itksnap.txt").is_file()
    save_overlay(tmp_path / "out.png", result)
    assert imread(tmp_path / "out.png").shape[1] > 600
