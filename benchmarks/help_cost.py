"""Processor time of `--help` of every command, in a new process each, with the number of modules that it imports.

    python -m benchmarks.help_cost
    python -m benchmarks.help_cost --repeats 5 ingest "fed join"

The time is that of the user and of the system together, the smallest of several, since other work on the machine only
adds to it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import click
from typer.main import get_command

from multiseg.cli.app import build_app

LIMIT_S = 0.5


def names(command: click.Command, above: str = "") -> list[str]:
    """All commands, such as "ingest" and "fed join"; "" is multiseg itself."""
    below = getattr(command, "commands", {})
    found = [name for key, part in below.items() for name in names(part, f"{above} {key}".strip())]
    return [above, *found]


def processor_time(arguments: list[str]) -> float:
    """Seconds of a new process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "multiseg", *arguments, "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def num_modules(arguments: list[str]) -> int:
    command = [sys.executable, "-X", "importtime", "-m", "multiseg", *arguments, "--help"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return done.stderr.count("import time:") - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help="all by default")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    slow = []
    print("| command | processor s | modules |\n|---|---|---|")
    for name in flags.commands or names(get_command(build_app())):
        arguments = name.split()
        seconds = min(processor_time(arguments) for _ in range(flags.repeats))
        print(f"| {f'multiseg {name}'.strip()} | {seconds:.2f} | {num_modules(arguments)} |", flush=True)
        slow += [f"multiseg {name}".strip()] * (seconds >= LIMIT_S)
    print(f"\n{LIMIT_S} s and more: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
