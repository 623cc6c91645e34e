"""The labelled healthy image in a model file: where it may come from, and what is put there."""

from pathlib import Path

import numpy as np
import pytest

from multiseg.errors import CheckpointError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.models.learnt_scans import TRAIN, how_learnt
from multiseg.models.saved import ModelInfo, read_learnt, save_model
from multiseg.store.reader import open_store
from multiseg.training import anchors
from multiseg.training.anchors import check_anchor, middle, put_anchor
from multiseg.training.fit import FitOptions
from multiseg.training.meta import MetaOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions
from multiseg.training.start import StartOptions, parent_of, take_weights

SPACE = LabelSpace.of(["lesion", "tissue:CSF", "tissue:white matter"])
NUMBERS = {"widths": [4, 4], "anatomy_channels": [1], "lesion_logits": [1], "anchor": [6, 8, 40]}


def test_only_declared_public_cases_of_a_two_branch_network(store_url: str) -> None:
    store = open_store(store_url)
    name = f"alder/{next(case.name for case in store['alder'].cases if case.split == 'train')}"
    with pytest.raises(UsageError, match=r"whose pathology is 'multiple sclerosis'.* may not be a patient's"):
        check_anchor(store, name, "two_branch")
    store["alder"].pathology = "phantom"
    check_anchor(store, name, "two_branch")
    with pytest.raises(UsageError, match="a multi_unet network has no anchor"):
        check_anchor(store, name, "multi_unet")
    with pytest.raises(UsageError, match="has no such case: give DATABASE/CASE"):
        check_anchor(store, "alder/nobody", "two_branch")
    other = next(case for case in store["alder"].cases if case.split != "train")
    with pytest.raises(UsageError, match=f"which is a {other.split} case: .* Name a train case"):
        check_anchor(store, f"alder/{other.name}", "two_branch")


def test_the_middle_of_the_case_is_put_into_the_network(store_url: str) -> None:
    store = open_store(store_url)
    database, case = store["alder"], store["alder"].cases[0]
    axis = ModalityAxis(("FLAIR", "T1"))
    info = ModelInfo("two_branch", NUMBERS, axis, SPACE, store.spacing_mm, (6, 8, 40), {}, {})
    network = build("two_branch", 2, 4, **NUMBERS)
    put_anchor(network, store, f"alder/{case.name}", info)
    stored, codes = database.whole(case)
    t1 = middle(stored[[database.modalities.index("T1")]].astype(np.float32), (6, 8, 40))
    np.testing.assert_array_equal(network.anchor.images[0, 1].numpy(), t1[0])
    target = database.label_view(case, LabelSpace.of(["tissue:CSF", "tissue:white matter"])).target(codes)
    np.testing.assert_array_equal(network.anchor.target[0].numpy(), middle(target[None], (6, 8, 40))[0])
    assert network.anchor.annotated.tolist() == [[True, True]]
    with pytest.raises(UsageError, match="needs T1 and an annotation of a tissue"):
        put_anchor(network, store, f"birch/{store['birch'].cases[0].name}", info)


def test_the_middle_of_volumes() -> None:
    layers = np.arange(12).reshape(1, 4, 3, 1)
    assert middle(layers, (2, 3, 3)).shape == (1, 2, 3, 3)
    np.testing.assert_array_equal(middle(layers, (2, 3, 3))[0, :, :, 1], layers[0, 1:3, :, 0])
    assert middle(layers, (2, 3, 3))[..., [0, 2]].sum() == 0


def test_another_anchor_of_another_size_takes_the_place_of_the_parents(tmp_path: Path) -> None:
    axis = ModalityAxis(("FLAIR", "T1"))
    info = ModelInfo("two_branch", NUMBERS, axis, SPACE, (1.0,) * 3, (6, 8, 40), dict.fromkeys(axis, ()), {})
    save_model(tmp_path / "m.safetensors", build("two_branch", 2, 4, **NUMBERS), info)
    parent = parent_of(StartOptions(str(tmp_path / "m.safetensors")))
    network = build("two_branch", 2, 4, **{**NUMBERS, "anchor": [4, 4, 4]})
    with pytest.raises(CheckpointError, match="'anchor_images'"):
        take_weights(network, parent, "finetune")
    take_weights(network, parent, "finetune", takes_anchor=False)
    assert network.anchor.images.shape == (1, 2, 4, 4, 4)


@pytest.mark.slow
def test_the_anchor_counts_as_learnt(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(store_url)
    monkeypatch.setattr(anchors, "PUBLIC", ("multiple sclerosis",))
    case = next(case for case in store["alder"].cases if case.split == "train")
    options = TrainOptions(
        store_url,
        databases="birch",
        labels=("lesion", "tissue:CSF", "tissue:white matter"),
        stage="pretrain_lesion",
        model=ModelOptions("two_branch", (5, 5), 0.0, "instance_affine"),
        stream=StreamOptions(DrawOptions((8, 8, 8), drop="none"), batch_size=2, workers=0),
        fit=FitOptions(num_steps=1, validation_cases=0),
        device="cpu",
        meta=MetaOptions(anchor=f"alder/{case.name}"),
    )
    train(options, tmp_path)
    assert how_learnt(read_learnt(tmp_path / "last.safetensors"), case.content.values()) == TRAIN
