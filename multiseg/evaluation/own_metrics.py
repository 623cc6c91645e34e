"""Metrics of one's own: found, named, called for each case and structure, and averaged where they are defined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import TypeAlias

from multiseg.errors import UsageError
from multiseg.evaluation.metrics import CaseMetrics, SpacingMm, mean_of_defined
from multiseg.own import blamed, check_takes, digest_of, imported, is_importable, name_of
from multiseg.types import Mask

Metric: TypeAlias = Callable[[Mask, Mask, SpacingMm], float]
"""From the predicted and the true mask and the size of a voxel to a number; NaN is "undefined"."""
Metrics: TypeAlias = Mapping[str, Metric | str] | Sequence[Metric | str] | Metric
SIGNATURE = "(predicted, truth, spacing_mm)"
TAKEN = {"database", "case", "learnt", "label", "modalities", "num_modalities", *CaseMetrics.__dataclass_fields__}
POLICY = (
    "Of your own metrics NaN is undefined: left out of the mean, and num_NAME counts the cases that it is defined for."
)


def named_metrics(metrics: Metrics) -> dict[str, Metric]:
    """Metrics by the names of their columns: given ones, or the functions' own; texts are module:name.

    Raises:
        UsageError: one cannot be imported or called, has no name for a column, or one that is taken.
    """
    if isinstance(metrics, str) or callable(metrics):
        metrics = [metrics]
    given = list(metrics.items()) if isinstance(metrics, Mapping) else [("", metric) for metric in metrics]
    named: dict[str, Metric] = {}
    for column, one in given:
        metric: Metric = imported(one, "metric") if isinstance(one, str) else one
        name = column or str(getattr(metric, "__name__", type(metric).__name__))
        check_takes(metric, 3, "metric", SIGNATURE)
        if name in TAKEN or name.startswith("num_") or name in named or not name.isidentifier():
            raise UsageError(
                f"a metric cannot have the column {name!r}: name it by a word that no other column has, such as "
                "metrics={'volume_error': function}."
            )
        named[name] = metric
    return named


def own_values(metrics: Mapping[str, Metric], predicted: Mask, truth: Mask, spacing_mm: SpacingMm) -> dict[str, float]:
    """What each metric says of one structure of a case; each is given masks of its own.

    Raises:
        UsageError: a metric failed, or returned no number, or an infinite one.
    """
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        with blamed("metric", name):
            answer = metric(predicted.copy(), truth.copy(), spacing_mm)
            value = float(answer)
        if math.isinf(value):
            raise UsageError(f"the metric {name} is {value}, which no mean survives: return NaN where it is undefined.")
        found[name] = value
    return found


def own_means(names: Sequence[str], rows: Mapping[str, Sequence[float]]) -> dict[str, float | int]:
    """The mean of each metric over the cases that define it (NaN if none does), and how many these are."""
    means: dict[str, float | int] = {}
    for name in names:
        means[name] = mean_of_defined(rows[name])
        means[f"num_{name}"] = sum(not math.isnan(value) for value in rows[name])
    return means


def identity_of(metrics: Mapping[str, Metric]) -> tuple[tuple[str, str, str], ...]:
    """What tells metrics apart whose values are kept: what cannot be found again may be another one each time."""
    digests = {name: digest_of(metric) if is_importable(metric) else "" for name, metric in metrics.items()}
    return tuple((name, name_of(metrics[name]), digest or token_hex(8)) for name, digest in digests.items())
