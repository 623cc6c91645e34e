"""Label spaces that are named by a word, hidden annotations, and weights of classes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from json_documents import checked
from safetensors.torch import load_file

from multiseg.cli.app import run
from multiseg.errors import LabelError, UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.saved import read_info
from multiseg.store.catalogue import select
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.structures import listed_labels
from multiseg.training.class_weights import class_weights, voxels_by_class
from multiseg.training.fit import FitOptions
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions

TISSUES = ("tissue:CSF", "tissue:grey matter", "tissue:white matter")
QUICK = ("--subsets", "full", "--split", "val", "--overlap", "0")


def options_of(store: str, labels: tuple[str, ...], steps: int = 2, **changes: object) -> TrainOptions:
    return TrainOptions(
        store=store, labels=labels, device="cpu", model=ModelOptions(widths=(7, 8), dropout=0.1),
        stream=StreamOptions(DrawOptions(patch=(8, 8, 8), centre="label"), batch_size=2, workers=0),
        fit=FitOptions(num_steps=steps, validate_every=steps, validation_cases=1), **changes,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (("tissues",), TISSUES),
        (("tissues+lesion",), (*TISSUES, "lesion")),
        (("oedema", "tissues"), ("oedema", *TISSUES)),
        (("lesion",), ("lesion",)),
    ],
)
def test_a_word_means_the_structures_of_the_store(
    store_url: str, word: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    store = open_store(store_url)
    assert listed_labels(word, store, select(store, split="train")) == expected


@pytest.mark.slow
def test_a_word_that_means_nothing_here_is_refused(store_url: str) -> None:
    store = open_store(store_url)
    with pytest.raises(UsageError, match=r"labels are 'tissues', but no training case of .* annotated for a tissue"):
        listed_labels(("tissues",), store, select(store, ["dogwood"], split="train"))
    with pytest.raises(LabelError, match=r"structures of 'tissues' depend on the data: list them"):
        LabelSpace.of("tissues")


@pytest.mark.slow
def test_lesions_by_pathology_are_read_by_the_pathology_of_the_case(store_url: str) -> None:
    store = open_store(store_url)
    labels = listed_labels(("lesions-by-pathology",), store, select(store, split="train"))
    pathologies = [store[name].pathology for name in store]
    assert labels == tuple(f"pathology:{name}" for name in pathologies)
    space = LabelSpace.of(labels)
    assert space.names == tuple(pathologies)
    for number, name in enumerate(store):
        case = store[name].cases[0]
        view = store[name].label_view(case, space)
        assert np.flatnonzero(view.annotated).tolist() == [number]
        target = view.target(store[name].whole(case)[1])
        any_lesion = store[name].label_view(case, LabelSpace()).target(store[name].whole(case)[1])
        assert set(np.unique(target)) == {0, number + 1}
        assert np.array_equal(target > 0, any_lesion > 0)


@pytest.mark.slow
def test_a_named_structure_comes_before_its_pathology(store_url: str) -> None:
    store = open_store(store_url)
    space = LabelSpace.of(["oedema", f"pathology:{store['birch'].pathology}", "lesion"])
    structures = {one.name: one for one in next(iter(store["birch"].schemas.values())).structures}
    assert space.index_of(structures["oedema"], store["birch"].pathology) == 1
    assert space.index_of(structures["necrosis"], store["birch"].pathology) == 2
    assert space.index_of(structures["necrosis"], "other") == 3


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_model_keeps_its_pathologies_and_a_federation_refuses_them(
    store_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(options_of(store_url, ("lesions-by-pathology",), databases=("birch", "dogwood")), tmp_path / "run")
    info = read_info(tmp_path / "run" / "model.safetensors")
    assert [label.pathology for label in info.space.labels] == list(info.space.names)
    assert run(["evaluate", str(tmp_path / "run"), *QUICK, "--device", "cpu"]) == 0
    file = tmp_path / "fed.toml"
    file.write_text('experiment = "e"\nsites = ["a"]\nlabels = ["pathology:glioma"]\n')
    capfd.readouterr()
    assert run(["fed", "simulate", str(file), "--store", f"a={store_url}", "--out", str(tmp_path / "fed")]) == 2
    assert "cannot train labels by pathology (glioma)" in capfd.readouterr().err


@pytest.mark.slow
def test_print_config_lists_them(store_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["train", store_url, "--labels", "tissues+lesion", "--print-config", "--json"]) == 0
    assert checked(capfd.readouterr().out, "train")["labels"] == [*TISSUES, "lesion"]


@pytest.mark.slow
def test_a_hidden_annotation_is_as_one_that_was_never_ingested(hospitals: Path, tmp_path: Path) -> None:
    """The weights after training are the same to the last bit.

    A case's box holds its annotations, so that it may be smaller without one; that of A002 is not.
    """
    (alder,) = [files for files in find_manifest(hospitals / "manifest.toml") if files.name == "alder"]
    (case,) = [one for one in alder.cases if one.case == "A002"]
    others = replace(alder, name="ash", cases=tuple(one for one in alder.cases if one is not case))
    without = replace(case, labels={"lesion": case.labels["lesion"]})
    schemas = {"lesion": alder.schemas["lesion"]}
    lesions = [replace(alder, cases=(case,)), replace(alder, cases=(without,), schemas=schemas)]
    runs = []
    for name, files, hide in zip(("hidden", "without"), lesions, ("alder/tissue", ()), strict=True):
        store = str(tmp_path / f"{name}.zarr")
        ingest([files, others], store, IngestOptions(spacing_mm=(5.0, 5.0, 5.0)))
        train(options_of(store, ("tissues+lesion",), 6, hide=hide), tmp_path / name)
        runs.append(load_file(tmp_path / name / "last.safetensors"))
    hidden, never = runs
    assert all(torch.equal(hidden[name], never[name]) for name in never)
    train(options_of(str(tmp_path / "hidden.zarr"), ("tissues+lesion",), 6), tmp_path / "shown")
    shown = load_file(tmp_path / "shown" / "last.safetensors")
    assert not all(torch.equal(shown[name], never[name]) for name in never)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_what_is_hidden_is_not_trained_or_validated_but_evaluated(
    store_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"hide has 'alder/tisue', but the annotations of .* are alder/lesion, alder/"):
        train(options_of(store_url, ("lesion",), hide="alder/tisue"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"no training case of .* is annotated for a tissue"):
        train(options_of(store_url, ("tissues",), hide="alder/tissue"), tmp_path / "run")
    labels, databases = (*TISSUES, "lesion"), ("alder", "dogwood")
    train(options_of(store_url, labels, databases=databases), tmp_path / "shown")
    last = json.loads((tmp_path / "shown" / "log.jsonl").read_text().splitlines()[-1])
    names = [name.removeprefix("tissue:") for name in TISSUES]
    assert last["structures"].keys() == {*(f"alder/{name}" for name in (*names, "lesion")), "dogwood/lesion"}
    assert last["kinds"].keys() == {"lesion", "tissue"}
    with pytest.raises(UsageError, match=r"hide was \[\], now \['dogwood/wmh'\]"):
        train(options_of(store_url, labels, databases=databases, hide="dogwood/wmh"), tmp_path / "shown")
    assert run(["evaluate", str(tmp_path / "shown"), *QUICK, "--json"]) == 0
    assert {row["label"] for row in checked(capfd.readouterr().out, "evaluate")["summary"]} == {*names, "lesion"}


@pytest.mark.slow
def test_the_counts_of_classes_are_those_of_the_voxels(store_url: str) -> None:
    store = open_store(store_url)
    cases = select(store, ["alder"], split="train")
    space = LabelSpace.of([*TISSUES, "lesion"])
    counts = voxels_by_class(store, cases, space)
    by_hand = np.zeros(5, dtype=int)
    for case in cases:
        codes = store["alder"].whole(case)[1]
        lesion, tissue = (codes[list(store["alder"].schemas).index(name)] for name in ("lesion", "tissue"))
        by_hand[1:4] += [int((tissue == code).sum()) for code in (1, 2, 3)]
        by_hand[4] += int((lesion == 1).sum())
        by_hand[0] += tissue.size
    by_hand[0] -= by_hand[1:].sum()
    assert counts.tolist() == by_hand.tolist()
    weights = class_weights("inverse-root", store, cases, space)
    assert weights is not None
    assert torch.allclose(weights, torch.from_numpy(1 / np.sqrt(by_hand)).float())
    assert class_weights("none", store, cases, space) is None
    with pytest.raises(UsageError, match="class_weights is 'root': give one of none, inverse-root"):
        class_weights("root", store, cases, space)


@pytest.mark.slow
def test_class_weights_that_would_have_no_effect_are_refused(store_url: str, tmp_path: Path) -> None:
    options = options_of(store_url, ("lesion",))
    weighted = replace(options, fit=replace(options.fit, objective="dice", class_weights="inverse-root"))
    with pytest.raises(UsageError, match=r"class_weights has no effect on the objective 'dice': it is for dice\+bce,"):
        train(weighted, tmp_path / "run")
    weighted = replace(options, fit=replace(options.fit, class_weights="inverse-root"))
    with pytest.raises(UsageError, match="no effect on an objective of your own"):
        train(
            weighted,
            tmp_path / "run",
            objective=lambda network, batch, step: (network(batch.images, batch.present).mean(), {}),
        )
    train(weighted, tmp_path / "run")


def test_a_structure_that_is_never_found_is_named_at_the_end() -> None:
    from multiseg.cli.train import _never_found

    history = [{"a/CSF": 0.5, "a/lesion": 0.0, "a": 0.2, "b": 0.0}, {"a/CSF": 0.0, "a/lesion": 0.0, "b/lesion": 0.0}]
    assert _never_found(history) == ["a/lesion", "b/lesion"]
    assert _never_found([{"a/lesion": float("nan")}]) == []
