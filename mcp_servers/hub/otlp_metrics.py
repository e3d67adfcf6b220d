"""Owns the same metrics in OTLP's form: a registry's families as the SDK's data, so that both tell the same figures. Imports the SDK."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from mcp_servers.hub.conventions import INSTRUMENTS, Instrument

_KNOWN: Mapping[str, Instrument] = {each.prometheus: each for each in INSTRUMENTS}
_CUMULATIVE = AggregationTemporality.CUMULATIVE
_Labels = tuple[tuple[str, str], ...]


def metrics_of(families: Iterable[Family], began_ns: int, now_ns: int) -> list[Metric]:
    """The families of a registry, but for those that nothing was observed in.

    Args:
        families: As `CollectorRegistry.collect` gives them.
        began_ns: When this process began to count.
        now_ns: When they were read.
    """
    return [each for family in families if (each := _metric(family, began_ns, now_ns)) is not None]


def _metric(family: Family, began_ns: int, now_ns: int) -> Metric | None:
    known = _KNOWN.get(family.name)
    name = known.name if known else family.name
    unit = known.unit if known else "s" if family.name.endswith("_seconds") else ""
    data: Histogram | Sum | Gauge
    if family.type == "histogram":
        points = [_buckets(labels, samples, known, began_ns, now_ns) for labels, samples in _by_labels(family)]
        data, is_empty = Histogram(points, _CUMULATIVE), not points
    else:
        counts = family.type == "counter"
        wanted = f"{family.name}_total" if counts else family.name
        numbers = [
            NumberDataPoint(_told(tuple(each.labels.items()), known), began_ns if counts else 0, now_ns, each.value)
            for each in family.samples
            if each.name == wanted
        ]
        data, is_empty = (Sum(numbers, _CUMULATIVE, is_monotonic=True) if counts else Gauge(numbers)), not numbers
    return None if is_empty else Metric(name, family.documentation, unit, data)


def _by_labels(family: Family) -> Iterator[tuple[_Labels, Sequence[Sample]]]:
    found: defaultdict[_Labels, list[Sample]] = defaultdict(list)
    for sample in family.samples:
        found[tuple((name, value) for name, value in sample.labels.items() if name != "le")].append(sample)
    yield from found.items()


def _buckets(
    labels: _Labels, samples: Sequence[Sample], known: Instrument | None, began_ns: int, now_ns: int
) -> HistogramDataPoint:
    """One histogram: Prometheus' buckets hold all below their bound, OTLP's what is between two."""
    below = [(float(each.labels["le"]), int(each.value)) for each in samples if each.name.endswith("_bucket")]
    total = next((each.value for each in samples if each.name.endswith("_sum")), 0.0)
    counts = [upto - before for (_, upto), (_, before) in zip(below, [(0.0, 0), *below], strict=False)]
    bounds = [bound for bound, _ in below[:-1]]
    return HistogramDataPoint(
        attributes=_told(labels, known),
        start_time_unix_nano=began_ns,
        time_unix_nano=now_ns,
        count=below[-1][1],
        sum=total,
        bucket_counts=counts,
        explicit_bounds=bounds,
        # Prometheus keeps neither, and OTLP can do without.
        min=None,  # pyright: ignore[reportArgumentType]
        max=None,  # pyright: ignore[reportArgumentType]
    )


def _told(labels: _Labels, known: Instrument | None) -> dict[str, str]:
    """The labels under the conventions' names; those that do not apply are left out."""
    names = {name.replace(".", "_"): name for name in known.attributes} if known else {}
    return {names.get(name, name): value for name, value in labels if value}
