"""Metrics as clients push them: OpenTelemetry's messages, whatever is in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Histogram, HistogramDataPoint, Metric, MetricsData, NumberDataPoint, Sum

from raftlog.core.telemetry.points import Point
from raftlog.errors import InvalidRecord
from raftlog.server import otlp

NODE = KeyValue(key="node", value=AnyValue(int_value=3))


def message(*metrics: Metric) -> bytes:
    data = MetricsData()
    data.resource_metrics.add().scope_metrics.add().metrics.extend(metrics)
    encoded: bytes = data.SerializeToString()
    return encoded


def test_gauges_sums_and_histograms() -> None:
    data = message(
        Metric(name="g", gauge=Gauge(data_points=[NumberDataPoint(as_double=1.5, attributes=[NODE]), NumberDataPoint(as_double=float("nan"))])),
        Metric(name="s", sum=Sum(is_monotonic=True, data_points=[NumberDataPoint(as_int=7)])),
        Metric(name="u", sum=Sum(data_points=[NumberDataPoint(as_int=-7)])),
        Metric(name="h", histogram=Histogram(data_points=[HistogramDataPoint(count=2, sum=9.0)])),
        Metric(name="nothing"),
    )
    assert otlp.decode(data) == (
        Point("g", (("node", "3"),), 1.5, False),
        Point("s", (), 7.0, True),
        Point("u", (), -7.0, False),
        Point("h.count", (), 2.0, True),
        Point("h.sum", (), 9.0, True),
    )


def test_what_is_too_much_is_left_out() -> None:
    long = "x" * 1000
    many = [KeyValue(key=f"{number}{long}", value=AnyValue(string_value=long)) for number in range(100)]
    data = message(Metric(name=long, gauge=Gauge(data_points=[NumberDataPoint(as_int=1, attributes=many)] * 2000)))
    points = otlp.decode(data)
    assert len(points) == otlp.POINTS_PER_PUSH_MAX and len(points[0].attributes) == otlp.ATTRIBUTES_MAX
    assert max(map(len, (points[0].name, *(text for pair in points[0].attributes for text in pair)))) == otlp.TEXT_CHARACTERS_MAX


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        otlp.decode(data)
    except InvalidRecord as error:
        assert "OpenTelemetry" in str(error)


def test_a_message_that_is_cut_is_refused() -> None:
    with pytest.raises(InvalidRecord):
        otlp.decode(message(Metric(name="g", gauge=Gauge(data_points=[NumberDataPoint(as_int=1)])))[:-1])
