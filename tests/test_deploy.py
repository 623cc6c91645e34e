"""The files in deploy/ name commands, options, files and settings that exist."""

import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import typer.main

from multiseg.cli.app import app
from multiseg.federation.hosting import serve
from multiseg.federation.joining import join

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = ("multiseg-site.service", "multiseg-server.service")
HARDENED = {
    "ProtectSystem": "strict",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "RestrictSUIDSGID": "yes",
    "PrivateTmp": "yes",
    "UMask": "0077",
}
KNOWN = {
    "Unit": "Description Documentation Wants After",
    "Service": "Type User Group WorkingDirectory ExecStart Restart RestartSec KillMode TimeoutStopSec UMask "
    "LimitNOFILE "
    "ProtectSystem ProtectHome ReadWritePaths PrivateTmp PrivateDevices NoNewPrivileges CapabilityBoundingSet "
    "AmbientCapabilities RestrictSUIDSGID RestrictNamespaces RestrictRealtime RestrictAddressFamilies "
    "ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups ProtectClock ProtectHostname "
    "LockPersonality SystemCallArchitectures",
    "Install": "WantedBy",
}
"""Of the settings in systemd.unit(5), systemd.service(5) and systemd.exec(5), those that are used."""


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / name, encoding="utf-8")
    return parser


def accepts(arguments: list[str]) -> None:
    """Fails where the command line knows no such verb, or the verb no such option or number of arguments."""
    command = typer.main.get_command(app)
    while arguments and hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    with command.make_context("multiseg", list(arguments)) as context:
        assert context.params


def commands(text: str) -> list[str]:
    """Lines with commands, those that go on put together."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip("# ").strip() for line in joined.splitlines()]


@pytest.mark.parametrize("name", UNITS)
def test_units_hold_settings_that_there_are(name: str) -> None:
    found = unit(name)
    assert set(found.sections()) == set(KNOWN)
    for section, known in KNOWN.items():
        assert set(found[section]) <= set(known.split()), section


@pytest.mark.parametrize("name", UNITS)
def test_units_start_a_command_that_there_is(name: str) -> None:
    program, *arguments = shlex.split(unit(name)["Service"]["ExecStart"])
    assert Path(program).name == "multiseg"
    assert arguments[1] == {"multiseg-site.service": "join", "multiseg-server.service": "serve"}[name]
    accepts(arguments)


@pytest.mark.parametrize("name", UNITS)
def test_units_are_hardened(name: str) -> None:
    service = unit(name)["Service"]
    assert HARDENED.items() <= dict(service).items()
    assert service["User"] not in ("", "root")
    assert service["WorkingDirectory"] in service["ReadWritePaths"].split()


def test_units_wait_as_long_as_the_commands_do() -> None:
    site = float(unit("multiseg-site.service")["Service"]["TimeoutStopSec"])
    assert site > join.NODE_GRACE_S + join.WORK_GRACE_S
    assert float(unit("multiseg-server.service")["Service"]["TimeoutStopSec"]) > 4 * serve.Child.grace_s


def test_the_container_copies_files_that_there_are() -> None:
    lines = commands((DEPLOY / "Containerfile").read_text(encoding="utf-8"))
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert set(copied) >= {"pyproject.toml", "constraints.txt", "multiseg"}
    for name in copied:
        assert (ROOT / name).exists(), name
    for needed in re.findall(r'(?:readme|license-files) = \[?"([^"]+)"', (ROOT / "pyproject.toml").read_text()):
        assert needed in copied
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_container_runs_a_command_that_there_is() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    entry, default = (re.search(rf"^{name} (\[.*\])$", text, re.MULTILINE) for name in ("ENTRYPOINT", "CMD"))
    assert entry is not None
    assert default is not None
    arguments = [word.strip('"[] ') for found in (entry, default) for word in found[1].split(",")]
    assert arguments[0] == "multiseg"
    accepts(arguments[1:])
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE)
    assert "FLWR_TELEMETRY_ENABLED=0" in text


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/federation.md", *(f"deploy/{name}" for name in UNITS)])
def test_pages_name_commands_that_there_are(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    verbs = r"multiseg ((?:fed|ingest|info|predict) [^`|]*)"
    found = [found for line in commands(text) for found in re.findall(verbs, line)]
    assert found
    for line in found:
        said = shlex.split(line.split(" && ")[0], comments=True)
        if said[2:] or said[0] != "fed":
            accepts(said)


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/federation.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="no systemd here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_unknown(name: str) -> None:
    done = subprocess.run(["systemd-analyze", "verify", DEPLOY / name], capture_output=True, text=True, check=False)
    assert "Unknown" not in done.stderr, done.stderr


def test_the_python_of_the_image_is_one_that_we_support() -> None:
    found = re.search(r"python:3\.(\d+)", (DEPLOY / "Containerfile").read_text(encoding="utf-8"))
    assert found is not None
    assert int(found[1]) >= 11
    assert sys.version_info >= (3, 11)
