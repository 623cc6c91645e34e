"""What nobody would hear is refused, left out of what is printed, and no reason to refuse a run that goes on."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from multiseg.cli.app import run
from multiseg.cli.federate.simulate import federation_options
from multiseg.errors import UsageError
from multiseg.federation.centre.experiment_folder import STATE, check_same
from multiseg.federation.flower.submit import submit
from multiseg.federation.identity.enrol import enrol_server, enrol_site
from multiseg.federation.plan import IGNORED, FederationOptions, ScheduleOptions, drop_ignored, left_to_sites, read_run
from multiseg.training.fit import FitOptions
from multiseg.training.run_folder import RUN_FILE, flat

OPTIONS = FederationOptions("joint", ("alder", "birch"), schedule=ScheduleOptions(rounds=7))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[fit]\nnum_steps = 500", r"fit\.num_steps \(set schedule\.rounds and local\.steps\)"),
        ("[fit]\nvalidate_every = 5", r"fit\.validate_every \(set local\.steps"),
        ("[fit]\nvalidation_cases = 5", r"fit\.validation_cases \(set schedule\.validation_cases\)"),
        ('[stream]\ndisk_cache = "/fast"', r"stream\.disk_cache \(leave it out"),
    ],
)
def test_what_no_round_hears_is_refused_by_both_verbs(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'experiment = "joint"\nsites = ["alder"]\n{text}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=told):
        federation_options(file, {"alder": "alder.zarr"}, {})
    enrol_server(tmp_path / "centre", ["127.0.0.1"], {})
    with pytest.raises(UsageError, match=told):
        submit(tmp_path / "centre", file)


class Serving:
    """In place of a server that serves: what it is asked to start."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []

    @contextmanager
    def __call__(self, server: object) -> Iterator["Serving"]:
        yield self

    def runs(self) -> list[object]:
        return []

    def nodes(self) -> list[object]:
        return []

    def start(self, settings: dict[str, Any]) -> int:
        self.started.append(settings)
        return 7


def test_submitting_says_what_sites_do_not_hear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving, centre = Serving(), tmp_path / "centre"
    monkeypatch.setattr("multiseg.federation.flower.submit.controlling", serving)
    enrol_server(centre, ["127.0.0.1"], {})
    enrol_site(centre, "alder", tmp_path / "kit")
    file = tmp_path / "run.toml"
    file.write_text('experiment = "joint"\nsites = ["alder"]\n[stream]\nworkers = 3\n', encoding="utf-8")
    number, warnings = submit(centre, file, cards=False)
    assert (number, len(serving.started)) == (7, 1)
    assert [line.split(":")[0] for line in warnings] == [
        "Ignored, since each site sets its own in site.toml",
        "Waiting for sites that are offline",
    ]


def test_every_setting_that_is_unheard_is_one() -> None:
    assert IGNORED.keys() <= flat(asdict(OPTIONS)).keys()


def test_a_site_hears_its_own_settings_of_the_machine() -> None:
    (told,) = left_to_sites({"stream": {"workers": 2, "cache": "1GiB", "ahead": 4}, "fit": {"accumulate": 2}})
    assert told.endswith("in site.toml: stream.workers, stream.cache.")
    assert left_to_sites({"stream": {"ahead": 4}}) == []


def test_what_is_printed_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["fed", "simulate", "--store", "a.zarr", "--store", "b.zarr", "--device", "cpu", "--print-config"]
    assert run(said) == 0
    text = capsys.readouterr().out
    printed = flat(tomllib.loads(text))
    assert not IGNORED.keys() & printed.keys()
    assert {"stream.workers", "fit.learning_rate", "schedule.cross_site"} <= printed.keys()
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    assert drop_ignored(asdict(federation_options(tmp_path / "run.toml", {}, {}, "cpu"))) == drop_ignored(
        asdict(federation_options(None, {"a": "a.zarr", "b": "b.zarr"}, {}, "cpu"))
    )


def folder_of(options: FederationOptions, folder: Path) -> Path:
    """A run's folder, as far as its settings go."""
    (folder / RUN_FILE).write_text(tomli_w.dumps(asdict(options)), encoding="utf-8")
    (folder / STATE).touch()
    return folder


def test_what_is_unheard_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    folder = folder_of(OPTIONS, tmp_path)
    check_same(folder, replace(OPTIONS, fit=FitOptions(num_steps=1, validate_every=1, validation_cases=1)))


def test_more_rounds_need_a_constant_learning_rate(tmp_path: Path) -> None:
    more = replace(OPTIONS, schedule=ScheduleOptions(rounds=9))
    told = r"schedule\.rounds was 7, now 9\. Rounds can be added only with fit\.schedule = 'constant': 'cosine' .* 7 r"
    with pytest.raises(UsageError, match=told):
        check_same(folder_of(OPTIONS, tmp_path), more)
    with pytest.raises(UsageError, match=r"seed was 0, now 1\.") as other:
        check_same(tmp_path, replace(OPTIONS, seed=1))
    assert "Rounds can be added" not in str(other.value)
    constant = FitOptions(schedule="constant")
    check_same(folder_of(replace(OPTIONS, fit=constant), tmp_path), replace(more, fit=constant))


def test_the_file_of_a_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('sites = ["alder"]\n[local]\nsteps = 5\n', encoding="utf-8")
    assert read_run(tmp_path / "run.toml", "") == {"sites": ["alder"], "local": {"steps": 5}}
