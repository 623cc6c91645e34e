"""A site's two processes: what their endings mean, and what a person is told."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from multiseg.errors import FederationError, ResourceError
from multiseg.federation.flower import joining as module
from multiseg.federation.flower.joining import Member, _Children, _RestartError, become, join
from multiseg.federation.flower.liveness import Pulse
from multiseg.federation.supervise import Ending


@pytest.fixture
def settings(tmp_path: Path) -> Member:
    return Member("alder", "127.0.0.1:8443", tmp_path / "ca.crt", tmp_path / "site.key", tmp_path / "state")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def signed_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    numbers: list[int] = []
    monkeypatch.setattr(module, "farewell", lambda settings, number: not numbers.append(number))
    return numbers


@pytest.fixture
def children(settings: Member, tmp_path: Path, said: list[str]) -> _Children:
    pulse = Pulse(tmp_path / "beat", lambda: "", said.append)
    return _Children(settings, tmp_path / "site.toml", tmp_path / "secret", said.append, pulse)


def ended(name: str, code: int, *lines: str) -> Ending:
    return Ending(name, code, 1.0, 1, lines)


def test_flower_knows_every_option_of_the_node(children: _Children, settings: Member) -> None:
    command = children.node().command
    assert command[1:3] == ["-m", "multiseg.federation.flower.node"]
    assert Path(command[4]).name == "flower-supernode"
    known = _parse_args_run_supernode().parse_args(command[5:])
    assert known.superlink == settings.server
    assert known.isolation == "process"
    assert known.host == "127.0.0.1"
    assert known.root_certificates == str(settings.ca)
    assert not known.insecure
    assert Path(command[0]).is_file()


def test_nothing_is_told_to_the_world(children: _Children, settings: Member) -> None:
    for child in (children.node(), children.executor()):
        assert child.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert child.environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert child.environment["FLWR_HOME"].startswith(str(settings.state))
        assert "127.0.0.1" in child.environment["NO_PROXY"]


@pytest.mark.slow
def test_the_executor_understands_its_command_and_writes_for_its_account_alone(
    children: _Children, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    made = tmp_path / "made"  # when it ends
    (tmp_path / "sitecustomize.py").write_text(
        f"import atexit, pathlib\natexit.register(pathlib.Path({str(made)!r}).touch)"
    )
    folders = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        children.executor().command, capture_output=True, encoding="utf-8", timeout=120, check=False, umask=0o022,
        env={**os.environ, "PYTHONPATH": folders},
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert f"{module.MARK}there is no file {tmp_path / 'site.toml'}" in run.stdout
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_a_key_that_is_not_known_ends_the_site(children: _Children) -> None:
    with pytest.raises(FederationError, match=r"127\.0\.0\.1:8443 does not know the key of alder"):
        children.node().after(ended("node", 1, "[code: 2901] This site's key is not enrolled"))


def test_a_connection_that_still_counts_is_waited_for(
    children: _Children, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    refused = ended("node", 1, "[code: 2004] Failed to activate SuperNode.")
    for _ in range(3):
        assert children.node().after(refused) == module.AGAIN_S
        now[0] += 30
    assert len(said) == 1
    now[0] += 60
    for _ in range(3):  # nobody is there to start it by hand
        assert children.node().after(refused) == module.SLOWLY_S
    assert len(said) == 2
    assert "another machine uses its key" in said[1]


def test_a_node_that_was_killed_is_signed_off_once(children: _Children, signed_off: list[int]) -> None:
    children.hear("node", "INFO :      SuperNode ID: 3281780698458618003")
    assert children.node().after(ended("node", -9)) == 1
    children.node().after(ended("node", -9))
    assert signed_off == [3281780698458618003]


def test_a_site_that_was_killed_whole_signs_its_node_off(
    settings: Member, children: _Children, signed_off: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children.hear("node", "INFO :      SuperNode ID: 7")
    monkeypatch.setattr(module, "supervise", lambda children, heard, tick: None)
    for _ in range(2):
        join(settings, tmp_path / "site.toml", lambda line: None)
    assert signed_off == [7]


@pytest.mark.parametrize("sign", [*module.TLS_SAYS, "something else"])
def test_a_connection_that_ends_is_tried_again(children: _Children, said: list[str], sign: str) -> None:
    assert children.node().after(ended("node", 1, f"error: {sign}")) == 1
    assert module.TLS_SAYS.get(sign, "node.log") in said[0]


def test_a_node_that_keeps_an_answer_to_itself_is_started_anew(
    children: _Children, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    children.hear("executor", module.HANDED)
    children.hear("node", "INFO :      Sending: query.multiseg message (ID: 71)")
    now[0] += 1000
    children.look()
    children.hear("executor", module.HANDED)
    now[0] += 40
    children.look()
    now[0] += 10
    with pytest.raises(_RestartError):
        children.look()
    assert said == ["The node does not send its answer."]


def test_a_dead_executor_takes_the_node_with_it(children: _Children) -> None:
    with pytest.raises(_RestartError):
        children.executor().after(ended("executor", -9))


def test_an_executor_that_cannot_run_says_why(children: _Children) -> None:
    with pytest.raises(FederationError, match="the executor cannot run: unknown settings"):
        children.executor().after(ended("executor", 2, "unknown settings"))


def test_a_person_hears_what_matters_once(children: _Children, said: list[str]) -> None:
    for line in (
        "INFO: Uvicorn running",
        "Connection attempt failed, retrying...",
        "Connection attempt failed, retrying",
    ):
        children.hear("node", line)
    children.hear("executor", "Traceback of patient 0815")
    children.hear("executor", f"{module.MARK}round 1: done")
    assert said == ["Cannot reach 127.0.0.1:8443; retrying.", "round 1: done"]


def test_both_are_started_anew_and_the_secret_is_kept_from_others(
    settings: Member, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def supervise(children: list[module.Child], heard: object, tick: object) -> None:
        secret = Path(children[0].command[-1])
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        seen.append(secret.read_bytes())
        if len(seen) == 1:
            raise _RestartError

    monkeypatch.setattr(module, "supervise", supervise)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    join(settings, tmp_path / "site.toml", said.append)
    assert len(seen) == 2
    assert len(seen[0]) >= 64
    assert said[-1] == "Stopped. The same command joins again."


def test_a_site_joins_once(settings: Member, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from multiseg.federation.flower.joining import _alone\n"
        "with _alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, settings.state], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ResourceError, match=re.escape(f"{settings.state} is in use by process {other.pid}")):
            join(settings, tmp_path / "site.toml", lambda line: None)
        os.kill(other.pid, signal.SIGKILL)


def test_the_process_that_stays_is_slim(settings: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        became.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        become(settings, tmp_path / "site.toml")  # type: ignore[arg-type]
    module_name, path, said = became[0][2:]
    code = (
        f"import sys; import {module_name} as joining\n"
        "joining.join = lambda member, path, say: say(f'{member!r} {path}')\n"
        "joining.main(sys.argv[1:]); print({'torch', 'pydantic', 'flwr', 'zarr'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, path, said], capture_output=True, encoding="utf-8", check=False)
    assert (done.stdout, done.stderr) == ("set()\n", f"{settings!r} {tmp_path / 'site.toml'}\n")


def test_errors_end_with_their_code(
    settings: Member, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.state.write_text("a file in the folder's place")
    monkeypatch.setattr(os, "umask", lambda mask: 0)
    said = json.dumps({name: str(value) for name, value in vars(settings).items()})
    assert module.main([str(tmp_path / "site.toml"), said]) == 5
    assert str(settings.state) in capsys.readouterr().err


def test_what_a_site_writes_is_for_its_account_alone(settings: Member, tmp_path: Path) -> None:
    said = json.dumps({name: str(value) for name, value in vars(settings).items()})
    code = (
        f"import sys; import {module.__name__} as joining\n"
        "joining.supervise = lambda children, heard, tick: (children[0].log.parent.mkdir(), children[0].log.touch())\n"
        "joining.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "site.toml"), said]
    subprocess.run(command, check=True, umask=0o022, capture_output=True)
    made = [settings.state, *settings.state.rglob("*")]
    assert settings.state / "logs" / "node.log" in made
    assert [path for path in made if path.stat().st_mode & 0o077] == []
