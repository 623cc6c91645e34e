"""The curves of trainings: the loss of each step, and the Dice of each validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multiseg.pages.page import COLOURS, Drawing, Points, draw_lines, drawn
from multiseg.reports.run_record import RunRecord

TRAINING_NOTE = (
    "Loss of the training (the strong line is its mean over a twentieth of the steps), and Dice of the cases that "
    "choose the best model."
)
MOST_POINTS = 400
"""Of a curve: more steps are averaged in groups."""


def training_curves(runs: Sequence[RunRecord]) -> list[Drawing]:
    losses = {run.name: _thinned([(event["step"], event["loss"]) for event in run.steps]) for run in runs}
    drawings = [drawn(partial(_draw_loss, {name: points for name, points in losses.items() if points}), "Loss")]
    scores = {
        f"{kind}{f', {run.name}' if len(runs) > 1 else ''}": points
        for run in runs
        for kind, points in _series(run, "kinds").items()
    }
    if scores:
        drawings.append(drawn(partial(_draw_dice, scores), "Dice by kind of structure"))
    for run in runs:
        if parts := _series(run, "parts"):
            heading = "Dice of each database" + (f": {run.name}" if len(runs) > 1 else "")
            drawings.append(drawn(partial(_draw_dice, parts), heading))
    return [drawing for drawing in drawings if drawing]


def _series(run: RunRecord, field: str) -> dict[str, list[tuple[float, float]]]:
    """The validations of a run by database or by kind of structure."""
    found = [event for event in run.validations if event.get(field)]
    names = dict.fromkeys(name for event in found for name in event[field])
    series = {name: [(float(event["step"]), value_of(event[field].get(name))) for event in found] for name in names}
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    return {name: points for name, points in finite.items() if points}


def _draw_loss(losses: Mapping[str, Points], figure: Figure) -> None:
    axes = figure.add_subplot()
    for colour, points in zip(cycle(COLOURS), losses.values(), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, alpha=0.3, lw=0.8)
    means = {name: _running_mean(points) for name, points in losses.items()}
    draw_lines(axes, means, "loss", "step", marker="")
    axes.set_xlim(left=0)
    if len(losses) > 1:
        figure.legend(loc="outside upper center", ncols=3, frameon=False)


def _draw_dice(curves: Mapping[str, Points], figure: Figure) -> None:
    axes = figure.add_subplot()
    draw_lines(axes, curves, "Dice", "step")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)


def _running_mean(points: Points) -> list[tuple[float, float]]:
    """Each value's mean with those before it, over a twentieth of all."""
    values = pd.Series([value for _, value in points])
    means = values.rolling(max(1, len(values) // 20), min_periods=1).mean()
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def _thinned(points: Sequence[tuple[float, Any]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, each the mean of a group; values that are not finite are left out."""
    finite = [(float(step), value_of(value)) for step, value in points]
    finite = [point for point in finite if math.isfinite(point[1])]
    size = max(1, -(-len(finite) // MOST_POINTS))
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(group[-1][0], float(np.mean([value for _, value in group]))) for group in groups]


def value_of(value: Any) -> float:
    """A number of a log or a table; NaN where there is none."""
    return math.nan if value is None else float(value)
