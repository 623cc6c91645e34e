"""Patches a second of the stream against other loaders: ratios of paired runs, above 1 when the stream is faster.

Run all rows: python -m benchmarks.loader
Run some:     python -m benchmarks.loader --only nnunet --edge 64 --rounds 5
On real data: python -m benchmarks.loader --data $MULTISEG_DATA
Where the time of one reader goes: python -m benchmarks.loader --profile

The peers are no dependencies of the package: benchmarks/requirements.txt says how to install them. Rows whose peer is
not installed are left out, and say so.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import cold, nnunet, ours, peers
from benchmarks.cases import Cases, phantom_cases, real_cases
from benchmarks.ours import Work
from benchmarks.profiling import profile
from benchmarks.remote import S3_ENVIRONMENT, served
from benchmarks.sides import Source, compare, in_fresh_process

LATENCY_S = 0.020
CONCURRENT_CASES = 8
CACHE = "64GiB"


@dataclass(frozen=True)
class Setup:
    """What one row is run on."""

    cases: Cases
    work: Work
    rounds: int = 5
    seconds: float = 2.0

    def against(self, theirs: Source, mine: Source | None = None) -> None:
        compare(mine or ours.stream(self.work), theirs, self.rounds, self.seconds)


class LeftOutError(Exception):
    """A row cannot be run here; the message says why."""


def _need(package: str) -> None:
    if not peers.is_installed(package):
        raise LeftOutError(f"{package} is not installed; see benchmarks/requirements.txt")


def row_nnunet(setup: Setup) -> None:
    _need("nnunetv2")
    print(in_fresh_process(nnunet.check, setup.cases, setup.work), flush=True)
    setup.against(nnunet.loader(setup.cases, setup.work))


def row_cold(setup: Setup) -> None:
    _need("nnunetv2")
    cold.compare(setup.cases, setup.work.edge, setup.rounds)


def row_ring(setup: Setup) -> None:
    """The store against decoded cases in memory, both through the stream's own workers and buffers."""
    cached = replace(setup.work, more=(*setup.work.more, ("cache", CACHE)))
    print(in_fresh_process(ours.check_same, setup.work, cached), flush=True)
    # Drawn at random, so that each worker has met every case many times over.
    first = 20 * len(ours.open_store(setup.work.url).cases)
    setup.against(ours.stream(cached, "the same stream on decoded cases in memory", first))


def row_memory(setup: Setup) -> None:
    setup.against(ours.crops_in_memory(setup.work))


def row_torch(setup: Setup) -> None:
    setup.against(ours.through_torch(setup.work))


def row_monai(setup: Setup, num_samples: int) -> None:
    _need("monai")
    setup.against(peers.monai_persistent(setup.cases, setup.work, num_samples))


def row_torchio(setup: Setup, sampler: str) -> None:
    _need("torchio")
    setup.against(peers.torchio_queue(setup.cases, setup.work, sampler))


def row_scaling(setup: Setup) -> None:
    setup.against(ours.stream(replace(setup.work, workers=1)))


def row_aligned(setup: Setup) -> None:
    """What it costs to bring sequences to other channels and to drop some."""
    turned = ours.stream(
        replace(setup.work, is_turned=True), f"channels turned, sequences dropped, {setup.work.edge}^3"
    )
    setup.against(ours.stream(setup.work, "as stored, none dropped"), turned)


def row_remote(setup: Setup, through: str, has_disk_cache: bool = False) -> None:
    local = replace(setup.work, batch_size=CONCURRENT_CASES)
    store = Path(setup.work.url)
    with served(store.parent.parent, LATENCY_S) as server:
        if through == "s3":  # the first part of the path is the bucket
            os.environ.update(S3_ENVIRONMENT, AWS_ENDPOINT_URL=server)
        url = f"{'s3:/' if through == 's3' else server}/{store.parent.name}/{store.name}"
        print(in_fresh_process(ours.check_same, local, replace(local, url=url)), flush=True)
        what = f"stream from {through} at {1000 * LATENCY_S:.0f} ms, {CONCURRENT_CASES} cases a batch, {local.edge}^3"
        if not has_disk_cache:
            setup.against(ours.stream(local, "the same, local"), ours.stream(replace(local, url=url), what))
            return
        with TemporaryDirectory() as folder:
            cached = replace(local, url=url, more=(*local.more, ("disk_cache", folder)))
            first = 20 * len(ours.open_store(local.url).cases)
            mine = ours.stream(cached, f"{what}, copies on the local disk", first)
            setup.against(ours.stream(local, "the same, local"), mine)


ROWS: dict[str, Callable[[Setup], None]] = {
    "nnunet": row_nnunet,
    "ring": row_ring,
    "memory": row_memory,
    "torch": row_torch,
    "scaling": row_scaling,
    "aligned": row_aligned,
    "monai-1": lambda setup: row_monai(setup, 1),
    "monai-4": lambda setup: row_monai(setup, 4),
    "torchio-uniform": lambda setup: row_torchio(setup, "uniform"),
    "torchio-label": lambda setup: row_torchio(setup, "label"),
    "cold": row_cold,
    "remote-http": lambda setup: row_remote(setup, "http"),
    "remote-s3": lambda setup: row_remote(setup, "s3"),
    "remote-cached": lambda setup: row_remote(setup, "http", has_disk_cache=True),
}
EDGES = {"cold": (64, 128), "remote-http": (64,), "remote-s3": (64,), "remote-cached": (64,)}
"""Of rows that are not run at every edge."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--edge", nargs="+", type=int, help="of the patches, in voxels; 64 96 128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="that each side runs in a round, at least")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--spacing-mm", type=float, help="edge of a voxel; 0.8 for synthetic heads, 1 for real scans")
    parser.add_argument("--data", type=Path, help="folder of real scans, as $MULTISEG_DATA; synthetic heads without")
    parser.add_argument("--float32", action="store_true", help="our batches are made float32 on the processor, too")
    parser.add_argument("--profile", action="store_true", help="only show where the time of one reader goes")
    return parser


def main(argv: list[str] | None = None) -> None:
    given = _parser().parse_args(argv)
    if given.data:
        cases = real_cases(given.data, given.cases, given.spacing_mm or 1.0)
    else:
        cases = phantom_cases(given.cases, given.spacing_mm or 0.8)
    print(f"{cases.what}; patches of every sequence, batches of {given.batch_size}", flush=True)
    if given.profile:
        for edge in given.edge or (64, 96, 128):
            profile(Work(cases.url, edge, 0, given.batch_size), num_batches=100 * 64 // edge)
        return
    for name in given.only or ROWS:
        for edge in given.edge or EDGES.get(name, (64, 96, 128)):
            work = Work(cases.url, edge, given.workers, given.batch_size, given.float32)
            try:
                ROWS[name](Setup(cases, work, given.rounds, given.seconds))
            except LeftOutError as reason:
                print(f"{name}, {edge}^3: left out: {reason}.", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no side is left standing still
    main()
