"""How often exchanged sequences are noticed, and right ones doubted. Run: python -m benchmarks.wrong_sequences STORE

Each case in turn is left out: the histograms of all other cases and their margin are what a model trained on them would
know. Then two of its sequences exchange their names, every pair in turn; one of the two has to be warned of.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from multiseg.models.contrasts import Contrasts, Histogram, contrasts_of, histogram, suspect
from multiseg.store.reader import open_store

Scan = tuple[str, str, str, Histogram]


@dataclass
class Counts:
    """Of one database: scans with their own name, those doubted, exchanged pairs, those not noticed."""

    scans: int = 0
    doubted: list[str] = field(default_factory=list)
    pairs: int = 0
    missed: list[str] = field(default_factory=list)


def scans_of(url: str, databases: Sequence[str]) -> list[Scan]:
    """The histograms of all cases."""
    store, found = open_store(url), []
    for name in databases or list(store):
        database = store[name]
        for case in database.cases:
            images = database.image(case, (0, 0, 0), case.extent)
            for channel, sequence in enumerate(database.modalities):
                scan = histogram(images[channel]) if sequence in case.modalities else None
                if scan is not None:
                    found.append((name, case.name, sequence, scan))
    return found


def judge(case: dict[str, Histogram], known: Contrasts, label: str, counts: Counts) -> None:
    """Count the doubts about one case, as it is named and with every exchange."""
    for name, scan in case.items():
        counts.scans += 1
        if found := suspect(known, name, scan):
            counts.doubted.append(f"{label} {name} like {found.like}")
    for first, second in itertools.combinations(case, 2):
        counts.pairs += 1
        if not (suspect(known, first, case[second]) or suspect(known, second, case[first])):
            counts.missed.append(f"{label} {first}-{second}")


def measure(scans: Sequence[Scan], tested: Sequence[str]) -> dict[str, Counts]:
    """The counts of each tested database."""
    result: dict[str, Counts] = {}
    for key in dict.fromkeys((database, case) for database, case, _, _ in scans if not tested or database in tested):
        case = {name: scan for database, of, name, scan in scans if (database, of) == key}
        known = contrasts_of([scan for scan in scans if scan[:2] != key])
        judge(case, known, "/".join(key), result.setdefault(key[0], Counts()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--database", action="append", default=[], help="only these, known and tested")
    parser.add_argument("--test", action="append", default=[], help="test only these; all are known")
    arguments = parser.parse_args()
    for name, counts in measure(scans_of(arguments.store, arguments.database), arguments.test).items():
        noticed = counts.pairs - len(counts.missed)
        print(f"{name}: {noticed} of {counts.pairs} exchanges noticed, {len(counts.doubted)} of {counts.scans} doubted")
        for text in (*(f"missed {one}" for one in counts.missed), *(f"doubted {one}" for one in counts.doubted)):
            print(f"  {text}")


if __name__ == "__main__":
    main()
