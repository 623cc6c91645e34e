"""What the sequences of a run's training cases look like, for its model to notice wrong names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multiseg.models.contrasts import Contrasts, Histogram, contrasts_of, histogram
from multiseg.models.saved import ModelInfo
from multiseg.store.reader import Case, Store

MOST_CASES = 24
"""The most cases of a database that are read, evenly spaced: each is read whole, once."""


def run_contrasts(store: Store, cases: Sequence[Case], info: ModelInfo, parent: Contrasts | None) -> Contrasts:
    """The histograms of the cases' sequences, and those of the model that it starts from.

    The new data's margin counts where there is one; a parent's databases keep their means if these data have none of
    that name. Sequences without a channel are left out.
    """
    own = contrasts_of(_scans(store, cases, info))
    if parent is None:
        return own
    means = {
        name: {**parent.means.get(name, {}), **own.means.get(name, {})}
        for name in info.axis
        if name in parent.means or name in own.means
    }
    return Contrasts(means, max(own.margin, parent.margin))


def _scans(store: Store, cases: Sequence[Case], info: ModelInfo) -> Iterator[tuple[str, str, str, Histogram]]:
    by_database: dict[str, list[Case]] = {}
    for case in cases:
        by_database.setdefault(case.database, []).append(case)
    for name, group in by_database.items():
        database = store[name]
        step = max(1, -(-len(group) // MOST_CASES))
        for case in group[::step]:
            images = database.image(case, (0, 0, 0), case.extent)
            for channel, sequence in enumerate(database.modalities):
                if sequence in case.modalities and sequence in info.axis:
                    scan = histogram(images[channel])
                    if scan is not None:
                        yield name, case.name, sequence, scan
