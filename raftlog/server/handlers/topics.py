"""What a broker does not decide itself: requests for the active controller, forwarded as they came, in an envelope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

from raftlog.broker.channel import ControllerChannel
from raftlog.broker.metadata import MetadataFollower
from raftlog.config import Settings
from raftlog.core.controller.config_changes import changes_of
from raftlog.core.controller.configs import CONFIG_KEYS
from raftlog.core.controller.features import level_of
from raftlog.core.metadata.image import MetadataImage
from raftlog.errors import ApiError, ErrorCode, RequestTimedOut
from raftlog.network.connection import RequestContext, Response
from raftlog.protocol.apis import ApiKey
from raftlog.protocol.messages import Fields, decode_request, decode_response, encode_response
from raftlog.server.handlers import repeats
from raftlog.server.router import RawHandler, error_fields

FORWARD_TIMEOUT_MS: Final = 30_000  # Kafka's request.timeout.ms of brokers.
FOLLOW_TIMEOUT_MS: Final = 5_000  # How long this broker's own image may lag what it has just forwarded.

Shown: TypeAlias = Callable[[MetadataImage], bool]

FORWARDED: Final = (
    ApiKey.CREATE_TOPICS,
    ApiKey.DELETE_TOPICS,
    ApiKey.CREATE_PARTITIONS,
    ApiKey.ELECT_LEADERS,
    ApiKey.ALTER_PARTITION_REASSIGNMENTS,
    ApiKey.LIST_PARTITION_REASSIGNMENTS,
    ApiKey.UPDATE_FEATURES,
    ApiKey.UNREGISTER_BROKER,
    ApiKey.DESCRIBE_QUORUM,
)


class ForwardingHandlers:
    """Forwards by Envelope (KIP-590).

    The answer to CreateTopics, DeleteTopics, CreatePartitions, UpdateFeatures and to what alters configs leaves when this broker's image
    shows the outcome, so that the client that produces or describes next, here or by this broker's metadata, finds it. What a
    request that had to be sent twice has done itself is no error to its client: see `repeats`.
    """

    def __init__(self, settings: Settings, *, channel: ControllerChannel, metadata: MetadataFollower) -> None:
        self._settings = settings
        self._channel = channel
        self._metadata = metadata

    def raw_handlers(self) -> Mapping[int, RawHandler]:
        return dict.fromkeys(FORWARDED, self.forward)

    def forward(self, context: RequestContext, body: memoryview) -> Awaitable[Response]:
        """Answer what the active controller answers, RequestTimedOut when none does.

        Raises MalformedFrame here already: on the connection to the controller it would cost others their requests.
        """
        request = decode_request(context.api_key, context.api_version, body)
        return self._forward(context, request, bytes(body))  # The receive buffer is used again as soon as this returns.

    async def _forward(self, context: RequestContext, request: Fields, body: bytes) -> Response:
        before = self._metadata.image
        try:
            frame, is_repeat = await self._channel.forward(context, body, timeout_ms=FORWARD_TIMEOUT_MS)
        except ApiError as error:
            refusal = error_fields(context.api_key, context.api_version, request, code=error.code, message=str(error))
            return [encode_response(context.api_key, context.api_version, context.correlation_id, refusal)]
        condition = _CONDITIONS.get(context.api_key)
        if condition is not None and not getattr(request, "validate_only", False):
            _, answer = decode_response(context.api_key, context.api_version, frame)
            if is_repeat and (names := repeats.suspects(context.api_key, before, request, answer)):
                await self._follow(repeats.shows(context.api_key, request, names))
                repeats.own_up(context.api_key, names, before, self._metadata.image, request, answer, settings=self._settings)
                frame = encode_response(context.api_key, context.api_version, context.correlation_id, answer)
            await self._follow(condition(before, request, answer))
        return [frame]

    async def _follow(self, shown: Shown) -> None:
        try:
            await self._metadata.wait_for(shown, timeout_ms=FOLLOW_TIMEOUT_MS)
        except RequestTimedOut:
            return  # It is committed: the client must not be told otherwise because this broker lags.


def _created(before: MetadataImage, request: Fields, answer: Fields) -> Shown:
    names = [topic.name for topic in answer.topics if topic.error_code == ErrorCode.none]
    return lambda image: all(name in image.topics for name in names)


def _deleted(before: MetadataImage, request: Fields, answer: Fields) -> Shown:
    ids = {topic.topic_id for topic in answer.responses if topic.error_code == ErrorCode.none}
    names = {topic.name for topic in answer.responses if topic.error_code == ErrorCode.none}
    ids |= {before.topics[name].topic_id for name in names if name in before.topics}  # Before v6 the answer has no ids.
    return lambda image: not any(topic_id in image.topic_names for topic_id in ids)


def _widened(before: MetadataImage, request: Fields, answer: Fields) -> Shown:
    accepted = {result.name for result in answer.results if result.error_code == ErrorCode.none}
    counts = {topic.name: topic.count for topic in request.topics if topic.name in accepted}

    def shown(image: MetadataImage) -> bool:
        return all(name not in image.topics or len(image.topics[name].partitions) >= count for name, count in counts.items())

    return shown


def _altered(before: MetadataImage, request: Fields, answer: Fields, *, incremental: bool) -> Shown:
    """Configs that were accepted are as they were asked for, or were changed since, whoever did it."""
    accepted = {(each.resource_type, each.resource_name) for each in answer.responses if each.error_code == ErrorCode.none}
    wanted: dict[tuple[int, str], dict[str, str | None]] = {}
    for resource in request.resources:
        key = (resource.resource_type, resource.resource_name)
        if key in accepted:
            present = before.configs.get(key, {})
            wanted[key] = changes_of(resource, present, CONFIG_KEYS[key[0]], incremental=incremental)

    def shown(image: MetadataImage) -> bool:
        for key, changes in wanted.items():
            now = image.configs.get(key)
            if now is before.configs.get(key) and any((now or {}).get(name) != value for name, value in changes.items()):
                return False
        return True

    return shown


def _finalized(before: MetadataImage, request: Fields, answer: Fields) -> Shown:
    """The levels are those that were asked for, or were changed since."""
    accepted = answer.error_code == ErrorCode.none
    wanted = {update.feature: update.max_version_level for update in request.feature_updates if accepted}

    def shown(image: MetadataImage) -> bool:
        return image.features is not before.features or all(level_of(image, name) == level for name, level in wanted.items())

    return shown


_CONDITIONS: Final[Mapping[int, Callable[[MetadataImage, Fields, Fields], Shown]]] = {
    ApiKey.CREATE_TOPICS: _created,
    ApiKey.DELETE_TOPICS: _deleted,
    ApiKey.CREATE_PARTITIONS: _widened,
    ApiKey.UPDATE_FEATURES: _finalized,
    ApiKey.ALTER_CONFIGS: partial(_altered, incremental=False),
    ApiKey.INCREMENTAL_ALTER_CONFIGS: partial(_altered, incremental=True),
}
