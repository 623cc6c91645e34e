"""No verb writes over an input, none over another file without --overwrite, and none into what is something else."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest
import torch
import typer.main
from json_documents import checked

from multiseg.cli.app import build_app, run
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import multi_unet
from multiseg.models.saved import ModelInfo, save_model

RESUMABLE = {"demo", "ingest", "experiment", "simulate", "server", "calibrate"}
"""Verbs whose same command goes on in a folder or a model of their own, and which write over nothing else."""
NEVER = {"site"}
"""A kit with a key is never overwritten."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run folder with a model of FLAIR and T1 that knows nothing."""
    torch.manual_seed(0)
    info = ModelInfo(
        builder="multi_unet", numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"},
        axis=ModalityAxis(("FLAIR", "T1")), space=LabelSpace(), spacing_mm=(5.0, 5.0, 5.0), patch=(16, 16, 16),
        trained_on={"FLAIR": ("alder",), "T1": ("alder",)}, databases={},
    )  # fmt: skip
    save_model(tmp_path / "model" / "model.safetensors", multi_unet(2, 1, widths=(4, 8), dropout=0.0), info)
    return tmp_path / "model"


@pytest.fixture
def patient(hospitals: Path, tmp_path: Path) -> Path:
    """A folder with one patient's scans, some of their files under a second name."""
    folder = tmp_path / "patient"
    shutil.copytree(hospitals / "alder" / "A001", folder)
    shutil.copy(hospitals / "birch" / "B001" / "brainmask.nii.gz", folder / "mask.nii.gz")
    (folder / "link.nii.gz").symlink_to(folder / "FLAIR.nii.gz")
    (folder / "hard.nii.gz").hardlink_to(folder / "FLAIR.nii.gz")
    (folder / "flair.png").hardlink_to(folder / "FLAIR.nii.gz")
    (folder / "other.nii.gz").write_bytes(b"somebody's")
    (folder / "note.tsv").write_bytes(b"somebody's")
    (folder / "old.png").write_bytes(b"somebody's")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every verb with its flags, those of `fed` and `fed enrol` included."""
    groups = [typer.main.get_command(build_app())]
    while groups:
        for name, command in groups.pop().commands.items():  # type: ignore[attr-defined]
            if hasattr(command, "commands"):
                groups.append(command)
            else:
                yield name, [flag for parameter in command.params for flag in (*parameter.opts, parameter.name)]


def test_every_verb_that_writes_a_file_can_be_told_to_overwrite() -> None:
    writes = {
        name: flags for name, flags in commands() if {"--out", "--write", "--picture", "--png", "--store"} & {*flags}
    }
    writes["phantoms"] = dict(commands())["phantoms"]
    assert {"predict", "view", "info", "evaluate", "train", "finetune", "import-weights", "report", "app"} < {*writes}
    assert {name for name, flags in writes.items() if "--overwrite" not in flags} == RESUMABLE & {*writes} | NEVER


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "FLAIR.nii.gz"], "FLAIR.nii.gz is an input, which is never overwritten"),
        (["-o", "./link.nii.gz"], "link.nii.gz is the same file as the input FLAIR.nii.gz"),
        (["-o", "hard.nii.gz"], "hard.nii.gz is the same file as the input FLAIR.nii.gz"),
        (["-o", "../patient/FLAIR.nii.gz"], "is the same file as the input FLAIR.nii.gz"),
        (["-o", "T1.nii.gz"], "T1.nii.gz is an input"),
        (["-o", "mask.nii.gz"], "mask.nii.gz is an input"),
        (["-o", "new.nii.gz", "--picture", "T2.nii.gz"], "T2.nii.gz is written as png, so its name must end in .png"),
        (["-o", "new.nii.gz", "--picture", "FLAIR.nii.gz"], "FLAIR.nii.gz is an input"),
        (["-o", "new.nii.gz", "--picture", "flair.png"], "flair.png is the same file as the input FLAIR.nii.gz"),
        (["-o", "new.nii.gz", "--picture", "new.nii.gz"], "new.nii.gz is written as png, so its name must end in .png"),
        (["-o", "other.nii.gz"], "other.nii.gz already exists. Choose another name, or pass --overwrite"),
        (["-o", "note.nii.gz"], "note.tsv already exists"),
        (["-o", "new.nii.gz", "--picture", "old.png"], "old.png already exists"),
        (["-o", "."], ". is written as nii.gz, so its name must end in .nii.gz or .nii"),
        (["-o", "other.nii.gz/new.nii.gz"], "other.nii.gz is a file, but must be a folder"),
        (["-o", "brain.zarr/new.nii.gz"], "where only ingest may write"),
    ],
)
def test_predict_leaves_what_is_there(
    flags: list[str],
    message: str,
    model: Path,
    patient: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(patient)
    (patient / "brain.zarr").mkdir()
    (patient / "brain.zarr" / "zarr.json").write_text("{}")
    before = contents(patient)
    command = ["predict", str(model), "FLAIR.nii.gz", "T1.nii.gz", "--brain-mask", "mask.nii.gz", *flags]
    for more in ([], *([] if "already" in message else [["--overwrite"]])):
        assert run([*command, *more]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert contents(patient) == before


@pytest.mark.slow
def test_predict_overwrites_when_asked_but_no_read_only_file(
    model: Path, patient: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(patient)
    command = ["predict", str(model), "FLAIR.nii.gz", "--brain-mask", "nonzero", "-o", "other.nii.gz"]
    assert run([*command, "--picture", "old.png", "--overwrite"]) == 0
    assert nib.load("other.nii.gz").shape == nib.load("FLAIR.nii.gz").shape
    assert Path("old.png").read_bytes().startswith(b"\x89PNG")
    assert Path("other.tsv").read_text().splitlines()[2] == "1\tlesion\tlesion\t#4daf4a"
    before = contents(patient)
    assert run(command) == 2  # the same command again
    for name in ("other.nii.gz", "other.tsv"):
        (patient / name).chmod(0o444)
        capsys.readouterr()
        assert run([*command, "--overwrite"]) == 2
        assert f"{name} is read-only and is not replaced" in " ".join(capsys.readouterr().err.split())
        (patient / name).chmod(0o644)
    assert contents(patient) == before


@pytest.mark.slow
def test_pictures_and_pages_are_written_over_when_asked(
    store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = ["view", store_url, "--png", str(tmp_path), "--case", "alder/A002"]
    assert run(view) == 0
    (tmp_path / "alder-A002.png").write_bytes(b"old")
    assert run(view) == 2
    assert "alder-A002.png already exists" in " ".join(capsys.readouterr().err.split())
    assert run([*view, "--overwrite"]) == 0
    assert (tmp_path / "alder-A002.png").read_bytes().startswith(b"\x89PNG")
    assert run(["view", store_url, "--png", store_url]) == 2
    app_file = tmp_path / "app.fab"
    assert run(["fed", "app", "-o", str(app_file)]) == 0
    app_file.write_bytes(b"old")
    assert run(["fed", "app", "-o", str(app_file)]) == 2
    assert app_file.read_bytes() == b"old"
    assert run(["fed", "app", "-o", str(app_file), "--overwrite"]) == 0
    assert app_file.read_bytes() != b"old"
    assert run(["fed", "app", "-o", str(tmp_path / "scan.nii.gz")]) == 2
    assert run(["fed", "report", str(tmp_path), "-o", str(tmp_path / "scan.nii.gz")]) == 2
    assert "its name must end in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_case_is_not_written_home_over_its_scans(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("A001", "A002"):
        shutil.copytree(hospitals / "alder" / case, tmp_path / "ms" / case)
    url, pattern = str(tmp_path / "brain.zarr"), ["--pattern", "{case}/{modality}.nii.gz"]
    pattern += ["--label", "{case}/lesion.nii.gz", "--brain-mask", "nonzero", "--spacing", "5"]
    assert run(["ingest", str(tmp_path / "ms"), "--store", url, *pattern]) == 0
    before = contents(tmp_path / "ms")
    home = ["info", url, "--case", "ms/A001", "--write"]
    for flags in ([], ["--overwrite"]):
        for other in ("A001", "A002"):
            capsys.readouterr()
            assert run([*home, str(tmp_path / "ms" / other), *flags]) == 2
            assert "nii.gz is an input, which is never overwritten" in " ".join(capsys.readouterr().err.split())
    assert run([*home, url]) == 2
    assert contents(tmp_path / "ms") == before
    assert run([*home, str(tmp_path / "home")]) == 0
    assert run([*home, str(tmp_path / "home")]) == 2
    assert run([*home, str(tmp_path / "home"), "--overwrite"]) == 0


@pytest.mark.slow
def test_an_evaluation_replaces_its_own_tables_and_no_others(
    model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    command = ["evaluate", str(model), "--store", store_url, "--split", "val", "--database", "alder", "--overlap", "0",
               "--out", str(out)]  # fmt: skip
    assert run([*command, "--subsets", "full"]) == 0
    first = contents(out)
    assert run([*command, "--subsets", "full"]) == 0
    name = "commands.jsonl"  # it has the time
    assert contents(out) | {name: first[name]} == first
    assert len((out / name).read_text().splitlines()) == 1
    first = contents(out)
    assert run([*command, "--subsets", "FLAIR"]) == 2
    assert f"{out} holds the cases.csv of another evaluation" in " ".join(capsys.readouterr().err.split())
    assert contents(out) == first
    assert run([*command, "--subsets", "FLAIR", "--overwrite"]) == 0
    assert contents(out) != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cases.csv").write_text("case,age\n")
    assert run([*command[:-1], str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "cases.csv").read_text() == "case,age\n"


TRIFLE = ("--steps", "2", "--batch-size", "2", "--patch", "16", "--workers", "0", "--device", "cpu")


@pytest.mark.slow
def test_a_training_takes_over_no_folder_of_something_else(
    model: Path, patient: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "x.pth"
    torch.save({}, weights)
    fresh = [
        ["train", store_url, *TRIFLE, "--out"],
        ["finetune", str(model), store_url, "--database", "alder", *TRIFLE, "--out"],
        ["import-weights", str(weights), "--channels", "T1", "--out"],
        ["evaluate", str(model), "--store", store_url, "--out"],
        ["experiment", "joint", "--scale", "tiny", "--out"],
        ["fed", "simulate", "--store", store_url, "--rounds", "1", "--steps", "1", "--device", "cpu", "--out"],
        ["demo", "--cases", "3", "--steps", "1", "--out"],
        ["phantoms", "--hospital", "dogwood", "--cases", "1", "--coarseness", "4"],
        ["fed", "enrol", "server", "--host", "127.0.0.1"],
    ]
    for place, why in ((patient, "is a folder of scans"), (Path(store_url), "only ingest may write")):
        before = contents(place)
        for command in fresh:
            capsys.readouterr()
            assert run([*command, str(place)]) == 2, command
            assert why in " ".join(capsys.readouterr().err.split()), command
            assert contents(place) == before
    for command in fresh:
        assert run([*command, str(patient / "FLAIR.nii.gz")]) == 2, command
        assert "is a file, but must be a folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_training_replaces_no_model_of_another_kind(
    model: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(model)
    assert run(["train", store_url, *TRIFLE, "--out", str(model)]) == 2
    assert "holds a model (model.safetensors), but no run" in " ".join(capsys.readouterr().err.split())
    simulate = ["fed", "simulate", "--store", store_url, "--rounds", "1", "--steps", "1", "--device", "cpu"]
    assert run([*simulate, "--out", str(model)]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "holds a model (model.safetensors) that is not of a federated run" in text
    assert {name: data for name, data in contents(model).items() if name != ".lock"} == before


@pytest.mark.slow
def test_a_run_file_in_the_runs_own_folder_is_not_lost(
    store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "run" / "run.toml"
    own.parent.mkdir()
    own.write_text("# chosen with care\n[model]\nwidths = [8, 8]\n[fit]\nvalidate_every = 1000\n")
    text = own.read_text()
    for flags in ([], ["--overwrite"]):
        assert run(["train", store_url, "--run", str(own), "--out", str(own.parent), *TRIFLE, *flags]) == 2
        assert "so that yours would be lost. Move it" in " ".join(capsys.readouterr().err.split())
        assert own.read_text() == text
    moved = own.rename(tmp_path / "mine.toml")
    assert run(["train", store_url, "--run", str(moved), "--out", str(own.parent), *TRIFLE]) == 0
    assert run(["train", store_url, "--run", str(own), "--out", str(own.parent), *TRIFLE]) == 0  # its own: goes on


def test_phantoms_leave_others_in_peace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["phantoms", str(tmp_path / "h"), "--hospital", "dogwood", "--cases", "1", "--coarseness", "4"]
    assert run(command) == 0
    before = contents(tmp_path / "h")
    assert run([*command, "--seed", "1"]) == 2
    assert "manifest.toml already exists" in " ".join(capsys.readouterr().err.split())
    assert contents(tmp_path / "h") == before
    assert run([*command, "--seed", "1", "--overwrite"]) == 0
    assert contents(tmp_path / "h") != before


@pytest.mark.slow
def test_ingest_makes_no_store_in_a_store_and_keeps_other_downloads(
    hospitals: Path, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ingest", str(hospitals / "manifest.toml"), "--spacing", "5", "--store"]
    assert run([*command, f"{store_url}/new"]) == 2
    assert "is in the store" in capsys.readouterr().err
    assert run(["info", store_url, "--json"]) == 0
    assert len(checked(capsys.readouterr().out, "info")["databases"]) == 4
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / "film.partial").write_bytes(b"half a film")
    (downloads / "thesis.doc").write_bytes(b"x")
    assert run([*command, str(downloads)]) == 3
    assert set(contents(downloads)) == {"film.partial", "thesis.doc"}
