"""`multiseg fed simulate` and `multiseg fed report`."""

import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from json_documents import checked

from multiseg.cli.app import run
from multiseg.cli.federate.simulate import hidden_by_site, named_stores
from multiseg.errors import UsageError
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest

SETTINGS = """
experiment = "tiny"
[model]
widths = [8, 16]
[stream]
batch_size = 2
workers = 0
[stream.draw]
patch = [16, 16, 16]
[schedule]
validation_cases = 1
"""
SIZE = ("--rounds", "2", "--steps", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of two hospitals, and a run file without sites."""
    folder = tmp_path_factory.mktemp("simulated")
    found = {files.name: files for files in find_manifest(hospitals / "manifest.toml")}
    split = {"train": 0.5, "val": 0.25, "test": 0.25}
    for name in ("birch", "dogwood"):
        ingest([found[name]], str(folder / f"{name}.zarr"), IngestOptions(spacing_mm=(5.0, 5.0, 5.0), split=split))
    (folder / "run.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


def simulate(folder: Path, *flags: str) -> int:
    stores = ("--store", str(folder / "birch.zarr"), "--store", f"north={folder / 'dogwood.zarr'}")
    return run(
        [
            "fed",
            "simulate",
            str(folder / "run.toml"),
            *stores,
            *SIZE,
            "--least",
            "1",
            "--out",
            str(folder / "run"),
            *flags,
        ]
    )


@pytest.fixture(scope="module")
def simulated(folder: Path) -> Path:
    assert simulate(folder) == 0
    return folder / "run"


@pytest.mark.slow
def test_it_prints_a_line_a_round_and_a_table(
    folder: Path, simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fed", "report", str(simulated)]) == 0
    told = capsys.readouterr()
    assert "north" in told.out
    assert [line.split("│")[1].strip() for line in told.out.splitlines() if line.startswith("│")][:3] == [
        "1",
        "2",
        "end",
    ]
    assert "only birch has it" in told.err
    assert simulate(folder, "--json") == 0  # it is finished: nothing is done again
    result = checked(capsys.readouterr().out, "fed-simulate")
    assert (result["finished"], result["round"]) == (True, 2)
    assert set(result["final"]["test"]) == {"birch", "north"}


@pytest.mark.slow
def test_the_lines_of_a_fresh_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(folder, "--out", str(tmp_path), "--rounds", "1") == 0
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "done. Dice of" in line]
    assert line.startswith("round 1/1 done. Dice of the untrained model: ")
    assert "birch 0." in line
    assert "north 0." in line


@pytest.mark.slow
def test_the_joint_model_is_one_like_any_other(folder: Path, simulated: Path, tmp_path: Path) -> None:
    arguments = ["--store", str(folder / "birch.zarr"), "--device", "cpu", "--out", str(tmp_path / "scores")]
    assert run(["evaluate", str(simulated), *arguments]) == 0


@pytest.mark.slow
def test_the_page_needs_no_other_file(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fed", "report", str(simulated), "-o", str(tmp_path / "report.html"), "--json"]) == 0
    assert checked(capsys.readouterr().out, "fed-report")["best"]["round"] >= 1
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags: list[str] = []
    links: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            links.extend(value for name, value in attrs if name in ("src", "href", "xlink:href") and value)

    Page().feed(text)
    assert tags.count("svg") == 3
    assert all(link.startswith("#") for link in links)
    assert "north" in text


def test_settings_come_from_the_machine_the_file_and_the_flags(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert simulate(folder, "--seed", "7", "--print-config") == 0
    said = tomllib.loads(capsys.readouterr().out)
    assert simulate(folder, "--seed", "7", "--print-config", "--json") == 0
    assert checked(capsys.readouterr().out, "fed-simulate")["schedule"] == said["schedule"]
    assert said["sites"] == ["birch", "north"]
    assert (said["schedule"]["rounds"], said["local"]["steps"]) == (2, 1)
    assert (said["seed"], said["stream"]["draw"]["seed"], said["augment"]["seed"]) == (7, 7, 7)
    assert said["model"]["widths"] == [8, 16]
    assert run(["fed", "simulate", "--store", "a.zarr", "--store", "b.zarr", "--device", "cpu", "--print-config"]) == 0
    said = tomllib.loads(capsys.readouterr().out)
    assert (said["experiment"], said["sites"]) == ("simulation", ["a", "b"])
    assert said["stream"]["draw"]["patch"] == [48, 48, 48]


def test_sites_and_stores_have_to_agree(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text(SETTINGS.replace("[model]", 'sites = ["south"]\n[model]', 1), encoding="utf-8")
    assert run(["fed", "simulate", str(tmp_path / "run.toml"), "--store", "a.zarr", "--out", str(tmp_path / "r")]) == 2
    assert "the run has the sites south, but there are stores for a" in " ".join(capsys.readouterr().err.split())
    assert run(["fed", "simulate", "--out", str(tmp_path / "r")]) == 2
    assert run(["fed", "report", str(tmp_path)]) == 2


def test_sites_are_named_by_their_stores() -> None:
    found = named_stores(["north=/data/a.zarr", "b/south.zarr/", "s3://bucket/key=1/east.zarr"])
    assert found == {"north": "/data/a.zarr", "south": "b/south.zarr/", "east": "s3://bucket/key=1/east.zarr"}
    with pytest.raises(UsageError, match=r"site a has two stores, x/a\.zarr and y/a\.zarr"):
        named_stores(["x/a.zarr", "y/a.zarr"])


def test_a_site_hides_by_name() -> None:
    found = hidden_by_site(["north=wmh/tissue", "north=wmh/T1", "south=a/b=c"])
    assert found == {"north": ("wmh/tissue", "wmh/T1"), "south": ("a/b=c",)}
    for text in ("wmh/tissue", "=wmh/tissue", "north="):
        with pytest.raises(UsageError, match="give SITE=DATABASE/ANNOTATION"):
            hidden_by_site([text])
