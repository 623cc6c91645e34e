"""The files in deploy/ name commands, options, files and settings that exist."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from functools import cache
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from multiseg.cli.app import build_app
from multiseg.federation.flower import joining, serve

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
README = (ROOT / "multiseg/federation/identity/README.txt.template").read_text(encoding="utf-8")
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


@cache
def command_line() -> Any:
    return typer.main.get_command(build_app())


def accepts(arguments: list[str]) -> None:
    """Fails where the command line knows no such verb, or the verb no such option or number of arguments."""
    command = command_line()
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
    assert site > joining.NODE_GRACE_S + joining.WORK_GRACE_S
    assert float(unit("multiseg-server.service")["Service"]["TimeoutStopSec"]) > 4 * serve.Child.grace_s


INSTRUCTIONS = {"FROM", "WORKDIR", "RUN", "ENV", "COPY", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD", "ARG", "USER"}


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of the container file by stage, those of the stage that it builds on first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in commands(
        re.sub(r"^#.*$", "", (DEPLOY / "Containerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    ):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            below, _, name = rest.partition(" AS ")
            found[name] = list(found.get(below, []))
        if word:
            found[name].append((word, rest))
    return found


def test_the_container_file_has_known_instructions_and_a_stage_for_processors_and_for_cuda() -> None:
    assert list(stages()) == ["base", "cuda", "cpu"]  # the last one is built without --target
    assert {word for lines in stages().values() for word, _ in lines} <= INSTRUCTIONS
    length = len(stages()["base"])
    (_, (_, cuda), *of_cuda), (_, (_, cpu), *of_cpu) = (stages()[name][length:] for name in ("cuda", "cpu"))
    assert of_cuda == of_cpu  # they differ in the index of torch alone
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cu1" in cuda
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in cpu


def test_the_container_copies_files_that_there_are_and_lets_nothing_else_in() -> None:
    copied = [name for word, rest in stages()["cpu"] if word == "COPY" for name in rest.split()[:-1]]
    assert set(copied) >= {"pyproject.toml", "constraints.txt", "requirements-site.txt", "multiseg"}
    for name in copied:
        assert (ROOT / name).exists(), name
    assert {"docs", "deploy"} <= set(copied)  # which the wheel brings along
    for needed in re.findall(r'(?:readme|license-files) = \[?"([^"]+)"', (ROOT / "pyproject.toml").read_text()):
        assert needed in copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n*\n")[1].split()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == set(copied)


def test_the_container_installs_pinned_versions_alone() -> None:
    installs = [
        step.strip()
        for word, rest in stages()["cpu"]
        if word == "RUN"
        for step in rest.split("&&")
        if "install" in step
    ]
    assert len(installs) == 4
    for step in installs:
        assert "--no-deps" in step or "--require-hashes" in step or "--constraint constraints.txt" in step, step
    (torch,) = [step for step in installs if "torch==" in step]
    # No package comes from two indexes, where either could put something else under its name.
    assert [step for step in installs if "index-url" in step] == [torch]
    assert "--extra-index-url" not in torch
    assert "--no-deps" in torch  # the other packages that it needs have pinned versions, which its index need not have
    script = re.search(r"\$\((.*)\)", torch)
    assert script is not None
    printed = subprocess.run(["sh", "-c", script[1]], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    pins = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert printed.stdout.split() == pins
    with_extras = re.search(r'"(\.\S*EXTRAS\S*)"', " ".join(installs))
    assert with_extras is not None
    for extras, asked in {"": ".", "dicom,onnx": ".[dicom,onnx]"}.items():
        command, environment = ["sh", "-c", f'printf %s "{with_extras[1]}"'], {"EXTRAS": extras}
        assert subprocess.run(command, env=environment, capture_output=True, encoding="utf-8").stdout == asked


def test_the_container_runs_any_command_without_root() -> None:
    values = dict(stages()["cpu"])
    assert values["ENTRYPOINT"] == '["multiseg"]'
    assert values["CMD"] == '["--help"]'
    for lines in stages().values():
        users = [rest for word, rest in lines if word == "USER"]
        assert users == ["999:999"] or lines == stages()["base"]
    assert "FLWR_TELEMETRY_ENABLED=0" in values["ENV"]
    # Read only but for /tmp: whatever is told where to write is told to write there.
    places = re.findall(r"(?:CONFIGDIR|CACHE_HOME)=(\S+)", values["ENV"])
    assert len(places) == 2
    assert all(place.startswith("/tmp/") for place in places)


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/federation.md", *(f"deploy/{name}" for name in UNITS)])
def test_pages_name_commands_that_there_are(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    verbs = r"multiseg(?::cpu)? ((?:fed|ingest|info|predict) [^`|]*)"
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
    done = subprocess.run(
        ["systemd-analyze", "verify", DEPLOY / name], capture_output=True, encoding="utf-8", check=False
    )
    assert "Unknown" not in done.stderr, done.stderr


@pytest.mark.slow
def test_the_wheel_brings_the_guide_and_the_units(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("multiseg", "docs", "deploy"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.png", "*.gif", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    share = wheel.name.removesuffix("-py3-none-any.whl") + ".data/data/share/multiseg"
    with zipfile.ZipFile(wheel) as packed:
        for name in ("docs/federation.md", "docs/ingest.md", *(f"deploy/{file.name}" for file in DEPLOY.iterdir())):
            assert packed.read(f"{share}/{name}") == (ROOT / name).read_bytes(), name


def test_guide_kit_and_units_name_the_files_where_the_wheel_puts_them() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["data-files"]
    assert data == {"share/multiseg/docs": ["docs/*.md"], "share/multiseg/deploy": ["deploy/*"]}
    for path in (*(DEPLOY / name for name in UNITS), DEPLOY / "README.md", ROOT / "docs" / "federation.md"):
        for folder, file in re.findall(
            r"\.venv/(share/multiseg/\w+)(?:/([\w.-]+\w))?", path.read_text(encoding="utf-8")
        ):
            assert folder in data, path
            assert not file or (ROOT / folder.rpartition("/")[2] / file).exists(), file
        assert "share/multiseg" in path.read_text(encoding="utf-8"), path
    for folder, file in re.findall(r"\.venv/(share/multiseg/\w+)(?:/([\w.-]+\w))?", README):
        assert folder in data
        assert not file or (ROOT / folder.rpartition("/")[2] / file).exists(), file
    assert README.count("share/multiseg") == 2


INSTALLS = [
    "pip install --require-hashes -r requirements-site.txt",
    "pip install --no-deps ./multiseg-",
]


def test_there_is_one_way_to_install() -> None:
    guide, kit = (ROOT / "docs" / "federation.md").read_text(encoding="utf-8"), README
    image = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    for command in INSTALLS:
        assert command in guide
        assert command in kit
    assert "--require-hashes --requirement requirements-site.txt" in image
    assert "--no-deps ." in image
    assert "pip install" not in (DEPLOY / "README.md").read_text(encoding="utf-8")  # it says: as the guide does
    torch = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch is not None
    assert f"pip install torch=={torch[1]}\n" in guide


def requirements() -> dict[str, tuple[str, str, list[str]]]:
    """Of what a site installs, by name: version, marker and hashes."""
    text = (ROOT / "requirements-site.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        parts = re.fullmatch(r"([\w.-]+)==([^ ;]+)(?: ; ([^-]+?))?((?: +--hash=sha256:[0-9a-f]{64})+) *", line)
        assert parts is not None, line
        found[canonicalize_name(parts[1])] = (parts[2], parts[3] or "", parts[4].split())
    assert len(found) == len(lines)
    return found


def test_all_that_a_site_installs_has_hashes_and_the_version_that_is_tested() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    found = requirements()
    assert {name: version for name, (version, _, _) in found.items()}.items() <= versions.items()
    assert all(hashes for _, _, hashes in found.values())
    assert "torch" not in found


def test_all_that_multiseg_needs_is_in_what_a_site_installs() -> None:
    """Followed through what is installed here: only torch, and what it alone needs, comes without a hash."""
    found, seen = requirements(), {"torch"}
    if version("zarr") != found["zarr"][0]:
        pytest.skip("other versions than those of constraints.txt are installed")
    wanted = [Requirement(text) for text in requires("multiseg") or () if "extra ==" not in text]
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        extras = ("", *one.extras)
        if name in seen or (one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in extras)):
            continue
        seen.add(name)
        assert name in found, f"{name} is missing: make requirements-site.txt"
        for text in requires(name) or ():
            below = Requirement(text)
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(below)
    assert len(seen) > 60


def test_the_python_of_the_image_is_one_that_we_support() -> None:
    found = re.search(r"python:3\.(\d+)", (DEPLOY / "Containerfile").read_text(encoding="utf-8"))
    assert found is not None
    assert int(found[1]) >= 11
    assert sys.version_info >= (3, 11)
