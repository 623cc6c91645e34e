"""A federated round beyond local training, against stock Flower FedAvg. Run: python -m benchmarks.federation

Three sites and the published Multi-Unet (8.9 million parameters). Ours is deployed whole: TLS, keys, gate, supervised
processes, one message a round. Flower's is as one would write it first (`benchmarks/stock_flower`): no TLS, a train and
an evaluate message. A round's overhead is its time less the longest work of a site: Flower's sites do none.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from multiseg.cli.app import run as multiseg
from multiseg.federation.centre.experiment_folder import read_history
from multiseg.federation.local_deployment import prepared, staged

SITES, ROUNDS, TURNS = ("alder", "birch", "dogwood"), 3, 3
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
RUN_TOML = """\
experiment = "overhead"
sites = ["alder", "birch", "dogwood"]
stream = {{ batch_size = 1, draw = {{ patch = [32, 32, 32] }} }}
augment = {{ preset = "none" }}
local = {{ steps = 1 }}
schedule = {{ rounds = {rounds}, validation_cases = 1 }}
privacy = {{ payload = "{payload}" }}
"""


def stores(folder: Path) -> dict[str, str]:
    """A small synthetic store for each site."""
    found = {}
    for name in SITES:
        hospital, found[name] = folder / "hospitals" / name, str(folder / f"{name}.zarr")
        made = ["phantoms", f"{hospital}", "--hospital", name, "--cases", "4", "--coarseness", "2"]
        assert multiseg(made) == 0
        assert multiseg(["ingest", f"{hospital / 'manifest.toml'}", "--store", found[name], "--spacing", "5"]) == 0
    return found


KINDS = {
    "flower-superlink": "SuperLink", "flwr-serverapp": "run (ServerApp)", "gate.gate": "gate",
    "flower.steward": "steward", "flower-supernode": "site's node", "flower.executor": "site's executor",
    "flower-superexec": "superexec", "flwr-clientapp": "site's app (ClientApp)",
}  # fmt: skip


class Peaks:
    """The most memory that each kind of process held, in MB, as the kernel counted it."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}

    def look(self) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, StopIteration):
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                kind = next(kind for sign, kind in KINDS.items() if sign in command)
                line = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("VmHWM"))
                self.most[kind] = max(self.most.get(kind, 0), int(line.split()[1]) // 1000)


def ours(folder: Path, sites: dict[str, str], payload: str, peaks: Peaks) -> tuple[list[float], int]:
    """Overhead of each round in seconds, and the bytes to and from a site in one."""
    rehearsal = prepared(folder, sites, device="cpu", least=1)
    (folder / "run.toml").write_text(RUN_TOML.format(rounds=ROUNDS, payload=payload))
    run = rehearsal.home / "runs" / "overhead"
    with staged(rehearsal):
        assert multiseg(["fed", "run", f"{rehearsal.home}", f"{folder / 'run.toml'}"]) == 0
        while not ((run / "state.safetensors").is_file() and "test" in read_history(run)["final"]):
            peaks.look()
            time.sleep(0.2)
    entries = read_history(run)["history"]
    overhead = [entry["seconds"] - max(site["seconds"] for site in entry["sites"].values()) for entry in entries]
    told = entries[-1]["sites"]["birch"]
    return overhead, int(told["sent"] + told["received"])


@contextmanager
def running(commands: list[list[str]], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    started = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.txt").open("w") as said:
                started.append(
                    subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
                )
            time.sleep(8)
        yield
    finally:
        for process in reversed(started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        time.sleep(2)
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def stock(folder: Path, peaks: Peaks) -> list[float]:
    """Seconds of each of Flower's rounds."""
    folder.mkdir(parents=True)
    here, link = Path(sys.executable).parent, "127.0.0.1:9461"
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | QUIET | {"FLWR_HOME": str(folder), "PATH": path}
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{link}"\ninsecure = true\n'
    )
    server = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", link[-4:]]
    nodes = [
        ["flower-supernode", "--insecure", "--superlink", link, "--host", "127.0.0.1", "--port", f"{9471 + number}"]
        for number in range(len(SITES))
    ]
    times = folder / "times.json"
    app = Path(__file__).with_name("stock_flower")
    with running([[*server, "--disable-runtime-dependency-installation"], *nodes], folder, environment):
        said = f'rounds={ROUNDS} times="{times}"'
        with (folder / "run.txt").open("w") as out:
            run = subprocess.Popen(["flwr", "run", str(app), "lab", "--stream", "--run-config", said],
                                   env=environment, stdout=out, stderr=out)  # fmt: skip
        while run.poll() is None:
            peaks.look()
            time.sleep(0.2)
    noted = json.loads(times.read_text())
    return [later - earlier for earlier, later in itertools.pairwise(noted)]


def main() -> None:
    """Both in turns, on the same machine."""
    found: dict[str, list[float]] = {"float32": [], "float16": [], "stock": []}
    peaks = {name: Peaks() for name in found}
    moved = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = stores(folder)
        for turn in range(TURNS):
            for kind in found:
                place = folder / f"{kind}-{turn}"
                if kind == "stock":
                    found[kind] += stock(place, peaks[kind])
                else:
                    seconds, moved[kind] = ours(place, sites, kind, peaks[kind])
                    found[kind] += seconds
                print(f"turn {turn}, {kind}: {', '.join(f'{s:.1f}' for s in found[kind][-ROUNDS:])} s", flush=True)
    against = median(found["stock"])
    for kind in ("float32", "float16"):
        ratios = sorted(own / against for own in found[kind])
        print(
            f"a round beyond local training, {kind}, {len(ratios)} rounds | stock Flower FedAvg, {against:.1f} s | "
            f"{median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f}); {moved[kind] / 1e6:.1f} MB a site and round"
        )
    for kind, one in peaks.items():
        print(f"peak memory, {kind}: " + ", ".join(f"{name} {most} MB" for name, most in sorted(one.most.items())))


if __name__ == "__main__":
    main()
