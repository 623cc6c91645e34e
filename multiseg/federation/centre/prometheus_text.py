"""Writes metrics in Prometheus's text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Labels = TypeVar("Labels", bound=tuple[str, ...])


def metric(name: str, text: str, labels: Sequence[str], values: Mapping[Labels, float | int]) -> Metric:
    """A metric with its values by label values. It is a counter if its name ends in "_total", else a gauge."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def in_text(metrics: Iterable[Metric]) -> str:
    """The text of the metrics that have a value."""
    shown = [metric for metric in metrics if metric.samples]
    collector: Any = SimpleNamespace(collect=lambda: shown)
    return generate_latest(collector).decode()
