"""Metrics as OpenTelemetry's protocol carries them: MetricsData v1, of which clients push gauges, sums and histograms (KIP-714).

Everything is bounded: what a client sends must not fill the memory of the broker or of whoever scrapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from raftlog.core.telemetry.points import Point
from raftlog.environment import Buffer
from raftlog.errors import InvalidRecord

POINTS_PER_PUSH_MAX: Final = 1000  # The rest is left out.
ATTRIBUTES_MAX: Final = 16  # Per point; the rest is left out.
TEXT_CHARACTERS_MAX: Final = 200  # Of a name or value; the rest is cut.


def load() -> None:
    """Import protobuf's classes: 50 ms and 5 MiB, which only a broker that gets metrics has to pay."""
    from opentelemetry.proto.metrics.v1 import metrics_pb2  # noqa: F401


def decode(data: Buffer) -> tuple[Point, ...]:
    """The points of a push, the first POINTS_PER_PUSH_MAX of them. Raises InvalidRecord when it can't be read."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData

    try:
        message = MetricsData.FromString(bytes(data))
    except DecodeError as error:
        raise InvalidRecord(f"the metrics are not OpenTelemetry's MetricsData: {error}") from None
    return tuple(islice(_points(message), POINTS_PER_PUSH_MAX))


def _points(message: Any) -> Iterator[Point]:
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from _of_metric(metric)


def _of_metric(metric: Any) -> Iterator[Point]:
    name = metric.name[:TEXT_CHARACTERS_MAX]
    kind = metric.WhichOneof("data")
    if kind in ("gauge", "sum"):
        is_counter = kind == "sum" and metric.sum.is_monotonic
        for point in getattr(metric, kind).data_points:
            value = float(getattr(point, point.WhichOneof("value") or "as_double"))
            if math.isfinite(value):
                yield Point(name, _attributes(point.attributes), value, is_counter)
    elif kind == "histogram":
        for point in metric.histogram.data_points:
            attributes = _attributes(point.attributes)
            yield Point(f"{name}.count", attributes, float(point.count), True)
            if math.isfinite(point.sum):
                yield Point(f"{name}.sum", attributes, point.sum, True)


def _attributes(pairs: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    return tuple((pair.key[:TEXT_CHARACTERS_MAX], _text(pair.value)) for pair in islice(pairs, ATTRIBUTES_MAX))


def _text(value: Any) -> str:
    kind = value.WhichOneof("value")
    return "" if kind is None else str(getattr(value, kind))[:TEXT_CHARACTERS_MAX]
