"""Whatever breaks in the middle of a run, nothing that was finished is lost, and the result is the undisturbed one.

Every test lets a whole deployment of two or three sites run on loopback, with TLS and keys, breaks something in the
middle and then compares the weights bit for bit with those of a run in which nothing happened. One run with the quick
faults is always tested; each by itself, and those that have to wait for minutes or need root, only where
$MULTISEG_FAULTS is set to "all". A file named by $MULTISEG_FAULT_TABLE gets a line a fault.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from deployed import Deployment, children, command_of, deployment, descendants, options_for, undisturbed, until

from multiseg.federation.identity import home
from multiseg.federation.identity.certificates import make_certificate
from multiseg.federation.identity.enrol import enrol_server

STEPS = 100
PR_SET_CHILD_SUBREAPER = 36
SLOW = pytest.mark.skipif(
    os.environ.get("MULTISEG_FAULTS") != "all", reason="waits for minutes: set MULTISEG_FAULTS=all to break this, too"
)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for network namespaces and a small disk")


@pytest.fixture(scope="module")
def stand(site_stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("stand"), site_stores) as made:
        yield made


class Broken:
    """A run in which something is broken: begun, and held against the undisturbed one in the end."""

    def __init__(self, stand: Deployment, fault: str, rounds: int = 3, steps: int = STEPS) -> None:
        self.stand, self.fault, self.rounds = stand, fault, rounds
        schedule = {"rounds": rounds, "validation_cases": 1}
        name = re.sub(r"\W+", "-", fault)[:64]
        self.options = options_for(name, tuple(stand.stores), steps, schedule=schedule)
        self.name, self.began = self.options.experiment, time.monotonic()
        stand.submit(self.options)
        stand.wait_round(self.name, 2)

    def working(self, site: str) -> int:
        """The process that trains at a site, as soon as there is one."""
        executor = until(
            30, f"{site} has an executor", lambda: self.stand.sites[site].part("federation.flower.executor")
        )
        return int(until(60, f"{site} trains", lambda: child_of(executor)))

    def hold_all(self) -> dict[str, int]:
        """The processes that train, each stopped as soon as it is there."""
        executors = {name: site.part("federation.flower.executor") for name, site in self.stand.sites.items()}
        held: dict[str, int] = {}

        def are_held() -> bool:
            for name in executors.keys() - held.keys():
                if pid := child_of(executors[name]):
                    os.kill(pid, signal.SIGSTOP)
                    held[name] = pid
            return len(held) == len(executors)

        until(60, "all sites train", are_held, pause_s=0.01)
        return held

    def ends_as_if_nothing_had_happened(self, tmp_path: Path, seconds: float = 500) -> None:
        history = self.stand.finished(self.name, seconds)["history"]
        assert [entry["round"] for entry in history] == list(range(1, self.rounds + 1))
        assert all(set(entry["sites"]) == set(self.stand.stores) for entry in history), "the roster was whole"
        assert self.stand.weights(self.name) == undisturbed(self.options, self.stand.stores, tmp_path / "quiet")
        self.told(history)

    def told(self, history: list[dict]) -> None:
        if file := os.environ.get("MULTISEG_FAULT_TABLE"):
            entry = {
                "fault": self.fault,
                "rounds_lost": self.rounds - len(history),
                "seconds": round(time.monotonic() - self.began),
                "round_seconds": [round(entry["seconds"]) for entry in history],
            }
            with Path(file).open("a") as table:
                table.write(json.dumps(entry) + "\n")


def child_of(pid: int) -> int:
    return next(iter(children(pid)), 0)


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal was sent to a process that stands still."""
    (bits,) = re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(bits, 16) >> (number - 1) & 1)


@pytest.mark.slow(seconds=150)
def test_one_thing_after_the_other(site_stores: dict[str, str], tmp_path: Path) -> None:
    """A node and a training in round 2, a slow site and one that is left in round 3, the server app in round 4."""
    with deployment(tmp_path / "stand", {name: site_stores[name] for name in ("alder", "birch")}) as stand:
        alder, birch = stand.sites["alder"], stand.sites["birch"]
        broken = Broken(stand, "a node and a training, a site and a slow one, the server app", rounds=4, steps=8)
        held = broken.hold_all()
        os.kill(birch.part("flower-supernode"), signal.SIGKILL)
        os.kill(held["alder"], signal.SIGKILL)
        until(60, "birch is back", lambda: birch.said.read_text().count("Connected to") == 2)
        os.kill(held["birch"], signal.SIGCONT)
        stand.wait_round(broken.name, 3)
        held = broken.hold_all()
        birch.send(signal.SIGINT)
        until(30, "the training is asked to stop", lambda: is_pending(held["birch"], signal.SIGTERM))
        os.kill(held["birch"], signal.SIGCONT)
        assert birch.popen.wait(60) == 0
        assert "stopped; the server asks again when this site is back." in birch.said.read_text()
        stand.join("birch")
        until(60, "birch is back", lambda: birch.said.read_text().count("Connected to") == 3)
        os.kill(held["alder"], signal.SIGCONT)
        stand.wait_round(broken.name, 4)
        assert stand.server
        os.kill(until(20, "the run has a process", lambda: stand.server.part("flwr-serverapp")), signal.SIGKILL)
        broken.ends_as_if_nothing_had_happened(tmp_path)
        assert alder.said.read_text().count("the answering process died") == 1
        assert birch.said.read_text().count("The node has restarted since") == 1


