"""From a request to its handler and back: decoding, versions, and what becomes of errors.

Answers ApiVersions v0-v4 itself, from the handlers it has: an API without a handler is not advertised. An API or version
that was not advertised can't be answered in a form the client would understand, so its connection is closed, as Kafka
does; only ApiVersions is answered in version 0, whatever version was asked (KIP-511).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from raftlog.errors import ApiError, ErrorCode
from raftlog.network.connection import RequestContext, Response
from raftlog.protocol.apis import ApiKey, api_name
from raftlog.protocol.frames import MalformedFrame
from raftlog.protocol.messages import Fields, decode_request, encode_response
from raftlog.protocol.plans import StructPlan, family

Handler: TypeAlias = Callable[[RequestContext, Fields], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]
# Takes the body as received and gives the frame's content, header included. It answers its own errors.
RawHandler: TypeAlias = Callable[[RequestContext, memoryview], Response | Awaitable[Response]]
# The fields of the ApiVersions response about features: supported_features, finalized_features(_epoch), by kio's names.
FeaturesSource: TypeAlias = Callable[[], Mapping[str, Any]]

# What ApiVersions tells in place of the lowest version served, as Kafka does: older librdkafka (seen with 2.6) takes a cluster without
# Produce v0 for one that knows no compression, and silently sends everything as it is (KAFKA-18659).
TOLD_FROM: Final[Mapping[int, int]] = {ApiKey.PRODUCE: 0}

_SOFTWARE = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")
_FEATURE_MINIMUM_ZERO_FROM: Final = 4  # ApiVersions before v4 can't tell of a feature whose lowest level is 0 (KAFKA-17011).

_log = logging.getLogger(__name__)


class Router:
    """The APIs of one kind of listener. `dispatch` is the dispatcher of its connections."""

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        raw: Mapping[int, RawHandler],
        versions: Mapping[int, tuple[int, int]],
        *,
        features: FeaturesSource | None = None,
    ) -> None:
        """Serve those of `versions` that have a handler; a raw handler of a key outside it is private: not advertised."""
        self._handlers = dict(handlers)
        self._raw = dict(raw)
        self._features = features
        self._handlers[ApiKey.API_VERSIONS] = self._api_versions
        self.advertised: Mapping[int, tuple[int, int]] = {key: versions[key] for key in sorted(versions) if key in self._handlers or key in self._raw}
        unknown = self._handlers.keys() - versions.keys()
        assert not unknown, f"handlers without a version: {sorted(unknown)}"
        self._private = frozenset(self._raw.keys() - versions.keys())

    def dispatch(self, context: RequestContext, body: memoryview) -> Response | Awaitable[Response]:
        """Handle one request. Raises MalformedFrame for one that can't be decoded or that no client should have sent."""
        api_key, api_version = context.api_key, context.api_version
        versions = self.advertised.get(api_key)
        if versions is not None and versions[0] <= api_version <= versions[1]:
            raw = self._raw.get(api_key)
            if raw is not None:
                return raw(context, body)
            return self._handle(context, decode_request(api_key, api_version, body))
        if api_key in self._private:
            return self._raw[api_key](context, body)
        if api_key == ApiKey.API_VERSIONS:
            return [self._unsupported_api_versions(context)]
        raise MalformedFrame(f"{api_name(api_key)} v{api_version} is not supported")

    def _handle(self, context: RequestContext, request: Fields) -> Response | Awaitable[Response]:
        try:
            reply = self._handlers[context.api_key](context, request)
            if isinstance(reply, Mapping | Fields):
                return [encode_response(context.api_key, context.api_version, context.correlation_id, reply)]
        except Exception as error:
            return [self._error_response(context, request, error)]
        return self._finish(context, request, reply)

    async def _finish(self, context: RequestContext, request: Fields, pending: Awaitable[Mapping[str, Any]]) -> Response:
        try:
            reply = await pending
            return [encode_response(context.api_key, context.api_version, context.correlation_id, reply)]
        except Exception as error:
            return [self._error_response(context, request, error)]

    def _error_response(self, context: RequestContext, request: Fields, error: Exception) -> bytes:
        if isinstance(error, ApiError):
            code, message = error.code, str(error) or None
        else:
            code, message = ErrorCode.unknown_server_error, None
            name = api_name(context.api_key)
            _log.error("%s v%d from %s failed: %s: %s", name, context.api_version, context.connection.peer, type(error).__name__, error)
            _log.debug("the traceback of it", exc_info=error)
        fields = error_fields(context.api_key, context.api_version, request, code=code, message=message)
        return encode_response(context.api_key, context.api_version, context.correlation_id, fields)

    def _api_versions(self, context: RequestContext, request: Fields) -> Mapping[str, Any]:
        """Answer ApiVersions v0-v4 (key 18). Source: KIP-35, KIP-511, KIP-584."""
        if context.api_version >= 3:
            for text in (request.client_software_name, request.client_software_version):
                if not _SOFTWARE.fullmatch(text):
                    return {"error_code": ErrorCode.invalid_request, "api_keys": ()}
            context.connection.software = (request.client_software_name, request.client_software_version)
        features = dict(self._features()) if self._features is not None else {}
        if context.api_version < _FEATURE_MINIMUM_ZERO_FROM:
            supported = features.get("supported_features", ())
            features["supported_features"] = [feature for feature in supported if feature["min_version"] > 0]
        return {"error_code": ErrorCode.none, "api_keys": self._version_table(), **features}

    def _unsupported_api_versions(self, context: RequestContext) -> bytes:
        fields = {"error_code": ErrorCode.unsupported_version, "api_keys": self._version_table()}
        return encode_response(ApiKey.API_VERSIONS, 0, context.correlation_id, fields)

    def _version_table(self) -> list[dict[str, int]]:
        return [{"api_key": key, "min_version": TOLD_FROM.get(key, low), "max_version": high} for key, (low, high) in self.advertised.items()]


