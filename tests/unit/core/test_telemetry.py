"""Client telemetry (KIP-714): which clients are asked for what, when they may push, and what is kept of it."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from raftlog.client_metrics_config import INTERVAL_MS_DEFAULT, ClientMetricsConfig
from raftlog.core.metadata import records as r
from raftlog.core.metadata.image import MetadataImage
from raftlog.core.telemetry import instances as telemetry
from raftlog.core.telemetry.instances import ClientInstances
from raftlog.core.telemetry.points import Point
from raftlog.errors import (
    ApiError,
    InvalidConfig,
    InvalidRequest,
    TelemetryTooLarge,
    ThrottlingQuotaExceeded,
    UnknownSubscriptionId,
    UnsupportedCompressionType,
)

ID = uuid.UUID(int=7 << 64)
CLIENT = {"client_id": "orders-1", "client_software_name": "librdkafka", "client_source_address": "10.0.0.1"}
ZSTD = 4


def image_of(**subscriptions: dict[str, str]) -> MetadataImage:
    records = [
        r.ConfigRecord(resource_type=r.RESOURCE_CLIENT_METRICS, resource_name=name, name=config, value=value)
        for name, values in subscriptions.items()
        for config, value in values.items()
    ]
    return MetadataImage().apply_batch(records, offset=len(records), epoch=1)[0]


def instances_of(**subscriptions: dict[str, str]) -> ClientInstances:
    instances = ClientInstances(size_bytes_max=100)
    instances.follow(image_of(**subscriptions))
    return instances


def push(subscription_id: int, **changes: Any) -> Any:
    values = {"client_instance_id": ID, "terminating": False, "compression_type": ZSTD, "metrics": b"x", "subscription_id": subscription_id}
    return SimpleNamespace(**{**values, **changes})


EVERYTHING = {"metrics": "*", "interval.ms": "1000"}


def test_a_grant_is_the_sum_of_what_matches() -> None:
    instances = instances_of(
        a={"metrics": "x.,y.", "interval.ms": "5000"},
        b={"metrics": "y.,z.", "interval.ms": "3000", "match": "client_id=orders-.*, client_software_name=librd.*"},
        c={"metrics": "w.", "interval.ms": "100", "match": "client_id=orders"},
        d={"metrics": "v.", "match": "client_software_version=.*"},
    )
    grant = instances.ask(ID, CLIENT, now_ms=0)
    assert (grant.metrics, grant.interval_ms) == (("x.", "y.", "z."), 3000)
    instances.follow(image_of(a={"metrics": "x."}, b={"metrics": "*"}))
    changed = instances.ask(ID, CLIENT, now_ms=1)  # At once: the subscriptions changed.
    assert (changed.metrics, changed.interval_ms) == (("*",), INTERVAL_MS_DEFAULT)
    assert changed.subscription_id != grant.subscription_id
    instances.follow(image_of())
    assert instances.ask(ID, CLIENT, now_ms=2).metrics == ()


def test_the_grant_of_a_client_is_the_same_on_every_broker() -> None:
    one, other = (instances_of(a=EVERYTHING).ask(ID, CLIENT, now_ms=now_ms) for now_ms in (0, 99))
    assert one == other and -(2**31) <= one.subscription_id < 2**31


def test_who_asks_or_pushes_too_early_is_refused() -> None:
    instances = instances_of(a=EVERYTHING)
    grant = instances.ask(ID, CLIENT, now_ms=0)
    with pytest.raises(ThrottlingQuotaExceeded):
        instances.ask(ID, CLIENT, now_ms=999)
    instances.check_push(push(grant.subscription_id), CLIENT, now_ms=500)  # The first after asking is spread.
    with pytest.raises(ThrottlingQuotaExceeded):
        instances.check_push(push(grant.subscription_id), CLIENT, now_ms=1499)
    instances.check_push(push(grant.subscription_id), CLIENT, now_ms=1500)
    instances.check_push(push(grant.subscription_id, terminating=True), CLIENT, now_ms=1501)
    with pytest.raises(InvalidRequest, match="terminating"):
        instances.check_push(push(grant.subscription_id), CLIENT, now_ms=9999)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client_instance_id": uuid.UUID(int=0)}, InvalidRequest),
        ({"subscription_id": 5}, UnknownSubscriptionId),
        ({"compression_type": 5}, UnsupportedCompressionType),
        ({"compression_type": -1}, UnsupportedCompressionType),
        ({"metrics": b"x" * 101}, TelemetryTooLarge),
    ],
)
def test_refused_pushes(changes: dict[str, Any], error: type[ApiError]) -> None:
    instances = instances_of(a=EVERYTHING)
    grant = instances.ask(ID, CLIENT, now_ms=0)
    with pytest.raises(error):
        instances.check_push(push(**{"subscription_id": grant.subscription_id, **changes}), CLIENT, now_ms=1000)
    if error in (UnknownSubscriptionId, UnsupportedCompressionType):
        assert instances.ask(ID, CLIENT, now_ms=1001) == grant  # It is told so that it asks again at once.


def test_what_is_kept_is_bounded_and_goes_with_silent_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "INSTANCES_MAX", 3)
    monkeypatch.setattr(telemetry, "POINTS_MAX", 5)
    instances = instances_of(a=EVERYTHING)
    ids = [uuid.UUID(int=number << 64) for number in range(1, 6)]
    points = tuple(Point("m", (("n", str(number)),), 1.0, False) for number in range(2))
    for now_ms, each in enumerate(ids):
        instances.ask(each, CLIENT, now_ms=now_ms)
        instances.pushed(each, points)
    assert len(instances) == 3
    kept = [attributes["client_instance_id"] for attributes, _ in instances.all_points(now_ms=10)]
    assert kept == [telemetry.id_text(each) for each in ids[3:]]
    instances.pushed(ids[4], points[:1])  # In place of the two before it.
    assert [len(each) for _, each in instances.all_points(now_ms=10)] == [2, 1]
    assert not instances.all_points(now_ms=10 + telemetry.EXPIRY_MS_MIN) and not len(instances)


def test_subscriptions_that_can_not_be_read_do_not_count() -> None:
    instances = instances_of(a={"metrics": "x."}, b={"no.such": "1"}, c={"metrics": "y.", "match": "client_id=("})
    assert instances.ask(ID, CLIENT, now_ms=0).metrics == ("x.",)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"no.such": "1"}, InvalidRequest, "Unknown client metrics configuration: no.such"),
        ({"interval.ms": "99"}, InvalidRequest, "Invalid value 99 for interval.ms, interval must be between 100 and 3600000 (1 hour)"),
        ({"interval.ms": "x"}, InvalidConfig, "Invalid value x for configuration interval.ms: Not a number of type INT"),
        ({"match": "client_id"}, InvalidConfig, "Illegal client matching pattern: client_id"),
        ({"match": "client_id=a=b"}, InvalidConfig, "Illegal client matching pattern: client_id=a=b"),
        ({"match": "no_such=a"}, InvalidConfig, "Illegal client matching pattern: no_such=a"),
        ({"match": "client_id=a("}, InvalidConfig, "Illegal client matching pattern: client_id=a("),
    ],
)
def test_refused_subscriptions(values: dict[str, str], error: type[ApiError], message: str) -> None:
    with pytest.raises(error) as refused:
        ClientMetricsConfig.parse(values)
    assert str(refused.value) == message
