"""A model handed on: one file that says what is in it, and a folder as the Hugging Face Hub wants it."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from multiseg.errors import CheckpointError, UsageError
from multiseg.export.model_package import handover, write_hub_folder, write_package
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.brain_network import BRAIN_FILE, load_brain_network
from multiseg.models.builders import build
from multiseg.models.learnt_scans import LearntScans
from multiseg.models.packages import read_package
from multiseg.models.saved import BEST, ModelInfo, load_model, model_path, read_info, read_learnt, save_model

RECIPE = {"spacing_mm": [1, 1, 3]}
INFO = ModelInfo(
    builder="multi_unet",
    numbers={"widths": [4, 8], "dropout": 0.1},
    axis=ModalityAxis(("FLAIR", "T1", "SWI")),
    space=LabelSpace.of(["lesion"]),
    spacing_mm=(1.0, 1.0, 3.0),
    patch=(8, 8, 4),
    trained_on={"FLAIR": ("ms", "tbi"), "T1": ("ms",), "SWI": ()},
    databases={
        "ms": {
            "pathology": "multiple sclerosis",
            "num_cases": 7,
            "recipe": {"spacing_mm": [1, 1, 3]},
            "licence": "CC0",
        },
        "tbi": {"pathology": "trauma", "num_cases": 5, "licence": "CC BY-NC 4.0"},
    },
    step=12,
)
ROW = {
    "database": "ms", "label": "lesion", "modalities": "FLAIR+T1", "learnt": "", "dice": 0.625, "sensitivity": 0.5,
    "precision": 0.75, "assd_mm": 1.0, "hd95_mm": None, "num_with_lesion": 3, "num_lesion_free": 1,
}  # fmt: skip


def make_run(folder: Path, info: ModelInfo = INFO) -> Path:
    torch.manual_seed(3)
    network = build(info.builder, 3, info.space.num_logits, **info.numbers)
    save_model(folder / BEST, network, info, LearntScans.of(["ab" * 32], ["cd" * 32]))
    return folder


BRAIN = replace(
    INFO,
    axis=ModalityAxis("any sequence"),
    space=LabelSpace.of("tissue:brain"),
    trained_on={"any sequence": ("ms",)},
    databases={"ms": {"pathology": "multiple sclerosis", "num_cases": 7, "licence": "CC0"}},
)


def test_a_package_carries_the_brain_network(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert BRAIN_FILE not in handover(run).files
    network = build("multi_unet", 1, 1, **INFO.numbers)
    save_model(run / BRAIN_FILE, network, BRAIN, LearntScans.of(["ef" * 32]))
    handed = handover(run)
    (doubt,) = [text for text in handed.doubts if "--brain-mask model" in text]
    assert "ms (CC0)" in doubt
    write_package(handed, tmp_path / "packed.multiseg")
    carried = load_brain_network(tmp_path / "packed.multiseg")
    assert carried is not None
    assert (carried.info, carried.learnt) == (BRAIN, None)
    for name, tensor in network.state_dict().items():
        assert torch.equal(carried.network.state_dict()[name], tensor)
    assert handover(run, keep_digests=True).files[BRAIN_FILE] == (run / BRAIN_FILE).read_bytes()
    write_hub_folder(handed, tmp_path / "hub")
    assert load_brain_network(tmp_path / "hub") is not None


def add_evaluation(run: Path, name: str, model: str) -> None:
    (run / name).mkdir()
    content = {"empty_mask_policy": "A rule.", "model": model, "summary": [ROW]}
    (run / name / "summary.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"))
    add_evaluation(run, "evaluation-test", hashlib.sha256((run / BEST).read_bytes()).hexdigest())
    add_evaluation(run, "evaluation-old", "0" * 64)
    return run


@pytest.fixture(scope="module")
def package(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "model.multiseg"
    write_package(handover(run), path)
    return path


def test_a_package_is_read_like_a_run(run: Path, package: Path) -> None:
    model, expected = load_model(package), load_model(run)
    images, present = torch.randn(1, 3, 8, 8, 4), torch.tensor([[True, True, False]])
    assert torch.equal(model(images, present), expected(images, present))
    assert read_info(model_path(package)) == INFO


def test_the_scans_that_it_learnt_from_stay_at_home(run: Path, package: Path) -> None:
    assert read_learnt(run / BEST) is not None
    assert read_learnt(package) is None
    assert all(b"abababab" not in data for data in read_package(package).values())


def test_they_may_be_kept_for_ones_own_use(run: Path, tmp_path: Path) -> None:
    handed = handover(run, keep_digests=True)
    write_package(handed, tmp_path / "own.multiseg")
    assert handed.files[BEST] == (run / BEST).read_bytes()
    assert read_learnt(tmp_path / "own.multiseg") == read_learnt(run / BEST)
    assert "does not list the scans" not in handed.files["README.md"].decode()
    assert "lists digests of the scans" in handed.files["README.md"].decode()


def test_equal_models_give_equal_bytes(run: Path, package: Path, tmp_path: Path) -> None:
    write_package(handover(run), tmp_path / "again.multiseg")
    assert (tmp_path / "again.multiseg").read_bytes() == package.read_bytes()


def test_the_manifest_has_the_sha256_of_every_member(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        manifest = json.loads(archive.read("manifest.json"))
        assert set(manifest["members"]) == {"README.md", "config.json", "model.safetensors"}
        for name, member in manifest["members"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == member["sha256"]


def rewritten(package: Path, path: Path, **changes: bytes | None) -> Path:
    """A package whose members are changed, added or (None) left out, with checksums of the zip file that fit."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(path, "w") as new:
        members: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
        for name, data in (members | changes).items():
            if data is not None:
                new.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"README.md": b"Trust me."}, r"README\.md in .* is damaged: its SHA-256 is not the one in manifest"),
        ({"model.safetensors": b"weights"}, r"model\.safetensors in .* is damaged"),
        ({"more.txt": b""}, r"holds README.md, config.json, .*more\.txt, but its manifest.json lists README"),
        ({"config.json": None}, "holds README.md, manifest.json, model.safetensors, but"),
        ({"manifest.json": None}, "no model package: its manifest.json is missing"),
        ({"manifest.json": b"{}"}, "no model package: its manifest.json is missing or invalid"),
        ({"manifest.json": b'{"format": 2, "members": {}}'}, "package format 2; this multiseg reads 1"),
    ],
)
def test_a_changed_package_is_refused(
    changes: dict[str, bytes | None], said: str, package: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        load_model(rewritten(package, tmp_path / "bad.multiseg", **changes))


def test_no_flipped_byte_gives_another_model(package: Path, tmp_path: Path) -> None:
    """It is refused, or it was in a place that holds nothing, such as a timestamp of the zip file."""
    data, weights = package.read_bytes(), read_package(package)["model.safetensors"]
    bad = tmp_path / "bad.multiseg"
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(data), 60).tolist() + list(range(60)):
        bad.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            assert read_package(bad)["model.safetensors"] == weights
        except CheckpointError:
            refused += 1
    assert refused > 60


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_package(keep: float, package: Path, tmp_path: Path) -> None:
    data, bad = package.read_bytes(), tmp_path / "bad.multiseg"
    bad.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="not a complete model package"):
        read_info(bad)
    with pytest.raises(CheckpointError, match="there is no model at"):
        read_info(tmp_path / "none.multiseg")