def error_fields(api_key: int, api_version: int, request: Fields, *, code: ErrorCode, message: str | None) -> Mapping[str, Any]:
    """The response that refuses the whole of `request`: the code at the top where the response has one, else at each item.

    The items are the request's own: each structure of the response that can carry a code is filled from the like-named
    array of the request (or from its only one), copying the fields that both have, down to the level of the code.
    """
    return _refuse(family(api_key, False).plan(api_version), request, code, message) or {}


def _refuse(plan: StructPlan, asked: Any, code: ErrorCode, message: str | None) -> dict[str, Any] | None:
    """The fields of one structure of the response, None when nothing in it can carry a code."""
    specs = plan.specs
    refused: dict[str, Any] = {}
    if isinstance(asked, Fields):
        refused = {name: value for name, value in vars(asked).items() if name in specs and specs[name].struct is None}
        refused = {name: value for name, value in refused.items() if specs[name].is_array == isinstance(value, tuple)}
        # Metadata v10 and v11: the request may name no topic, the response may not.
        refused = {name: value for name, value in refused.items() if value is not None or specs[name].is_nullable}
    else:
        refused[_name_of_item(plan)] = asked
    if "error_code" in specs:
        refused["error_code"] = code
        if "error_message" in specs:
            refused["error_message"] = message
        return refused
    found = False
    for name, spec in specs.items():
        if spec.struct is None or not spec.is_array or not _can_refuse(spec.struct):
            continue
        items = _items_like(asked, name)
        refused[name] = [_refuse(spec.struct, item, code, message) for item in items]
        found = True
    return refused if found else None


def _can_refuse(plan: StructPlan) -> bool:
    if "error_code" in plan.specs:
        return True
    return any(spec.is_array and spec.struct is not None and _can_refuse(spec.struct) for spec in plan.specs.values())


def _items_like(asked: Any, name: str) -> tuple[Any, ...]:
    """The request's array of that name, else its first array that is not empty (`topics` for `responses`)."""
    if not isinstance(asked, Fields):
        return ()
    values = vars(asked)
    if isinstance(values.get(name), tuple):
        return cast("tuple[Any, ...]", values[name])
    return next((value for value in values.values() if isinstance(value, tuple) and value), ())


def _name_of_item(plan: StructPlan) -> str:
    """Where the response names an item that the request gave as a bare string or number (a group, a topic, a partition)."""
    return next(name for name, spec in plan.specs.items() if spec.struct is None and name not in ("error_code", "error_message"))
