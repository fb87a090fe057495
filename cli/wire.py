"""A small blocking Kafka client over one socket: for what confluent-kafka does not offer, such as DescribeQuorum.

Schemas and versions come from raftlog.protocol; versions are negotiated with ApiVersions on each connection.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .errors import CliError, Refused, Unreachable

if TYPE_CHECKING:
    from raftlog.protocol.messages import Fields

METADATA: Final = 3
LIST_OFFSETS: Final = 2
API_VERSIONS: Final = 18
DESCRIBE_QUORUM: Final = 55
API_VERSIONS_VERSION: Final = 3
RESPONSE_BYTES_MAX: Final = 100 * 1024 * 1024
CLIENT_ID: Final = "raftlog-cli"
CLIENT_SOFTWARE: Final[Mapping[str, str]] = {"client_software_name": CLIENT_ID, "client_software_version": "0"}


class WireClient:
    """One connection; requests one after the other. Raises Unreachable when the server is gone or too slow."""

    def __init__(self, host: str, port: int, *, timeout_s: float) -> None:
        self.address = f"{host}:{port}"
        self.timeout_s = timeout_s
        self._correlation_id = 0
        self._versions: dict[int, tuple[int, int]] = {}
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise self._gone(error) from None

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, api_key: int, fields: Mapping[str, Any], *, version_min: int = 0, version_max: int | None = None) -> Fields:
        """Ask in the highest version both sides know, from `version_min` up to `version_max`.

        Raises CliError when the server does not offer the API or no such version of it.
        """
        from raftlog.protocol.messages import API_VERSIONS_BROKER, api_name

        offered = self.offered()
        if api_key not in offered:
            raise CliError(f"{self.address} does not offer what this needs: {api_name(api_key)}, API key {api_key}")
        lowest, highest = offered[api_key]
        known_lowest, known_highest = API_VERSIONS_BROKER[api_key]
        needed_lowest = max(known_lowest, version_min)
        needed_highest = known_highest if version_max is None else min(known_highest, version_max)
        version = min(highest, needed_highest)
        if version < max(lowest, needed_lowest):
            needed = f"{needed_lowest} to {needed_highest}"
            raise CliError(f"{self.address} offers versions {lowest} to {highest} of {api_name(api_key)}; this needs one of {needed}")
        return self._ask(api_key, version, fields)

    def offered(self) -> Mapping[int, tuple[int, int]]:
        """The server's APIs by key, each with its lowest and highest version."""
        if not self._versions:
            answer = self._ask(API_VERSIONS, API_VERSIONS_VERSION, CLIENT_SOFTWARE)
            self._versions = {item.api_key: (item.min_version, item.max_version) for item in answer.api_keys}
        return self._versions

    def _ask(self, api_key: int, version: int, fields: Mapping[str, Any]) -> Fields:
        from raftlog.protocol.messages import MalformedFrame, decode_response, encode_request

        self._correlation_id += 1
        frame = encode_request(api_key, version, self._correlation_id, CLIENT_ID, fields)
        deadline = time.monotonic() + self.timeout_s
        try:
            self._socket.sendall(struct.pack(">i", len(frame)) + frame)
            (size,) = struct.unpack(">i", self._read(4, deadline))
            if not 0 < size <= RESPONSE_BYTES_MAX:
                raise CliError(f"{self.address} does not speak Kafka's protocol")
            answer = self._read(size, deadline)
        except OSError as error:
            raise self._gone(error) from None
        try:
            _, decoded = decode_response(api_key, version, answer)
        except MalformedFrame as error:
            raise CliError(f"{self.address}: {error}") from None
        return decoded

    def _read(self, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ConnectionResetError("connection closed")
            parts += part
        return bytes(parts)

    def _gone(self, error: OSError) -> Unreachable:
        reason = f"no answer in {self.timeout_s:.1f} s" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        return Unreachable(f"{self.address}: {reason}")


def describe_quorum(client: WireClient) -> Fields:
    """The metadata quorum's partition as DescribeQuorum (key 55) gives it. Raises CliError with the server's reason."""
    from raftlog.ids import METADATA_TOPIC

    answer = client.request(DESCRIBE_QUORUM, {"topics": [{"topic_name": METADATA_TOPIC, "partitions": [{"partition_index": 0}]}]})
    check(answer.error_code, getattr(answer, "error_message", None))
    partition: Fields = answer.topics[0].partitions[0]
    check(partition.error_code, getattr(partition, "error_message", None))
    return partition


def refusal(code: int, message: str | None = None) -> Refused | None:
    """What an error code in a response means, None for no error."""
    if int(code) == 0:
        return None
    from raftlog.errors import error_for

    return Refused(int(code), message or str(error_for(int(code))).replace("_", " "))


def check(code: int, message: str | None = None) -> None:
    """Raise Refused for an error code in a response."""
    problem = refusal(code, message)
    if problem is not None:
        raise problem
