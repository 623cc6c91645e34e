"""A site's limits on the cost of a run, checked before anything is built or trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from multiseg.errors import FederationError
from multiseg.federation.plan import FederationOptions
from multiseg.files import write_atomically
from multiseg.models.network_parts import Part

SCORES = "scores.json"
MIB = 2**20
FLOAT = 4
"""Bytes."""
MOST_SEQUENCES, MOST_WIDTHS, WIDEST = 64, 12, 8192
"""Larger networks are refused at once: even describing them costs time."""
LARGEST_KERNEL_VOXELS = 16.0
"""Of blur and low resolution in augmentation, whose cost grows with it."""


@dataclass(frozen=True)
class Limits:
    """The most that a run may ask of a site. A limit of 0 is none.

    Attributes:
        steps: of a round.
        patches: of a round, over all its steps.
        minutes: of a round or an evaluation, which is then stopped after the current step or case.
        rounds: of a run.
        model_mib: of a network's weights in float32.
        memory_mib: of a step's patches, all sequences, times `stream.ahead`, and of the first features of the network;
            in training it takes several times as much.
        evaluations: of one answer: cases times the subsets of their sequences.
        scores_a_day: answers with a Dice, over all experiments; answers sent again do not count.
    """

    steps: int = 10_000
    patches: int = 1_000_000
    minutes: float = 1440.0
    rounds: int = 10_000
    model_mib: float = 2048.0
    memory_mib: float = 8192.0
    evaluations: int = 20_000
    scores_a_day: int = 1000


NONE = Limits(0, 0, 0.0, 0, 0.0, 0.0, 0, 0)


def check_options(options: FederationOptions, limits: Limits) -> None:
    """Raises FederationError, with the limit and the value, if a run's settings ask too much of a site."""
    local, stream, fit, widths = options.local, options.stream, options.fit, options.model.widths
    patches = local.steps * stream.batch_size * fit.accumulate
    if len(widths) > MOST_WIDTHS or max(widths) > WIDEST:
        raise FederationError(
            f"model.widths has {len(widths)} widths up to {max(widths)}: a site takes up to {MOST_WIDTHS} of up to "
            f"{WIDEST}."
        )
    images = stream.batch_size * math.prod(stream.draw.patch)
    features = images * _times_shown(options) * widths[0] * FLOAT / MIB
    _check("steps", local.steps, limits, "optimiser steps a round (local.steps)")
    _check("patches", patches, limits, "patches a round (local.steps x stream.batch_size x fit.accumulate)")
    _check("rounds", options.schedule.rounds, limits, "rounds (schedule.rounds)")
    _check("memory_mib", features + images * stream.ahead * FLOAT / MIB, limits, _MEMORY)
    largest = max(*options.augment.blur_sigma_voxels, *options.augment.low_resolution)
    if largest > LARGEST_KERNEL_VOXELS:
        raise FederationError(
            f"augment.blur_sigma_voxels or low_resolution goes to {largest:g}: a site takes up to "
            f"{LARGEST_KERNEL_VOXELS:g}."
        )


def _times_shown(options: FederationOptions) -> int:
    """How often the network may see a patch in one pass: a consistency term shows it again with fewer sequences."""
    return 2 if options.fit.consistency else 1


_MEMORY = "MiB for patches and first features (stream.batch_size, stream.draw.patch, stream.ahead, model.widths)"


def check_sequences(num_sequences: int) -> None:
    """Raises FederationError if a network reads too many sequences to even list its parts."""
    if num_sequences > MOST_SEQUENCES:
        raise FederationError(f"the model reads {num_sequences} sequences: a site takes up to {MOST_SEQUENCES}.")


def check_model(parts: Sequence[Part], num_sequences: int, options: FederationOptions, limits: Limits) -> None:
    """Raises FederationError if the network or its patches are too large for a site, before it is built."""
    weights = sum(math.prod(part.shape) for part in parts)
    _check("model_mib", weights * FLOAT / MIB, limits, "MiB of weights (model.widths, model.builder)")
    stream = options.stream
    images = stream.batch_size * math.prod(stream.draw.patch) * FLOAT / MIB
    needed = images * (_times_shown(options) * options.model.widths[0] + stream.ahead * num_sequences)
    _check("memory_mib", needed, limits, _MEMORY)


def check_evaluations(num: int, limits: Limits) -> None:
    """Raises FederationError if an answer would take too many evaluations."""
    _check("evaluations", num, limits, "evaluations, cases times subsets (schedule.evaluate_subsets, validation_cases)")


def count_scores(state: Path, limits: Limits) -> None:
    """Count an answer with scores; FederationError if today's limit is reached."""
    today, file = datetime.now(UTC).date().isoformat(), state / SCORES
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        count = int(stored["count"]) if stored["day"] == today else 0
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        count = 0
    _check("scores_a_day", count + 1, limits, "answers with a Dice today (UTC)")
    write_atomically(file, json.dumps({"day": today, "count": count + 1}).encode())


def _check(name: str, value: float | int, limits: Limits, what: str) -> None:
    limit = getattr(limits, name)
    if limit and not value <= limit:
        raise FederationError(
            f"the run asks for {value:.10g} {what}, but this site allows {limit:.10g} (its limits.{name})."
        )
