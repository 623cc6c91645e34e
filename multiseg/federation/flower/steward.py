"""Runs next to the SuperLink: registers and removes sites by the registry, resumes lost runs, serves metrics."""

from __future__ import annotations

import http.server
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from multiseg.errors import FederationError
from multiseg.federation.centre.prometheus_text import in_text, metric
from multiseg.federation.flower.control import Control, SuperLinkNode, SuperLinkRun, controlling
from multiseg.federation.gate.endings import write_ended
from multiseg.federation.gate.traffic import read_traffic
from multiseg.federation.identity import home
from multiseg.federation.identity.authority import renew_in_time
from multiseg.federation.identity.certificates import days_left
from multiseg.federation.identity.home import Home, read_home
from multiseg.federation.identity.registry import EnrolledSite, allowed, read_registry

LOOK_S, EVERY_S, ALL_EVERY_S = 1.0, 5.0, 120.0
"""Intervals to check the registry, to ask the SuperLink, and to ask it for older runs, too."""
NEWEST = 20
PATIENCE_S = 60.0
"""For the SuperLink to start."""
DAY_S = 86400.0
LOSSES_AN_HOUR = 5
"""An experiment that is lost more often is resumed after a pause: something else may be wrong."""
PAUSE_S, LONGEST_PAUSE_S = 60.0, 1800.0
"""The first pause, which doubles each time, and the longest."""


@dataclass
class Known:
    """The last known state of the server."""

    registry: Mapping[str, EnrolledSite] = field(default_factory=dict)
    nodes: Sequence[SuperLinkNode] = ()
    runs: Sequence[SuperLinkRun] = ()
    answers: bool = False
    all_due: float = 0.0


def reconcile(control: Control, registry: Mapping[str, EnrolledSite]) -> Iterator[str]:
    """Register the enrolled sites and remove all others; messages on what was done.

    Raises:
        FederationError: the SuperLink refuses or does not answer.
    """
    wanted = allowed(registry)
    nodes = control.nodes()
    for node in nodes:
        if node.public_key not in wanted:
            control.unregister(node.node_id)
            yield f"{node.name or node.node_id} removed."
    for public_key in sorted(wanted.keys() - {node.public_key for node in nodes}, key=wanted.__getitem__):
        control.register(wanted[public_key], public_key)
        yield f"{wanted[public_key]} registered."


def to_take_up(runs: Sequence[SuperLinkRun], now: datetime) -> list[SuperLinkRun]:
    """The lost runs to submit again: each is the newest of its experiment, and its pause is over.

    Args:
        runs: the newest first.
    """
    lost = [run for name, run in _newest(runs).items() if name and run.lost]
    return [run for run in lost if _has_waited(run, pause_s(losses(runs, run.experiment, now)), now)]


def _newest(runs: Sequence[SuperLinkRun]) -> dict[str, SuperLinkRun]:
    """The newest run of each experiment; `runs` has the newest first."""
    newest: dict[str, SuperLinkRun] = {}
    for run in runs:
        newest.setdefault(run.experiment, run)
    return newest


def pause_s(times: int) -> float:
    """Seconds until an experiment is resumed that was lost this often within the last hour."""
    return min(PAUSE_S * 2.0 ** (times - LOSSES_AN_HOUR - 1), LONGEST_PAUSE_S) if times > LOSSES_AN_HOUR else 0.0


def _has_waited(run: SuperLinkRun, seconds: float, now: datetime) -> bool:
    """Whether a run ended this long ago, by a clock that may have been changed since."""
    return not seconds or abs((now - datetime.fromisoformat(run.finished)).total_seconds()) >= seconds


def losses(runs: Sequence[SuperLinkRun], experiment: str, now: datetime) -> int:
    """How often an experiment was lost within the last hour."""
    since = (now - timedelta(hours=1)).isoformat()
    return sum(run.lost and run.experiment == experiment and run.finished >= since for run in runs)


def ended(runs: Sequence[SuperLinkRun]) -> dict[str, str]:
    """How each run ended, by its number. A lost run has not ended while its experiment continues or will be resumed.

    Args:
        runs: the newest first.
    """
    over = {name for name, run in _newest(runs).items() if run.status == "finished" and not run.lost}
    return {
        str(run.run_id): run.outcome or "finished"
        for run in runs
        if run.status == "finished" and (not run.lost or run.experiment in over)
    }