@SLOW
def test_a_killed_node_is_started_again_and_finishes_the_round(stand: Deployment, tmp_path: Path) -> None:
    broken = Broken(stand, "kill -9 of a node")
    broken.working("birch")
    node = stand.sites["birch"].part("flower-supernode")
    os.kill(node, signal.SIGKILL)
    broken.ends_as_if_nothing_had_happened(tmp_path)
    assert stand.sites["birch"].part("flower-supernode") not in (0, node)


@SLOW
def test_a_killed_training_is_begun_again(stand: Deployment, tmp_path: Path) -> None:
    broken = Broken(stand, "kill -9 of the training")
    training, node = broken.working("alder"), stand.sites["alder"].part("flower-supernode")
    os.kill(training, signal.SIGKILL)
    broken.ends_as_if_nothing_had_happened(tmp_path)
    assert not command_of(training)
    assert stand.sites["alder"].part("flower-supernode") == node, "only the training was begun again"


@SLOW
def test_a_killed_run_process_is_taken_up_again(stand: Deployment, tmp_path: Path) -> None:
    broken = Broken(stand, "kill -9 of the server app")
    assert stand.server
    os.kill(until(20, "the run has a process", lambda: stand.server.part("flwr-serverapp")), signal.SIGKILL)
    broken.ends_as_if_nothing_had_happened(tmp_path)


@SLOW
def test_ctrl_c_at_a_site_and_a_slow_one(stand: Deployment, tmp_path: Path) -> None:
    broken = Broken(stand, "Ctrl-C at a site, another stands still for 20 s")
    slow = broken.working("alder")
    os.kill(slow, signal.SIGSTOP)
    broken.working("dogwood")
    assert stand.sites["dogwood"].end(signal.SIGINT) == 0
    time.sleep(20)
    os.kill(slow, signal.SIGCONT)
    stand.join("dogwood")
    broken.ends_as_if_nothing_had_happened(tmp_path)


@SLOW
def test_a_killed_superlink_that_is_away_for_18_seconds(stand: Deployment, tmp_path: Path) -> None:
    broken = Broken(stand, "kill -9 of the SuperLink, 18 s down")
    broken.working("birch")
    assert stand.server
    stand.server.send(signal.SIGSTOP)  # so that its supervisor does not start it at once
    os.kill(stand.server.part("flower-superlink"), signal.SIGKILL)
    time.sleep(18)
    stand.server.send(signal.SIGCONT)
    broken.ends_as_if_nothing_had_happened(tmp_path)


@SLOW
def test_a_server_that_is_gone_for_two_minutes(stand: Deployment, tmp_path: Path) -> None:
    broken = Broken(stand, "the whole server gone for two minutes")
    broken.working("birch")
    assert stand.server
    with suppress(subprocess.TimeoutExpired):
        stand.server.end(signal.SIGKILL, 10)
    time.sleep(120)
    stand.serve()
    broken.ends_as_if_nothing_had_happened(tmp_path, 600)


