"""What --overwrite deletes with an earlier run: its model and the brain network of that, and nothing else."""

from pathlib import Path

import pytest
from torch import nn

from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.brain_network import ANY_SEQUENCE, BRAIN, BRAIN_FILE
from multiseg.models.builders import build
from multiseg.models.saved import BEST, LAST, ModelInfo, save_model
from multiseg.training import staged_run
from multiseg.training.checkpoint import RESUME
from multiseg.training.run_folder import TrainOptions, claimed_folder, write_settings

OPTIONS = TrainOptions(store="brain.zarr")
NUMBERS = {"widths": [2, 4], "dropout": 0.0}


def small_model(path: Path, sequence: str, structure: str) -> bytes:
    info = ModelInfo(
        "multi_unet", NUMBERS, ModalityAxis((sequence,)), LabelSpace.of([structure]), (6.0, 6.0, 6.0), (8, 8, 8),
        {sequence: ("ms",)}, {"ms": {}},
    )  # fmt: skip
    network: nn.Module = build("multi_unet", 1, 1, **NUMBERS)
    save_model(path, network, info)
    return path.read_bytes()


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of a run whose model carries a brain network."""
    write_settings(tmp_path, OPTIONS)
    for name in (BEST, LAST, RESUME):
        (tmp_path / name).write_bytes(b"earlier")
    small_model(tmp_path / BRAIN_FILE, ANY_SEQUENCE, f"tissue:{BRAIN}")
    return tmp_path


def test_a_new_model_does_not_carry_the_brain_network_of_the_one_before(earlier: Path) -> None:
    (earlier / "notes.txt").write_text("mine")
    with claimed_folder(earlier, OPTIONS, overwrite=True):
        assert {path.name for path in earlier.iterdir()} == {"notes.txt", ".lock"}


def test_a_run_that_is_resumed_keeps_its_brain_network(earlier: Path) -> None:
    kept = (earlier / BRAIN_FILE).read_bytes()
    with claimed_folder(earlier, OPTIONS, overwrite=False):
        assert (earlier / BRAIN_FILE).read_bytes() == kept


def test_a_brain_network_that_was_copied_into_a_new_folder_stays(tmp_path: Path) -> None:
    kept = small_model(tmp_path / BRAIN_FILE, ANY_SEQUENCE, f"tissue:{BRAIN}")
    with claimed_folder(tmp_path, OPTIONS, overwrite=True):
        assert (tmp_path / BRAIN_FILE).read_bytes() == kept


def test_a_model_of_something_else_under_its_name_stays(earlier: Path) -> None:
    kept = small_model(earlier / BRAIN_FILE, "FLAIR", "lesion")
    with claimed_folder(earlier, OPTIONS, overwrite=True):
        assert (earlier / BRAIN_FILE).read_bytes() == kept
        assert not (earlier / BEST).exists()


def test_the_final_model_of_a_run_of_stages_takes_its_brain_network_along(earlier: Path) -> None:
    staged_run._delete_models(earlier)
    assert not {BEST, LAST, BRAIN_FILE} & {path.name for path in earlier.iterdir()}
