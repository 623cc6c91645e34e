"""A run that is stopped in the middle of a round, and one that waits for an approval, with real processes."""

import os
import subprocess
from pathlib import Path

import pytest
from deployed import MULTISEG, deployment, options_for, until

SITES = ("alder", "birch", "dogwood")


def fed(*arguments: str) -> str:
    done = subprocess.run([*MULTISEG, "fed", *arguments], capture_output=True, encoding="utf-8", check=True)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("MULTISEG_FAULTS") != "all", reason="minutes long: MULTISEG_FAULTS=all runs it")
def test_a_stop_reaches_the_sites_and_the_next_run_begins(site_stores: dict[str, str], tmp_path: Path) -> None:
    with deployment(tmp_path, {name: site_stores[name] for name in SITES[:2]}) as deployed:
        deployed.submit(options_for("long", SITES[:2], steps=9000))
        deployed.wait_round("long", 1)
        said = tmp_path / "alder.txt"
        until(120, "alder trains", lambda: "training step" in said.read_text())
        fed("stop", str(deployed.home))
        until(60, "alder stops", lambda: "the run was stopped at the server" in said.read_text())
        assert not list((tmp_path / "alder/state/experiments/long").glob("*.pt"))
        settings = tmp_path / "birch" / "site.toml"
        settings.write_text(settings.read_text().replace("approve_runs = false", "approve_runs = true"))
        deployed.sites["birch"].end()
        deployed.join("birch")
        deployed.submit(options_for("next", SITES[:2], steps=2))
        until(120, "birch waits", lambda: "waits for its approval" in str(deployed.status()["runs"]))
        assert "birch waits for its approval of this run" in fed("log", str(deployed.home))
        (waiting,) = (tmp_path / "birch/state/approvals").glob("*.toml")
        fed("approve", str(settings), waiting.stem[:12])
        deployed.finished("next")
        assert "approved here: settings" in fed("audit", str(settings), "--json")