@SLOW
def test_nine_kills_of_the_whole_server_where_nobody_waits_for_the_dead(stand: Deployment, tmp_path: Path) -> None:
    """This process adopts what the killed server leaves, and does not wait for it: as process 1 of many containers."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    left: set[int] = set()
    try:
        broken = Broken(stand, "nine kills of the server in 110 s")
        for _ in range(9):
            assert stand.server
            left |= {stand.server.popen.pid, *descendants(stand.server.popen.pid)}
            stand.server.send(signal.SIGKILL)
            stand.serve()
            time.sleep(12)
        broken.ends_as_if_nothing_had_happened(tmp_path, 600)
        assert [pid for pid in left if command_of(pid)] == [], "what was killed still runs"
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@SLOW
def test_ctrl_c_at_the_server(stand: Deployment, tmp_path: Path) -> None:
    broken = Broken(stand, "Ctrl-C at the server")
    broken.working("birch")
    assert stand.server
    assert stand.server.end(signal.SIGINT) == 0
    stand.serve()
    broken.ends_as_if_nothing_had_happened(tmp_path, 600)


@SLOW
@AS_ROOT
def test_a_full_disk_at_the_server(stand: Deployment, tmp_path: Path) -> None:
    place = stand.home / "runs" / "a-full-disk-at-the-server"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    try:
        broken = Broken(stand, "a full disk at the server")
        filler = place / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"0" * 4096)
                file.flush()

        def failures() -> list[dict]:
            runs = stand.status()["runs"]
            return [one for one in runs if one["experiment"] == broken.name and one["status"] == "failed"]

        failed = until(120, "the run fails", failures)
        assert "could not be written" in failed[0]["details"] or "disk" in failed[0]["details"], failed
        filler.unlink()
        stand.submit(broken.options)
        broken.ends_as_if_nothing_had_happened(tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@SLOW
def test_an_expired_certificate_keeps_a_site_out_until_it_is_renewed(stand: Deployment, tmp_path: Path) -> None:
    stand.sites["dogwood"].end(signal.SIGINT)
    hosts, files = ["127.0.0.1", "localhost"], (home.CERTIFICATE, home.KEY)
    make_certificate(stand.home, (home.CA, home.CA_KEY), files, hosts, days=0)  # ends as it begins
    before = len((stand.folder / "dogwood.txt").read_text())
    try:
        stand.join("dogwood")

        def said() -> str:
            return (stand.folder / "dogwood.txt").read_text()[before:]

        until(60, "dogwood says why", lambda: "certificate has expired" in said())
        assert stand.sites["dogwood"].popen.wait(30) == 3
        assert "Connected" not in said()
    finally:
        enrol_server(stand.home, [], {})
    stand.join("dogwood")
    until(90, "dogwood is in", lambda: "Connected" in said())


@SLOW
def test_a_site_that_sends_nan_is_named_and_one_that_answers_twice_counts_once(
    stand: Deployment, tmp_path: Path
) -> None:
    stand.sites["birch"].end(signal.SIGINT)
    stand.sites["birch"] = Liar(stand, "birch")
    try:
        options = options_for("a-site-that-sends-NaN", tuple(stand.stores), 20, schedule={"rounds": 3, "quorum": 2})
        stand.submit(options)
        history = stand.finished(options.experiment)["history"]
        assert [set(entry["sites"]) for entry in history][1] == {"alder", "dogwood"}
        assert "not finite" in history[1]["failed"]["birch"]
        assert set(history[2]["sites"]) == set(stand.stores)
    finally:
        stand.sites["birch"].end(signal.SIGTERM)
        stand.join("birch")


class Liar:
    """A site of which the executor lies: NaN in round 2, every answer pushed twice."""

    def __init__(self, stand: Deployment, name: str) -> None:
        script = Path(__file__).with_name("liar.py")
        with (stand.folder / "liar.txt").open("w") as said:
            self.popen = subprocess.Popen(
                [sys.executable, str(script), str(stand.folder / name / "site.toml")],
                stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    def end(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        os.killpg(self.popen.pid, number)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        return 0


@pytest.mark.slow
@SLOW
@AS_ROOT
def test_a_line_that_is_cut_for_100_seconds(site_stores: dict[str, str], tmp_path: Path) -> None:
    """One site stands behind a line of its own, a network namespace, which goes down while it trains."""
    name, outer, inner, host = f"ms{os.getpid()}", f"mo{os.getpid()}", f"mi{os.getpid()}", "10.213.77.1"
    line = [
        f"ip netns add {name}", f"ip link add {outer} type veth peer name {inner}",
        f"ip link set {inner} netns {name}", f"ip addr add {host}/24 dev {outer}", f"ip link set {outer} up",
        f"ip -n {name} addr add 10.213.77.2/24 dev {inner}", f"ip -n {name} link set {inner} up",
        f"ip -n {name} link set lo up",
    ]  # fmt: skip
    made = Deployment(tmp_path, site_stores, host)
    try:
        for command in line:
            subprocess.run(command.split(), check=True)
        made.serve()
        until(60, "the server is ready", lambda: "Ready." in (tmp_path / "serve.txt").read_text())
        for site in site_stores:
            made.join(site, ("ip", "netns", "exec", name) if site == "birch" else ())
        until(90, "all sites are online", lambda: all(one["status"] == "online" for one in made.status()["sites"]))
        broken = Broken(made, "a line cut for 100 s")
        broken.working("birch")
        subprocess.run(["ip", "link", "set", outer, "down"], check=True)
        time.sleep(100)
        subprocess.run(["ip", "link", "set", outer, "up"], check=True)
        broken.ends_as_if_nothing_had_happened(tmp_path, 600)
    finally:
        made.down()
        subprocess.run(["ip", "link", "del", outer], check=False)
        subprocess.run(["ip", "netns", "del", name], check=False)
