"""Soft targets of the stage pseudo_label: their place in a patch, what stands above them, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multiseg.errors import CheckpointError, UsageError
from multiseg.evaluation.adaptation import Adaptation
from multiseg.labels import LabelSpace
from multiseg.loaders.augment import preset
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.saved import Model, ModelInfo, save_model
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, open_store
from multiseg.store.structures import hide
from multiseg.training import pseudo_labels
from multiseg.training.meta import MetaOptions
from multiseg.training.pseudo_labels import (
    PseudoLabels,
    SoftStream,
    check_searched,
    check_still,
    write_pseudo_labels,
)
from multiseg.training.run_data import RunData, changes, with_soft_targets

SPACE = LabelSpace.of(["lesion", "tissue:GM", "tissue:WM"])
PATCH = (8, 8, 8)


def model_in(folder: Path, spacing_mm: tuple[float, float, float]) -> Path:
    numbers = {
        "widths": [4, 4],
        "dropout": 0.0,
        "norm": "instance_affine",
        "anatomy_channels": [1],
        "lesion_logits": [1],
    }
    axis = ModalityAxis(("FLAIR", "T1"))
    info = ModelInfo("two_branch", numbers, axis, SPACE, spacing_mm, PATCH, dict.fromkeys(axis, ("birch",)), {})
    torch.manual_seed(0)
    save_model(folder / "m.safetensors", build("two_branch", 2, SPACE.num_logits, **numbers), info)
    return folder / "m.safetensors"


@pytest.mark.slow
def test_a_patch_gets_its_part_of_what_was_written(store_url: str, tmp_path: Path) -> None:
    store, said = open_store(store_url), []
    cases = select(store, ["birch"], split="train")
    model = model_in(tmp_path, store.spacing_mm)
    for _ in range(2):
        write_pseudo_labels(store, cases, model, tmp_path / "soft", "cpu", said.append)
    assert [text.endswith("done before") for text in said] == [False, False, True, True]
    stream = PatchStream(
        store,
        ModalityAxis(("FLAIR", "T1")),
        SPACE,
        StreamOptions(DrawOptions(PATCH, overhang=4, drop="none"), batch_size=4, workers=0),
        databases=["birch"],
    )
    labels = PseudoLabels(store, stream.plan.numbered, tmp_path / "soft", SPACE)
    (batch,) = SoftStream(stream, labels).batches(0, 1)
    assert batch.soft.shape == (4, 2, *PATCH)
    lesion = batch.target == 1
    assert lesion.any()
    inside = batch.target != 255
    assert (batch.soft.sum(dim=1)[inside] <= 1 + 1e-3).all()
    assert batch.soft[0, :, lesion[0]].sum() > 0  # the tissue under a lesion
    with np.load(tmp_path / "soft" / "birch" / f"{batch.case[0]}.npz") as arrays:
        whole = arrays["tissues"]
    voxel = next(v for v in np.argwhere(~lesion[0].numpy()) if (batch.corner[0].numpy() + v >= 0).all())
    place = batch.corner[0].numpy() + voxel
    if (place < whole.shape[1:]).all():
        np.testing.assert_array_equal(batch.soft[0, :, *voxel], whole[:, *place].astype(np.float32))
    (tmp_path / "soft" / "birch" / f"{cases[0].name}.npz").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="are damaged"):
        write_pseudo_labels(store, cases, model, tmp_path / "soft", "cpu", said.append)


@pytest.mark.slow
def test_a_case_without_pseudo_labels(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    with pytest.raises(UsageError, match=r"2 of 2 cases have no pseudo-labels in .* \(birch/"):
        PseudoLabels(store, select(store, ["birch"], split="train"), tmp_path, SPACE)


@pytest.mark.slow
def test_the_adaptation_to_found_lesions_is_another_pseudo_label(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shown = open_store(store_url), []
    (case, *_) = select(store, ["birch"], split="train")
    model, found = model_in(tmp_path, store.spacing_mm), np.zeros(case.extent, bool)

    def spied(model: Model, images: np.ndarray, present: np.ndarray, lesion: np.ndarray) -> Adaptation:
        shown.append(lesion)
        return Adaptation(model)

    monkeypatch.setattr(pseudo_labels, "adapted", spied)
    monkeypatch.setattr(pseudo_labels, "lesion_of", lambda *others: found)
    for adapt_to in ("true", "true", "found"):
        write_pseudo_labels(store, [case], model, tmp_path / "soft", "cpu", lambda text: None, adapt_to)
    assert len(shown) == 2  # the second call finds the first one's file, the third may not take it
    assert shown[0].any()
    assert shown[1] is found
    with pytest.raises(UsageError, match=r"meta\.adapt_to is 'false': give true or found"):
        MetaOptions(adapt_to="false")


def test_patches_with_soft_targets_do_not_move() -> None:
    with pytest.raises(UsageError, match=r"augment\.flip_probability moves patches"):
        check_still(preset("standard"))
    check_still(replace(preset("none"), contrast_probability=0.5))


def test_a_case_without_a_sequence_of_the_anatomy_branch_is_left_out(store_url: str, tmp_path: Path) -> None:
    store, said = open_store(store_url), []
    case = replace(select(store, ["birch"], split="train")[0], modalities=("FLAIR",))
    write_pseudo_labels(store, [case], model_in(tmp_path, store.spacing_mm), tmp_path / "soft", "cpu", said.append)
    assert said == [f"birch/{case.name}: left out, since it has no T1, which the anatomy branch needs"]
    assert not list(tmp_path.glob("soft/*/*.npz"))


def test_patches_are_drawn_only_from_cases_with_what_is_needed(store_url: str) -> None:
    store = open_store(store_url)
    hide(store, ["birch/T1"])
    options = StreamOptions(DrawOptions(PATCH), workers=0)
    both = (store, ModalityAxis(("FLAIR", "T1")), LabelSpace(), options)
    assert set(PatchStream(*both, databases=["alder", "birch"]).plan.cases) == {"alder", "birch"}
    assert set(PatchStream(*both, databases=["alder", "birch"], needs=["T1"]).plan.cases) == {"alder"}


def written(folder: Path, case: Case, **others: object) -> Path:
    """A file of pseudo-labels, of a case unless something else is said."""
    about = {**pseudo_labels._about(case, LabelSpace.of(["tissue:GM", "tissue:WM"])), "model": "1", **others}
    path = folder / case.database / f"{case.name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, tissues=np.zeros((2, *case.extent), np.float16), about=np.array(json.dumps(about)))
    return path


@pytest.mark.parametrize(
    "other",
    [{"tissues": ["WM", "GM"]}, {"extent": [1, 2, 3]}, {"affine": [0.0] * 16}, {"source files": "ab"}],
    ids=lambda other: next(iter(other)),
)
def test_pseudo_labels_of_something_else_are_refused(store_url: str, tmp_path: Path, other: dict) -> None:
    store = open_store(store_url)
    case = select(store, ["birch"], split="train")[0]
    written(tmp_path, case)
    before = PseudoLabels(store, [case], tmp_path, SPACE).digests
    written(tmp_path, case, model="2")
    assert PseudoLabels(store, [case], tmp_path, SPACE).digests != before
    path = written(tmp_path, case, **other)
    with pytest.raises(UsageError, match=f"{path} does not belong to birch/{case.name}: the {next(iter(other))} of"):
        PseudoLabels(store, [case], tmp_path, SPACE)


def test_a_cut_file_is_damaged(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    case = select(store, ["birch"], split="train")[0]
    path = written(tmp_path, case)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole[:60] + b"\xff" * 8 + whole[68:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="are damaged"):
            PseudoLabels(store, [case], tmp_path, SPACE)._whole(case)


def test_the_memory_for_targets_is_bounded_by_bytes(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(store_url)
    case = select(store, ["birch"], split="train")[0]
    written(tmp_path, case)
    monkeypatch.setattr(pseudo_labels, "KEPT_BYTES", 3 * 2 * 2 * int(np.prod(case.extent)) + 1)
    assert PseudoLabels(store, [case], tmp_path, SPACE)._kept.most == 3


def test_a_case_without_lesion_annotation_is_named(store_url: str) -> None:
    store = open_store(store_url)
    cases = select(store, ["birch"], split="train")
    check_searched(store, cases, SPACE)
    hide(store, [f"birch/{name}" for name in store["birch"].schemas])
    cases = select(store, ["birch"], split="train")
    with pytest.raises(UsageError, match=rf"^birch/{cases[0].name} has no lesion annotation.* name only databases"):
        check_searched(store, cases, SPACE)


def test_other_soft_targets_are_another_label(store_url: str) -> None:
    case = dict.fromkeys(("split", "scans", "labels", "files", "prepared"), "train")
    data, store = RunData({"a/b": case}), open_store(store_url)
    one, other = with_soft_targets(data, {"a/b": "1"}), with_soft_targets(data, {"a/b": "2"})
    assert changes(one, one, store) == {}
    for now in (other, data):
        assert changes(one, now, store) == {"with another label": ("a/b",)}
