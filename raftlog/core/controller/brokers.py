"""Brokers come and go: registration, heartbeats, fencing, controlled shutdown, unregistration.

A broker registers fenced, catches up with the metadata log to its own registration, is unfenced, and from then on may
lead. Fencing takes it out of all leaderships and ISRs.
Source: KIP-631, KIP-841, KIP-858; Kafka's ClusterControlManager and BrokerHeartbeatManager.
"""

from __future__ import annotations

from typing import Any

from raftlog.config import Settings
from raftlog.core.controller.elections import changes_with, changes_without
from raftlog.core.decision import Decision
from raftlog.core.metadata import records as r
from raftlog.core.metadata.features import KRAFT_VERSION_FEATURE
from raftlog.core.metadata.image import Broker, MetadataImage
from raftlog.errors import (
    BrokerIdNotRegistered,
    DuplicateBrokerRegistration,
    ErrorCode,
    InconsistentClusterId,
    InvalidRegistration,
    StaleBrokerEpoch,
    UnsupportedVersion,
)
from raftlog.ids import RESERVED_UUIDS_MAX, BrokerEpoch, NodeId, Offset

FENCE = 1
UNFENCE = -1


def check_broker_epoch(image: MetadataImage, node_id: NodeId, epoch: BrokerEpoch) -> Broker:
    """The broker's registration. Raises StaleBrokerEpoch when there is none of this epoch."""
    broker = image.brokers.get(node_id)
    if broker is None:
        raise StaleBrokerEpoch(f"No broker registration found for broker id {node_id}")
    if broker.epoch != epoch:
        raise StaleBrokerEpoch(f"Expected broker epoch {broker.epoch}, but got broker epoch {epoch}")
    return broker


def decide_register(
    image: MetadataImage, request: Any, *, settings: Settings, cluster_id: str, next_offset: Offset, session_alive: bool
) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """BrokerRegistration v0-v4 (key 62). The epoch of a new incarnation is `next_offset`, where the decision will be written.

    The same incarnation keeps its epoch and its fencing. Raises InconsistentClusterId, DuplicateBrokerRegistration (another
    incarnation is registered, unfenced, and `session_alive`), InvalidRegistration (directories), UnsupportedVersion (features).
    """
    if request.cluster_id != cluster_id:
        raise InconsistentClusterId(f"Expected cluster ID {cluster_id}, but got cluster ID {request.cluster_id}")
    existing = image.brokers.get(request.broker_id)
    renewed = existing is not None and existing.incarnation_id == request.incarnation_id
    if existing is not None and not renewed and not existing.fenced and session_alive:
        raise DuplicateBrokerRegistration("Another broker is registered with that broker id.")
    if request.is_migrating_zk_broker:
        raise BrokerIdNotRegistered("Controller does not support registering ZK brokers.")
    _check_directories(image, request)
    features = _checked_features(image, request)
    records: list[r.MetadataRecord] = []
    if existing is not None and not renewed and not existing.fenced:
        # The new process may have lost what the old one had not flushed: it must not inherit its places in the ISRs.
        records.extend(changes_without(image, settings, request.broker_id))
    epoch = existing.epoch if existing is not None and renewed else max(next_offset, existing.epoch + 1 if existing else 0)
    records.append(
        r.RegisterBrokerRecord(
            broker_id=request.broker_id,
            incarnation_id=request.incarnation_id,
            broker_epoch=epoch,
            end_points=_endpoints(request.listeners),
            features=features,
            rack=request.rack,
            fenced=existing.fenced if existing is not None and renewed else True,
            in_controlled_shutdown=existing.in_controlled_shutdown if existing is not None and renewed else False,
            log_dirs=tuple(request.log_dirs),
        )
    )
    return Decision(records, {"error_code": ErrorCode.none, "broker_epoch": epoch})


def _check_directories(image: MetadataImage, request: Any) -> None:
    directories = request.log_dirs
    if not directories:
        raise InvalidRegistration("No directories specified in request")
    if any(directory.int < RESERVED_UUIDS_MAX for directory in directories):
        raise InvalidRegistration("Reserved directory ID in request")
    if len(set(directories)) != len(directories):
        raise InvalidRegistration("Duplicate directory ID in request")
    for broker in image.brokers.values():
        for directory in directories:
            if broker.node_id != request.broker_id and directory in broker.directories:
                raise InvalidRegistration(f"Broker {broker.node_id} is already registered with directory {directory}")


def _endpoints(listeners: Any) -> tuple[r.RecordEndpoint, ...]:
    return tuple(
        r.RecordEndpoint(name=listener.name, host=listener.host, port=listener.port, security_protocol=listener.security_protocol)
        for listener in listeners
    )


