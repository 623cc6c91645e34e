"""Everything that a card has to show, in one command of less than eight minutes: python -m benchmarks.gpu

Mixed precision, the page-locked ring, waiting for data, a step against the released settings, augmentation on the card,
nccl, federated sites and --deterministic: a line each, in a process of its own, which may fail, crash or run out of
memory or time without ending the others. The table says for each line what came of it or why nothing did; all of it is
written to gpu.json, too.

Where there is no card: python -m benchmarks.gpu --device cpu --small
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_lines import LINES, LeftOutError, run_line

RESULT = "RESULT "
MINUTES = 7.5
LAST_WORDS = 300


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--small", action="store_true", help="tiny networks and patches: whether it runs at all")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that all lines may take together")
    parser.add_argument("--only", nargs="+", choices=LINES, metavar="LINE", help=", ".join(LINES))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--line", choices=LINES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.line:
        return _child(given.line, given.device, given.small)
    until, found = time.monotonic() + 60 * given.minutes, {}
    for name in given.only or LINES:
        command = [sys.executable, "-m", "benchmarks.gpu", "--line", name, "--device", given.device]
        found[name] = _outcome(command + ["--small"] * given.small, min(LINES[name].budget_s, until - time.monotonic()))
        print(_row(name, found[name]), flush=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    failed = [name for name, one in found.items() if "failed" in one]
    print(
        f"{len(found) - len(failed)} of {len(found)} lines have something to show; {given.out} holds all.", flush=True
    )
    return 1 if failed else 0


def _outcome(command: Sequence[str], budget_s: float) -> dict[str, Any]:
    """What a line's process said, or why it said nothing."""
    if budget_s <= 0:
        return {"failed": "no time was left", "seconds": 0.0}
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=budget_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
        process.communicate()
        return {"failed": f"not done after {budget_s:.0f} s", "seconds": time.monotonic() - began}
    told: dict[str, Any] = {"seconds": time.monotonic() - began}
    results = [line.removeprefix(RESULT) for line in said.splitlines() if line.startswith(RESULT)]
    if process.returncode == 0 and results:
        return told | json.loads(results[-1])
    last = [line for line in complained.strip().splitlines() if line.strip()][-1:] or ["it said nothing"]
    return told | {"failed": f"exit code {process.returncode}: {last[0][-LAST_WORDS:]}"}


def _child(name: str, device: str, is_small: bool) -> int:
    try:
        found = {"found": run_line(name, device, is_small)}
    except LeftOutError as reason:
        found = {"found": {"left out": str(reason)}}
    print(RESULT + json.dumps(found), flush=True)
    return 0


def _row(name: str, outcome: dict[str, Any]) -> str:
    said = f"failed: {outcome['failed']}" if "failed" in outcome else _words(outcome["found"])
    return f"{name} | {said} | {outcome['seconds']:.0f} s"


def _words(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
    )


if __name__ == "__main__":
    sys.exit(main())