def test_the_folder_for_the_hub(run: Path, tmp_path: Path) -> None:
    handed = handover(run)
    write_hub_folder(handed, tmp_path / "hub")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    _, header, card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    said = yaml.safe_load(header)
    assert said["license"] == "cc-by-nc-4.0"
    assert said["library_name"] == "multiseg"
    assert {"medical", "mri", "segmentation", "trauma"} <= set(said["tags"])
    assert "# lesion from FLAIR, T1\n" in card
    config = json.loads((tmp_path / "hub" / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["axis"] == ["FLAIR", "T1", "SWI"]
    assert config["preparation"]["never_present"] == ["SWI"]
    with safe_open(tmp_path / "hub" / BEST, framework="np") as tensors:
        assert json.loads(tensors.metadata()["multiseg"]) == config["model"]
    assert load_model(tmp_path / "hub").info == INFO
    with pytest.raises(UsageError, match=r"README\.md already exists"):
        write_hub_folder(handed, tmp_path / "hub")


def test_the_card_says_what_is_known(run: Path) -> None:
    card = handover(run).files["README.md"].decode()
    assert "| ms | multiple sclerosis | 7 | FLAIR T1 | CC0 |" in card
    assert "Strictest licence of the data: CC-BY-NC-4.0 (attribution, non-commercial use only)." in card
    assert "### evaluation-test" in card
    assert "| ms | lesion | FLAIR+T1 | no | 4 | 0.625 | 0.500 | 0.750 | - |" in card
    assert "Left out, since they are of another state of the model, or do not say of which: evaluation-old." in card
    assert "- SWI: the model has a channel for it, but no training database had it" in card


def card_of(tmp_path: Path, **changes: Any) -> str:
    return handover(make_run(tmp_path, replace(INFO, **changes))).files["README.md"].decode()


def test_an_unknown_licence_is_said_to_be_unknown(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(INFO, databases={**INFO.databases, "tbi": {"licence": "ask|us\n# Sure"}}))
    handed = handover(run)
    card = handed.files["README.md"].decode()
    assert "| tbi | not stated | not known | FLAIR | ask\\|us\\\\n\\# Sure |" in card  # one cell, no heading
    assert "Strictest licence of the data: cannot be said.\nThe licence of tbi is not known" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "unknown"
    assert handed.doubts == ("The licence of tbi is not known: find out whether the model may be passed on.",)
    assert "No evaluation of this model was found" in card


@pytest.mark.parametrize(("stated", "hub"), [("CC BY 4.0", "cc-by-4.0"), ("ask us", "other")])
def test_the_licence_that_was_stated_for_the_weights(stated: str, hub: str, tmp_path: Path) -> None:
    card = card_of(tmp_path, licence=stated)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == hub
    assert f"Licence of the weights, as stated by those who made them: {stated}." in card


def test_a_scan_in_the_weights_is_named(tmp_path: Path) -> None:
    numbers = {"widths": [4, 8], "dropout": 0.1, "anchor": [8, 8, 8]}
    info = replace(INFO, builder="two_branch", numbers=numbers, space=LabelSpace.of(["tissue:CSF", "lesion"]))
    handed = handover(make_run(tmp_path, info))
    assert [doubt for doubt in handed.doubts if doubt.startswith("The weights hold the scan")]
    assert "- The weights hold the scan" in handed.files["README.md"].decode()


def test_code_that_is_not_packed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\n\nclass Net(torch.nn.Conv3d):\n    def __init__(self, m, n): super().__init__(m, n, 1)\n"
    (tmp_path / "packed_net.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    info = replace(INFO, builder="packed_net:Net", numbers={})
    handed = handover(make_run(tmp_path, info))
    assert handed.doubts[0].startswith("The network is packed_net:Net, whose code is not part of multiseg")


def test_an_unreadable_summary_is_named(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "evaluation-test").mkdir()
    (tmp_path / "evaluation-test" / "summary.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"summary\.json cannot be read"):
        handover(tmp_path)
