import hashlib
import json
from dataclasses import replace

import pytest

from multiseg.errors import CheckpointError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.learnt_scans import LearntScans, describe_removed, how_learnt
from multiseg.models.saved import ModelInfo, load_model, read_info, read_learnt, save_model

INFO = ModelInfo(
    builder="multi_unet",
    numbers={"widths": [4, 8], "dropout": 0.0},
    axis=ModalityAxis(("FLAIR", "T1")),
    space=LabelSpace(),
    spacing_mm=(5.0, 5.0, 5.0),
    patch=(8, 8, 8),
    trained_on={"FLAIR": ("ms",), "T1": ("ms",)},
    databases={},
)
A, B, C = (hashlib.sha256(name.encode()).hexdigest() for name in "abc")
LEARNT = LearntScans.of([A], [B])


@pytest.mark.parametrize(
    ("learnt", "digests", "expected"),
    [
        (LEARNT, [C, A], "train"),  # one shared scan is enough
        (LEARNT, [B], "val"),
        (LEARNT, [B, A], "train"),
        (LEARNT, [C], ""),
        (LEARNT, [], "not known"),  # a store that has no digests
        (LEARNT, [""], "not known"),
        (LearntScans.of([A]) | LearntScans(is_complete=False), [C], "not known"),
        (LearntScans.of([A]) | LearntScans(is_complete=False), [A], "train"),
        (None, [A], "not known"),
    ],
)
def test_a_case_is_recognised_by_one_of_its_scans(learnt, digests, expected):
    assert how_learnt(learnt, digests) == expected


def test_thousands_of_scans_are_one_text(tmp_path):
    train = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20_000)]
    learnt = LearntScans.of(train, [A])
    said = json.loads(json.dumps(learnt.to_json()))
    assert LearntScans.from_json(said) == learnt
    assert len(said["train"]) == 16 * 20_000
    assert said["val"] == A[:16]


def test_a_model_file_says_from_which_scans_it_learnt_and_its_info_does_not(tmp_path):
    network = multi_unet(2, 1, widths=(4, 8))
    save_model(tmp_path / "model.safetensors", network, INFO, LEARNT)
    assert read_learnt(tmp_path / "model.safetensors") == LEARNT
    assert load_model(tmp_path).learnt == LEARNT
    info = read_info(tmp_path / "model.safetensors")
    assert info == INFO
    assert A[:16] not in json.dumps(info.to_json())


def test_a_file_from_before_does_not_say_it(tmp_path):
    save_model(tmp_path / "model.safetensors", multi_unet(2, 1, widths=(4, 8)), INFO)
    assert read_learnt(tmp_path / "model.safetensors") is None
    assert load_model(tmp_path).learnt is None


def test_digests_of_another_length_are_refused(tmp_path):
    class Odd(LearntScans):
        def to_json(self):
            return super().to_json() | {"train": "abc"}

    save_model(tmp_path / "model.safetensors", multi_unet(2, 1, widths=(4, 8)), INFO, Odd())
    with pytest.raises(CheckpointError, match=r"16 digits, 3 and 0 in total"):
        read_learnt(tmp_path / "model.safetensors")


def test_what_is_said_of_cases_that_were_removed() -> None:
    """A model that has, may have and has not learnt from them; a damaged database does not tell."""
    whole, other = "a" * 64, "b" * 64
    removed = {whole: "2026-11-29"}
    said = describe_removed(LearntScans.of([whole]), "brain.zarr", removed)
    assert said.startswith("The model has learnt from 1 scans of cases that were removed from brain.zarr (2026-11-29).")
    assert describe_removed(LearntScans.of([other], [whole]), "brain.zarr", removed) == said
    assert describe_removed(LearntScans.of([other]), "brain.zarr", removed) == ""
    for unknown in (None, replace(LearntScans.of([other]), is_complete=False)):
        assert "is not known" in describe_removed(unknown, "brain.zarr", removed)
        assert describe_removed(unknown, "brain.zarr", {}) == ""
    damaged = describe_removed(LearntScans.of([other]), "brain.zarr", {}, ["ms"])
    assert "not known whether it has learnt from cases that were removed from ms" in damaged
    assert "multiseg repair brain.zarr" in damaged
