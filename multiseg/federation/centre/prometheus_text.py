"""Numbers as Prometheus reads them: its text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Labels = TypeVar("Labels", bound=tuple[str, ...])


def metric(name: str, text: str, labels: Sequence[str], values: Mapping[Labels, float | int]) -> Metric:
    """A metric with its values, by what stands for each label. Where its name ends in "_total", it is a counter."""
    family: CounterMetricFamily | GaugeMetricFamily
    if name.endswith("_total"):
        family = CounterMetricFamily(name, text, labels=labels)
    else:
        family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


@dataclass(frozen=True)
class _Collector:
    metrics: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def in_text(metrics: Iterable[Metric]) -> str:
    """The metrics that have a value."""
    return generate_latest(_Collector([one for one in metrics if one.samples])).decode()