def _checked_features(image: MetadataImage, request: Any) -> tuple[r.RecordFeature, ...]:
    """The request's features as records, once every finalized non-zero level lies inside the broker's range."""
    ranges = {feature.name: (feature.min_supported_version, feature.max_supported_version) for feature in request.features}
    # A broker that names no metadata.version is as old as the first of them.
    ranges.setdefault(r.METADATA_VERSION_FEATURE, (1, 1))
    for name, level in image.features.items():
        low, high = ranges.get(name, (0, 0))
        if not low <= level <= high:
            raise UnsupportedVersion(
                f"Unable to register because the broker does not support finalized version {level} of {name}. "
                f"The broker wants a version between {low} and {high}, inclusive."
            )
    for name, (low, _) in ranges.items():
        # Not finalized means level 0, but for kraft.version, which a static set of voters leaves at 0 without a record.
        if name not in image.features and low > 0 and name not in (r.METADATA_VERSION_FEATURE, KRAFT_VERSION_FEATURE):
            raise UnsupportedVersion(f"Unable to register because the broker does not support finalized version 0 of {name}.")
    return tuple(r.RecordFeature(name=name, min_supported_version=low, max_supported_version=high) for name, (low, high) in ranges.items())


def decide_heartbeat(
    image: MetadataImage, request: Any, *, settings: Settings, registration_offset: Offset
) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """BrokerHeartbeat v0-v1 (key 63): unfence a broker that has caught up, fence one that asks for it, let one go that leaves.

    `registration_offset` is where the broker's registration was written; a broker has caught up once it has applied that
    offset (`current_metadata_offset` is inclusive). Raises StaleBrokerEpoch.
    """
    broker = check_broker_epoch(image, request.broker_id, request.broker_epoch)
    records: list[r.MetadataRecord] = []
    fenced = broker.fenced
    should_shut_down = False
    caught_up = request.current_metadata_offset >= registration_offset
    if broker.fenced:
        if request.want_shut_down:
            should_shut_down = True
        elif not request.want_fence and caught_up:
            records.append(_registration_change(broker, fenced=UNFENCE))
            records.extend(changes_with(image, settings, broker.node_id))
            fenced = False
    elif request.want_shut_down or broker.in_controlled_shutdown:
        # The reply leaves once all this is committed: then the broker leads nothing and is in no ISR but as the last member.
        records.extend(changes_without(image, settings, broker.node_id))
        records.append(_registration_change(broker, fenced=FENCE, in_controlled_shutdown=int(not broker.in_controlled_shutdown)))
        fenced = should_shut_down = True
    elif request.want_fence:
        records.extend(decide_fence(image, broker.node_id, settings=settings).records)
        fenced = True
    if request.offline_log_dirs:
        records.extend(_directories_offline(image, broker, set(request.offline_log_dirs), settings))
    reply = {"error_code": ErrorCode.none, "is_caught_up": caught_up, "is_fenced": fenced, "should_shut_down": should_shut_down}
    return Decision(records, reply)


def _registration_change(broker: Broker, *, fenced: int, in_controlled_shutdown: int = 0) -> r.BrokerRegistrationChangeRecord:
    return r.BrokerRegistrationChangeRecord(
        broker_id=broker.node_id, broker_epoch=broker.epoch, fenced=fenced, in_controlled_shutdown=in_controlled_shutdown
    )


def _directories_offline(image: MetadataImage, broker: Broker, offline: set[Any], settings: Settings) -> list[r.MetadataRecord]:
    lost = offline.intersection(broker.directories)
    if not lost:
        return []
    remaining = tuple(directory for directory in broker.directories if directory not in lost)
    records: list[r.MetadataRecord] = list(changes_without(image, settings, broker.node_id, directories=lost))
    records.append(r.BrokerRegistrationChangeRecord(broker_id=broker.node_id, broker_epoch=broker.epoch, log_dirs=remaining))
    return records


def decide_fence(image: MetadataImage, node_id: NodeId, *, settings: Settings) -> Decision[r.MetadataRecord, None]:
    """Take a broker out of all leaderships and ISRs and fence it; nothing for one that is fenced or unknown."""
    broker = image.brokers.get(node_id)
    if broker is None or broker.fenced:
        return Decision((), None)
    records: list[r.MetadataRecord] = list(changes_without(image, settings, node_id))
    records.append(_registration_change(broker, fenced=FENCE))
    return Decision(records, None)


def decide_unregister(image: MetadataImage, request: Any, *, settings: Settings) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """UnregisterBroker v0 (key 64). Raises BrokerIdNotRegistered."""
    broker = image.brokers.get(request.broker_id)
    if broker is None:
        raise BrokerIdNotRegistered(f"Broker ID {request.broker_id} is not currently registered")
    records: list[r.MetadataRecord] = list(changes_without(image, settings, broker.node_id))
    records.append(r.UnregisterBrokerRecord(broker_id=broker.node_id, broker_epoch=broker.epoch))
    return Decision(records, {"error_code": ErrorCode.none, "error_message": None})


def decide_register_controller(image: MetadataImage, request: Any) -> Decision[r.MetadataRecord, dict[str, Any]]:
    """ControllerRegistration v0 (key 70): note a controller's incarnation, endpoints and features. Source: KIP-919."""
    features = tuple(
        r.RecordFeature(name=feature.name, min_supported_version=feature.min_supported_version, max_supported_version=feature.max_supported_version)
        for feature in request.features
    )
    record = r.RegisterControllerRecord(
        controller_id=request.controller_id,
        incarnation_id=request.incarnation_id,
        end_points=_endpoints(request.listeners),
        features=features,
    )
    return Decision([record], {"error_code": ErrorCode.none, "error_message": None})
