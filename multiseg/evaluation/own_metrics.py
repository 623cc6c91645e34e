"""Metrics of the user: named, called for each case and structure, and averaged over the cases that define them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import TypeAlias

from multiseg.errors import UsageError
from multiseg.evaluation.lesions import COLUMNS as LESION_COLUMNS
from multiseg.evaluation.metrics import CaseMetrics, SpacingMm, means_and_deviations
from multiseg.evaluation.reliability import BINS
from multiseg.evaluation.reliability import COLUMNS as RELIABILITY_COLUMNS
from multiseg.evaluation.zones import COLUMNS as ZONE_COLUMNS
from multiseg.own import blamed, check_takes, digest_of, imported, is_importable, name_of
from multiseg.types import Mask

Metric: TypeAlias = Callable[[Mask, Mask, SpacingMm], float]
"""Maps the predicted mask, the true mask and the voxel size to a number; NaN is "undefined"."""
Metrics: TypeAlias = Mapping[str, Metric | str] | Sequence[Metric | str] | Metric
SIGNATURE = "(predicted, truth, spacing_mm)"
TAKEN = {
    *("database", "case", "learnt", "label", "modalities", "num_modalities"),
    *CaseMetrics.__dataclass_fields__,
    *LESION_COLUMNS,
    *RELIABILITY_COLUMNS,
    BINS,
    *ZONE_COLUMNS,
}
TAKEN_ENDINGS = ("_sd", "_pooled")
POLICY = (
    "Of zones and of your own metrics NaN is undefined: left out of the mean, and num_NAME counts the cases that it is "
    "defined for."
)


def named_metrics(metrics: Metrics) -> dict[str, Metric]:
    """Metrics by the names of their columns, by default the functions' names; texts are module:name.

    Raises:
        UsageError: a metric cannot be imported or called, or its name is invalid or already a column.
    """
    if isinstance(metrics, str) or callable(metrics):
        metrics = [metrics]
    items = list(metrics.items()) if isinstance(metrics, Mapping) else [("", metric) for metric in metrics]
    named: dict[str, Metric] = {}
    for column, entry in items:
        metric: Metric = imported(entry, "metric") if isinstance(entry, str) else entry
        name = column or str(getattr(metric, "__name__", type(metric).__name__))
        check_takes(metric, 3, "metric", SIGNATURE)
        is_taken = name in TAKEN or name.startswith(("num_", "detected_")) or name.endswith(TAKEN_ENDINGS)
        if is_taken or name in named or not name.isidentifier():
            raise UsageError(
                f"a metric cannot use the column {name!r}: give it a name that is not a column yet, such as "
                "metrics={'volume_error': function}."
            )
        named[name] = metric
    return named


def own_values(metrics: Mapping[str, Metric], predicted: Mask, truth: Mask, spacing_mm: SpacingMm) -> dict[str, float]:
    """The value of each metric for one structure of a case; each gets copies of the masks.

    Raises:
        UsageError: a metric failed, or returned something that is not a number or is infinite.
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        with blamed("metric", name):
            value = float(metric(predicted.copy(), truth.copy(), spacing_mm))
        if math.isinf(value):
            raise UsageError(f"the metric {name} is {value}, which cannot be averaged: return NaN if it is undefined.")
        values[name] = value
    return values


def own_means(names: Sequence[str], rows: Mapping[str, Sequence[float]]) -> dict[str, float | int]:
    """The mean and standard deviation of each metric over the cases that define it, and their number."""
    numbers: dict[str, float | int] = {}
    for name in names:
        numbers |= means_and_deviations([name], rows)
        numbers[f"num_{name}"] = sum(not math.isnan(value) for value in rows[name])
    return numbers


def identity_of(metrics: Mapping[str, Metric]) -> tuple[tuple[str, str, str], ...]:
    """The identity of metrics with stored values. A metric that cannot be imported gets a new one in every call."""
    digests = {name: digest_of(metric) if is_importable(metric) else "" for name, metric in metrics.items()}
    return tuple((name, name_of(metrics[name]), digest or token_hex(8)) for name, digest in digests.items())
