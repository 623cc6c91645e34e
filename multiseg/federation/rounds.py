"""A federated run from the first handshake to the last evaluation, over any link to the sites."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiseg.federation.exchange import Link
from multiseg.federation.plan import FederationOptions
from multiseg.federation.progress import Event


@dataclass(frozen=True)
class RunResult:
    """How a run ended: rounds done, whether that is all of them, and its best model by the mean over the sites."""

    folder: Path
    round: int
    finished: bool
    best: float
    best_round: int
    history: Sequence[Mapping[str, Any]] = ()
    test: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def run(
    options: FederationOptions,
    link: Link,
    folder: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> RunResult:
    """Run all rounds that are not done yet, into `folder`, going on from what is there.

    Raises:
        UsageError: the settings cannot be meant, or are not those of the run that the folder holds.
        FederationError: a site does not fit, or a round cannot be completed. What is finished is saved.
        ResourceError: the disk is full, or another process runs the experiment.
    """
    raise NotImplementedError
