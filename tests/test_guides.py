"""The guides name every setting, with the default that it has, and what may change when a run goes on."""

import re
import tomllib
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from multiseg.federation.centre import experiment_folder, run_logs
from multiseg.federation.plan import IGNORED, OF_A_SITE, FederationOptions
from multiseg.federation.sites.limits import Limits
from multiseg.federation.sites.policy import Leaves
from multiseg.models.saved import BEST, LAST
from multiseg.training.fit import FitOptions
from multiseg.training.optimisers import OptimiserOptions
from multiseg.training.run_folder import LOG, RUN_FILE, TENSORBOARD

DOCS = Path(__file__).parents[1] / "docs"
FEDERATION = (DOCS / "federation.md").read_text(encoding="utf-8")
OPTIONS = FederationOptions(experiment="", sites=())
OWN = ("local", "aggregate", "privacy", "schedule")


def rows(text: str, head: str) -> dict[str, str]:
    """Second cells of a table by the names in its first ones."""
    _, _, below = text.partition(f"\n| {head} | default | meaning |\n|---|---|---|\n")
    assert below, head
    table = below[: below.index("\n\n")].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    return {name: second for first, second, _ in cells for name in re.findall(r"`(\w+)`", first)}


def is_said(default: str, value: Any) -> bool:
    """Whether a cell says this value, as TOML."""
    said = tomllib.loads(f"it = {default.strip('`')}")["it"]
    return bool(said == (list(value) if isinstance(value, tuple) else value))


@pytest.mark.parametrize("table", OWN)
def test_every_setting_of_a_federation_is_in_its_table(table: str) -> None:
    options = asdict(OPTIONS)[table]
    found = rows(FEDERATION, f"`[{table}]`")
    assert found.keys() == options.keys()
    assert [name for name, default in found.items() if not is_said(default, options[name])] == []


def test_what_stands_above_all_tables_is_in_one() -> None:
    plain = {one.name: getattr(OPTIONS, one.name) for one in fields(OPTIONS)}
    plain = {name: value for name, value in plain.items() if not is_dataclass(value)}
    found = rows(FEDERATION, "at the top")
    assert found.keys() == plain.keys()
    assert {name for name, default in found.items() if not default} == {"experiment", "sites"}
    assert [name for name, default in found.items() if default and not is_said(default, plain[name])] == []


def test_the_guide_says_what_of_a_training_is_heard() -> None:
    _, _, below = FEDERATION.partition("| table | what of it is heard |")
    told = dict(line.strip("| ").split(" | ", 1) for line in below[: below.index("\n\n")].splitlines()[2:])
    assert {name for cell in told for name in re.findall(r"`\[(\w+)\]`", cell)} == {"model", "stream", "augment", "fit"}
    fit = set(re.findall(r"`(\w+)`", told["`[fit]`"]))
    assert {one.name for one in fields(FitOptions)} <= fit
    refused = set(re.findall(r"`(\w+)`", told["`[fit]`"].partition("Refused")[2])) & {
        f.name for f in fields(FitOptions)
    }
    assert {f"fit.{name}" for name in refused} == {name for name in IGNORED if name.startswith("fit.")} | {
        "fit.ema",
        "fit.class_weights",
    }
    stream = set(re.findall(r"`(\w+)`", told["`[stream]`, `[stream.draw]`"]))
    own = {name.partition(".")[2] for name in (*IGNORED, *OF_A_SITE) if name.startswith("stream.")}
    assert own <= stream


def test_the_guide_says_what_may_change() -> None:
    _, _, below = FEDERATION.partition("**What may change**")
    said = below[: below.index("Anything else is refused")]
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", said)}
    unheard = {name.rpartition(".")[2] for name in (*IGNORED, *OF_A_SITE)}
    assert named == {name.rpartition(".")[2] for name in experiment_folder.FREE} - unheard


def test_the_guide_names_what_a_run_leaves() -> None:
    _, _, below = FEDERATION.partition("### What a run leaves")
    named = set(re.findall(r"`([\w.-]+/?)`", below[: below.index("A model file is")]))
    left = {
        BEST,
        LAST,
        experiment_folder.WORST,
        experiment_folder.ROUNDS,
        experiment_folder.ROSTER,
        experiment_folder.STATE,
        LOG,
        RUN_FILE,
    }
    assert left | {experiment_folder.FINGERPRINT, run_logs.STATUS, run_logs.METRICS, f"{TENSORBOARD}/"} <= named


def test_a_sites_file_shows_all_that_it_may_say_of_what_leaves() -> None:
    (block,) = [text for text in re.findall(r"```toml\n(.*?)```", FEDERATION, re.DOTALL) if "[leaves]" in text]
    said = tomllib.loads(re.sub(r"approved = \[.*?\]", "approved = []", block))["leaves"]
    default = asdict(Leaves())
    assert said == {name: list(value) if isinstance(value, tuple) else value for name, value in default.items()}
    assert tomllib.loads(re.sub(r"approved = \[.*?\]", "approved = []", block))["limits"] == asdict(Limits())


def test_every_setting_of_the_optimiser_is_in_the_guide_to_training() -> None:
    found = rows((DOCS / "training.md").read_text(encoding="utf-8"), "setting in `[optimiser]`")
    options = asdict(OptimiserOptions())
    assert found.keys() == options.keys()
    assert [name for name, default in found.items() if not is_said(default, options[name])] == []


def test_every_setting_of_a_step_is_in_the_guide_to_training() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    found = rows(text, "setting in `[fit]`")
    options = asdict(FitOptions())
    assert found.keys() == options.keys()
    plain = {name: default.replace(",", "").partition(";")[0] for name, default in found.items()}
    del plain["schedule"], plain["learning_rate"]  # two in one line
    assert [name for name, default in plain.items() if not is_said(default, options[name])] == []
    assert found["schedule"] == f'{options["learning_rate"]}, `"{options["schedule"]}"`'
