"""What the active controller answers on the controller listener: brokers' requests, and clients' as brokers forward them.

| key | API | versions | |
|---|---|---|---|
| 19, 20, 37 | CreateTopics, DeleteTopics, CreatePartitions | 2-7, 1-6, 0-3 | no mutation quotas |
| 33, 44 | AlterConfigs, IncrementalAlterConfigs | 0-2, 0-1 | topics, brokers, groups, client metrics |
| 43 | ElectLeaders | 0-2 | |
| 45, 46 | AlterPartitionReassignments, ListPartitionReassignments | 0-1, 0 | |
| 56, 67 | AlterPartition, AllocateProducerIds | 2-3, 0 | |
| 57 | UpdateFeatures | 0-2 | metadata.version and group.version |
| 58 | Envelope | 0 | the principal is not looked at while nothing is authorized |
| 60 | DescribeCluster | 0-2 | the controllers; any of them answers |
| 62, 63, 64 | BrokerRegistration, BrokerHeartbeat, UnregisterBroker | 0-4, 0-1, 0 | |
| 70 | ControllerRegistration | 0 | |

All but DescribeCluster answer NOT_CONTROLLER on a node that is not the active controller.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Final

from raftlog.config import Settings
from raftlog.errors import ErrorCode
from raftlog.network.connection import RequestContext
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.frames import MalformedFrame
from raftlog.protocol.messages import Fields, parse_request_header
from raftlog.quorum.controller import Controller
from raftlog.server.router import Handler, RawHandler, Router

CONTROLLERS: Final = 2  # DescribeCluster's endpoint types.
OPERATIONS_NOT_ASKED_FOR: Final = -(2**31)
ADDRESS_BYTES: Final = (4, 16)

# What clients may ask a broker that the controller has to carry out. Source: KIP-590.
FORWARDABLE: Final = frozenset(
    {19, 20, 29, 30, 31, 33, 37, 38, 39, 40, 41, 43, 44, 45, 46, 49, 50, 51, 55, 57, 64, 80, 81},
)


class ControllerHandlers:
    """Give it the router that its handlers are part of by `route`: envelopes are opened and go through it."""

    def __init__(self, controller: Controller, *, settings: Settings, cluster_id: str) -> None:
        self._controller = controller
        self._settings = settings
        self._cluster_id = cluster_id
        self._router: Router | None = None

    def route(self, router: Router) -> None:
        self._router = router

    def handlers(self) -> Mapping[int, Handler]:
        decided: dict[int, Handler] = {api_key: partial(self._decide, api_key) for api_key in self._controller.served_apis}
        return {**decided, ApiKey.ENVELOPE: self.envelope, ApiKey.DESCRIBE_CLUSTER: self.describe_cluster}

    def raw_handlers(self) -> Mapping[int, RawHandler]:
        return {}

    def _decide(self, api_key: int, context: RequestContext, request: Fields) -> Awaitable[Mapping[str, Any]]:
        return self._controller.handle(api_key, request, context.connection)

    async def envelope(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer Envelope v0 (key 58): the request of a broker's client, as if the client had asked here.

        NOT_CONTROLLER in the envelope (not in the answer inside) makes the broker look for the active controller and
        repeat. INVALID_REQUEST: not an API that brokers forward, or no client address; UNSUPPORTED_VERSION: the request
        inside can't be read. Source: KIP-590.
        """
        if not self._controller.is_active:
            return {"error_code": ErrorCode.not_controller}
        if len(request.client_host_address) not in ADDRESS_BYTES:
            return {"error_code": ErrorCode.invalid_request}
        try:
            header = parse_request_header(request.request_data)
            if header.api_key not in FORWARDABLE:
                return {"error_code": ErrorCode.invalid_request}
            inner = RequestContext(context.connection, header.api_key, header.api_version, header.correlation_id, header.client_id, context.listener)
            assert self._router is not None
            response = self._router.dispatch(inner, memoryview(request.request_data)[header.body_offset :])
            if inspect.isawaitable(response):
                response = await response
        except MalformedFrame:
            return {"error_code": ErrorCode.unsupported_version}
        if not self._controller.is_active:
            return {"error_code": ErrorCode.not_controller}
        return {"error_code": ErrorCode.none, "response_data": b"".join(response or ())}

    def describe_cluster(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer DescribeCluster v0-v2 (key 60) with the voters; v0 can't ask for them. Source: KIP-919."""
        reply: dict[str, Any] = {
            "error_code": ErrorCode.none,
            "endpoint_type": CONTROLLERS,
            "cluster_id": self._cluster_id,
            "controller_id": self._controller.leadership.leader_id,
            "brokers": [],
            "cluster_authorized_operations": OPERATIONS_NOT_ASKED_FOR,
        }
        if request.endpoint_type != CONTROLLERS:
            reply["error_code"] = ErrorCode.mismatched_endpoint_type
            reply["error_message"] = (
                f"The request was sent to an endpoint of type CONTROLLER, but we wanted an endpoint of type {request.endpoint_type}"
            )
            return reply
        reply["brokers"] = [
            {"broker_id": voter.node_id, "host": voter.host, "port": voter.port, "rack": None, "is_fenced": False} for voter in self._settings.voters
        ]
        return reply
