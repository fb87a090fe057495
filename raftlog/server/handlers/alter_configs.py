"""AlterConfigs and IncrementalAlterConfigs on the broker that is asked: it looks first, the active controller decides.

The configs of a broker are changed through that broker itself, which knows what it takes at run time; those of all brokers
through any. The levels of loggers are this process's own and end with it. Source: KIP-226, KIP-412, KIP-339; Kafka's ConfigAdminManager.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Final, TypeAlias

from raftlog.broker.dynamic_settings import DynamicSettings
from raftlog.broker.metadata import MetadataFollower
from raftlog.config import KEYS
from raftlog.core.controller.config_changes import changes_of, check_broker_changes, misshapen, node_id_of
from raftlog.core.controller.configs import CONFIG_KEYS
from raftlog.core.metadata.entities import EMPTY
from raftlog.core.metadata.records import BROKER_LOGGER, RESOURCE_BROKER
from raftlog.errors import ApiError, ErrorCode, InvalidRequest
from raftlog.network.connection import RequestContext, Response
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields, decode_request, decode_response, encode_request_body, encode_response
from raftlog.server import log_levels
from raftlog.server.handlers.topics import ForwardingHandlers
from raftlog.server.router import RawHandler

Outcome: TypeAlias = tuple[ErrorCode, str | None]
DONE: Final[Outcome] = (ErrorCode.none, None)


class AlterConfigHandlers:
    """Answers for what is this broker's own, forwards the rest, and puts the answers together in the order of the request."""

    def __init__(self, dynamic: DynamicSettings, *, forwarding: ForwardingHandlers, metadata: MetadataFollower) -> None:
        self._node_id = dynamic.static.node_id
        self._forwarding = forwarding
        self._metadata = metadata

    def raw_handlers(self) -> Mapping[int, RawHandler]:
        return dict.fromkeys((ApiKey.ALTER_CONFIGS, ApiKey.INCREMENTAL_ALTER_CONFIGS), self.alter)

    def alter(self, context: RequestContext, body: memoryview) -> Response | Awaitable[Response]:
        """Answer AlterConfigs v0-v2 (key 33) and IncrementalAlterConfigs v0-v1 (key 44). Raises MalformedFrame."""
        request = decode_request(context.api_key, context.api_version, body)
        outcomes = self._look(request, incremental=context.api_key == ApiKey.INCREMENTAL_ALTER_CONFIGS)
        if not any(outcomes):
            return self._forwarding.forward(context, body)
        return self._alter_rest(context, request, outcomes)

    async def _alter_rest(self, context: RequestContext, request: Fields, outcomes: Sequence[Outcome | None]) -> Response:
        """Forward the resources without an outcome so far."""
        rest = [resource for resource, outcome in zip(request.resources, outcomes, strict=True) if outcome is None]
        answers: dict[tuple[int, str], Outcome] = {}
        if rest:
            fields = {"resources": rest, "validate_only": request.validate_only}
            body = memoryview(encode_request_body(context.api_key, context.api_version, fields))
            frame = b"".join(await self._forwarding.forward(context, body) or ())
            _, answer = decode_response(context.api_key, context.api_version, frame)
            answers = {(each.resource_type, each.resource_name): (each.error_code, each.error_message) for each in answer.responses}
        responses = []
        for resource, outcome in zip(request.resources, outcomes, strict=True):
            kind, name = resource.resource_type, resource.resource_name
            code, message = outcome or answers[kind, name]
            responses.append({"error_code": code, "error_message": message, "resource_type": kind, "resource_name": name})
        return [encode_response(context.api_key, context.api_version, context.correlation_id, {"responses": responses})]

    def _look(self, request: Fields, *, incremental: bool) -> list[Outcome | None]:
        """For each resource what it came to here; None: the controller has to decide."""
        outcomes: list[Outcome | None] = []
        for resource, problem in zip(request.resources, misshapen(request.resources, incremental=incremental), strict=True):
            try:
                if problem is not None:
                    raise problem
                outcomes.append(self._try(resource, incremental=incremental, validate_only=request.validate_only))
            except ApiError as error:
                outcomes.append((error.code, str(error)))
        return outcomes

    def _try(self, resource: Fields, *, incremental: bool, validate_only: bool) -> Outcome | None:
        kind, name = resource.resource_type, resource.resource_name
        if kind == BROKER_LOGGER and incremental:
            log_levels.check_node(name, self._node_id)
            log_levels.alter(resource.configs, validate_only=validate_only)
            return DONE
        if kind == RESOURCE_BROKER:
            if name and node_id_of(name) != self._node_id:
                raise InvalidRequest(f"Unexpected broker id, expected {self._node_id}, but received {name}")
            present = self._metadata.image.configs.get((kind, name), EMPTY)
            check_broker_changes(changes_of(resource, present, KEYS, incremental=incremental), per_broker=bool(name))
        elif kind not in CONFIG_KEYS:
            raise InvalidRequest(f"Unknown resource type {kind}")
        return None
