"""Messages of all APIs but Produce's and Fetch's hot path: independent of versions for those who handle them.

A decoded message is a `Fields`: the union of the fields of all versions by kio's names, as plain values. Durations and
timestamps are int ms (-1: none), a missing UUID is the zero UUID, arrays are tuples. Encoding takes the same shape as
nested mappings or `Fields`: a name that the version lacks is dropped, one that no version has is a programming error,
and what is absent is written as the schema's default (without one: 0, empty, or null where that is allowed).
Source: https://kafka.apache.org/protocol, KIP-482, KIP-511.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple

from raftlog.environment import Buffer
from raftlog.protocol.apis import (
    API_VERSIONS_ALL,
    API_VERSIONS_BROKER,
    API_VERSIONS_CONTROLLER,
    FLEXIBLE_HEADER_FROM,
    NEVER_FLEXIBLE,
    ApiKey,
    api_name,
)
from raftlog.protocol.frames import MalformedFrame
from raftlog.protocol.plans import ITEMS_PER_REQUEST_MAX, ITEMS_UNBOUNDED, Fields, begin_reading, family
from raftlog.protocol.wire import NO_UUID, skip_tagged_fields

__all__ = [
    "API_VERSIONS_ALL",
    "API_VERSIONS_BROKER",
    "API_VERSIONS_CONTROLLER",
    "NO_UUID",
    "ApiKey",
    "Fields",
    "MalformedFrame",
    "RequestHeader",
    "api_name",
    "decode_request",
    "decode_response",
    "decode_response_body",
    "encode_request",
    "encode_request_body",
    "encode_request_header",
    "encode_response",
    "encode_response_header",
    "has_flexible_header",
    "parse_request_header",
    "response_body_offset",
]

_HEADER: Final = Struct(">hhih")  # api key, api version, correlation id, length of the client id
_CORRELATION_ID: Final = Struct(">i")


class RequestHeader(NamedTuple):
    """What precedes a request's body; the body begins at `body_offset` of the frame."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    body_offset: int


def parse_request_header(frame: Buffer) -> RequestHeader:
    """The header of a request frame, version 1 or 2 as the request's version has it. Raises MalformedFrame."""
    try:
        api_key, api_version, correlation_id, size = _HEADER.unpack_from(frame, 0)
    except struct_error:
        raise MalformedFrame(f"a request of {len(frame)} bytes is too short for its header") from None
    offset = _HEADER.size
    client_id = None
    if size >= 0:
        end = offset + size
        if end > len(frame):
            raise MalformedFrame("the client id of a request goes beyond its end")
        try:
            client_id = str(frame[offset:end], "utf-8")
        except UnicodeDecodeError:
            raise MalformedFrame("the client id of a request is not UTF-8") from None
        offset = end
    if api_version >= FLEXIBLE_HEADER_FROM.get(api_key, NEVER_FLEXIBLE):
        offset = skip_tagged_fields(frame, offset)
    return RequestHeader(api_key, api_version, correlation_id, client_id, offset)


def encode_request_header(api_key: int, api_version: int, correlation_id: int, client_id: str | None) -> bytes:
    encoded = b"" if client_id is None else client_id.encode()
    header = _HEADER.pack(api_key, api_version, correlation_id, -1 if client_id is None else len(encoded)) + encoded
    return header + b"\0" if has_flexible_header(api_key, api_version) else header


def has_flexible_header(api_key: int, api_version: int) -> bool:
    """Whether the request's body has compact lengths and its header tagged fields (version 2). A private API's has none."""
    return api_version >= FLEXIBLE_HEADER_FROM.get(api_key, NEVER_FLEXIBLE)


def encode_response_header(api_key: int, api_version: int, correlation_id: int) -> bytes:
    """The header of a response. That of ApiVersions is always version 0, so that any client can read it (KIP-511)."""
    header = _CORRELATION_ID.pack(correlation_id)
    if api_key != ApiKey.API_VERSIONS and has_flexible_header(api_key, api_version):
        return header + b"\0"
    return header


def response_body_offset(api_key: int, api_version: int, frame: Buffer) -> int:
    """Where the body of a response frame begins. Raises MalformedFrame."""
    if len(frame) < 4:
        raise MalformedFrame(f"a response of {len(frame)} bytes is too short for its header")
    if api_key != ApiKey.API_VERSIONS and has_flexible_header(api_key, api_version):
        return skip_tagged_fields(frame, 4)
    return 4


def decode_request(api_key: int, api_version: int, body: Buffer) -> Fields:
    """The fields of a request's body; nothing in them refers to `body`. Raises MalformedFrame.

    Bytes behind its end are ignored, as Kafka ignores them.
    """
    return _decode(api_key, api_version, body, is_request=True)


def decode_response(api_key: int, api_version: int, frame: Buffer) -> tuple[int, Fields]:
    """Correlation id and fields of a response frame. Raises MalformedFrame."""
    offset = response_body_offset(api_key, api_version, frame)
    correlation_id: int = _CORRELATION_ID.unpack_from(frame, 0)[0]
    return correlation_id, _decode(api_key, api_version, memoryview(frame)[offset:], is_request=False)


def decode_response_body(api_key: int, api_version: int, body: Buffer) -> Fields:
    """The fields of a response without its header. Raises MalformedFrame."""
    return _decode(api_key, api_version, body, is_request=False)


def encode_response(api_key: int, api_version: int, correlation_id: int, fields: Mapping[str, Any] | Fields) -> bytes:
    """A response frame without its length. Raises AttributeError for a name that no version has."""
    out = bytearray(encode_response_header(api_key, api_version, correlation_id))
    family(api_key, False).plan(api_version).write(out, fields)
    return bytes(out)


def encode_request(api_key: int, api_version: int, correlation_id: int, client_id: str | None, fields: Mapping[str, Any] | Fields) -> bytes:
    """A request frame without its length. Raises AttributeError for a name that no version has."""
    return encode_request_header(api_key, api_version, correlation_id, client_id) + encode_request_body(api_key, api_version, fields)


def encode_request_body(api_key: int, api_version: int, fields: Mapping[str, Any] | Fields) -> bytes:
    out = bytearray()
    family(api_key, True).plan(api_version).write(out, fields)
    return bytes(out)


def _decode(api_key: int, api_version: int, body: Buffer, *, is_request: bool) -> Fields:
    # What follows a message is passed over, as Kafka does: librdkafka sends three bytes too many after "Metadata of all topics".
    begin_reading(items_max=ITEMS_PER_REQUEST_MAX if is_request else ITEMS_UNBOUNDED)
    try:
        fields, _ = family(api_key, is_request).plan(api_version).read(memoryview(body), 0)
    except (IndexError, ValueError, struct_error) as error:
        reason = str(error) or "it ends before it is complete"
        raise MalformedFrame(f"{api_name(api_key)} v{api_version} can't be decoded: {reason}") from error
    return fields