def metrics(server: Home, known: Known) -> str:
    """The metrics for Prometheus: the server's own, then those of the newest run."""
    online = {node.name for node in known.nodes if node.status == "online"}
    sites = {(name,): name in online for name in sorted(allowed(known.registry).values())}
    counts, refused = read_traffic(server.at(home.TRAFFIC))
    through = {(name, "up"): count.up for name, count in counts.items()}
    through |= {(name, "down"): count.down for name, count in counts.items()}
    refusals = {(reason,): count for reason, count in refused.items()}
    active = {(run.experiment,): run.status != "finished" for run in known.runs[:1]}
    answers = {("superlink",): known.answers, ("gate",): _listens(server)}
    free = {(): shutil.disk_usage(server.folder).free}
    found = [
        metric("multiseg_up", "Whether a part of the server answers.", ["part"], answers),
        metric("multiseg_site_online", "Whether a site is online.", ["site"], sites),
        metric("multiseg_gate_bytes_total", "Bytes of bodies through the gate.", ["site", "direction"], through),
        metric("multiseg_gate_refused_total", "Requests that the gate refused.", ["reason"], refusals),
        metric("multiseg_run_active", "Whether a run is active.", ["experiment"], active),
        metric("multiseg_disk_free_bytes", "Under the server's folder.", [], free),
    ]
    with suppress(OSError, ValueError):
        left = days_left(server.at(home.CERTIFICATE))
        found.append(metric("multiseg_certificate_days", "Until the server's certificate ends.", [], {(): left}))
    text = in_text(found)
    with suppress(OSError, IndexError):
        text += (server.at(home.RUNS) / known.runs[0].experiment / "metrics.prom").read_text(encoding="utf-8")
    return text


def _listens(server: Home) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.listen, server.listen)  # noqa: S104 (dialled, not bound)
    with suppress(OSError), socket.create_connection((host, server.port), timeout=1):
        return True
    return False


def attend(server: Home, control: Control, known: Known) -> Iterator[str]:
    """Do everything once; messages for a person.

    Raises:
        FederationError: the SuperLink does not answer, or the registry is damaged.
    """
    known.registry = read_registry(server.folder)
    yield from reconcile(control, known.registry)
    before = {node.name for node in known.nodes if node.status == "online"}
    known.nodes = control.nodes()
    online = {node.name for node in known.nodes if node.status == "online"}
    num_sites = len(allowed(known.registry))
    for name in sorted(online ^ before):
        yield f"{name} is {'online' if name in online else 'offline'}: {len(online)} of {num_sites} sites are online."
    old_status = {run.run_id: run.status for run in known.runs}
    known.runs = _runs(control, known)
    for run in known.runs:
        if run.status == "finished" and old_status.get(run.run_id, "finished") != "finished":
            pause = pause_s(losses(known.runs, run.experiment, datetime.now(UTC))) if run.lost else 0.0
            wait = f" It is resumed in {pause / 60:.0f} min, since it was lost often." if pause else ""
            yield f"Run {run.run_id} ({run.experiment}) {run.outcome}. {run.details}{wait}".strip()
    lost = to_take_up(known.runs, datetime.now(UTC))
    write_ended(server.folder, ended(known.runs))
    for run in lost:
        number = control.start(run.settings)
        yield f"Run {run.run_id} ({run.experiment}) was lost and continues as run {number}."


def _runs(control: Control, known: Known) -> list[SuperLinkRun]:
    """All runs, the newest first. Older ones are asked for less often: they seldom change, and may be many."""
    if time.monotonic() >= known.all_due:
        found = control.runs()
        known.all_due = time.monotonic() + ALL_EVERY_S
    else:
        found = control.runs(newest=NEWEST)
    runs = {run.run_id: run for run in (*known.runs, *found)}
    return sorted(runs.values(), key=lambda run: run.submitted, reverse=True)


def renewed(server: Home) -> str:
    """Renew the gate's certificate if it ends soon; messages for a person."""
    try:
        return renew_in_time(server)
    except FederationError as error:
        return str(error)


def watch(server: Home) -> None:
    """Attend until the process is ended."""
    known, last_error, changed, due = Known(), "", -1, 0.0
    patient_until = time.monotonic() + PATIENCE_S
    certificate_due = time.monotonic() + DAY_S
    _publish(server, known)
    with controlling(server) as control:
        while True:
            path = server.at(home.SITES)
            seen = path.stat().st_mtime_ns if path.exists() else 0
            if seen != changed or time.monotonic() >= due:
                try:
                    for line in attend(server, control, known):
                        _say(line)
                    if not known.answers:
                        _say(f"Ready. {len(allowed(known.registry))} sites are enrolled.")
                        patient_until = 0.0
                    known.answers, last_error, changed = True, "", seen
                except FederationError as error:
                    known.answers = False
                    if str(error) != last_error and time.monotonic() > patient_until:
                        last_error = str(error)
                        _say(last_error)
                due = time.monotonic() + (EVERY_S if known.answers else LOOK_S)
            if time.monotonic() >= certificate_due:
                certificate_due = time.monotonic() + DAY_S
                _say(renewed(server))
            time.sleep(LOOK_S)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n" if line else "")
    sys.stdout.flush()


def _publish(server: Home, known: Known) -> None:
    """Serve the metrics on loopback, in a thread that ends with the process."""

    class Numbers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/metrics"
            data = metrics(server, known).encode() if found else b"See /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", server.metrics_port), Numbers)
    threading.Thread(target=listener.serve_forever, daemon=True).start()


def main() -> None:
    """`python -m multiseg.federation.flower.steward HOME`, as `serve` starts it."""
    watch(read_home(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
