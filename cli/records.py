"""Records as text: lines into records for `produce`, records into lines for `consume`. Nothing here talks to a cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from .errors import CliError, UsageProblem

Headers: TypeAlias = list[tuple[str, bytes | None]]

ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


class Record(NamedTuple):
    """What is to be produced; partition -1 lets the partitioner choose, timestamp 0 means now."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int = -1
    timestamp_ms: int = 0


class Consumed(NamedTuple):
    """What was consumed."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers


def records_of_lines(lines: Iterable[bytes], *, key: bytes | None, key_separator: bytes | None, headers: Headers, partition: int) -> Iterator[Record]:
    """One record per line, without its line end. Raises CliError for a line without the separator."""
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip(b"\n").removesuffix(b"\r")
        record_key = key
        if key_separator is not None:
            record_key, found, line = line.partition(key_separator)
            if not found:
                raise CliError(f"line {number} has no key separator {key_separator.decode(errors='replace')!r}")
        yield Record(record_key, line, headers, partition)


def records_of_json(lines: Iterable[bytes], *, headers: Headers, partition: int) -> Iterator[Record]:
    """One record per line like `{"key": …, "value": …, "headers": {…}, "partition": 0, "timestamp": ms}`, as `consume --json` prints.

    Keys and values that are no strings are sent as JSON; null sends none; `key_base64` and `value_base64` carry bytes.
    Fields that say where a record was read (topic, offset) are passed over. Raises CliError for a line that is not so.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            own = [(name, _text_bytes(value)) for name, value in _pairs(fields.get("headers"))]
            own_partition = int(fields.get("partition", partition))
            timestamp_ms = int(fields.get("timestamp") or 0)
            yield Record(_part(fields, "key"), _part(fields, "value"), own + headers, own_partition, timestamp_ms)
        except (ValueError, TypeError, AttributeError) as error:
            raise CliError(f"line {number} is not a record in JSON: {error}") from None


def json_line(record: Consumed) -> bytes:
    """A record as one line of JSON. Bytes that are no UTF-8 come as base64 under `key_base64`, `value_base64`."""
    fields: dict[str, Any] = {"topic": record.topic, "partition": record.partition, "offset": record.offset, "timestamp": record.timestamp_ms}
    fields |= _json_part("key", record.key) | _json_part("value", record.value)
    if record.headers:
        fields["headers"] = [[name, None if value is None else value.decode(errors="replace")] for name, value in record.headers]
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def compile_format(text: str) -> Callable[[Consumed], bytes]:
    r"""A function that writes records by a format: %k key, %v value, %o offset, %p partition, %t topic, %T timestamp in ms,
    %h headers, %% a percent sign; \n, \t, \r, \0 and \\ as usual. Raises UsageProblem for any other."""
    writers: dict[str, Callable[[Consumed], bytes]] = {
        "k": lambda record: record.key or b"",
        "v": lambda record: record.value or b"",
        "o": lambda record: b"%d" % record.offset,
        "p": lambda record: b"%d" % record.partition,
        "t": lambda record: record.topic.encode(),
        "T": lambda record: b"" if record.timestamp_ms is None else b"%d" % record.timestamp_ms,
        "h": lambda record: headers_text(record.headers),
    }
    parts: list[bytes | Callable[[Consumed], bytes]] = []
    characters = iter(text)
    for character in characters:
        if character not in "%\\":
            parts.append(character.encode())
            continue
        following = next(characters, "")
        if character == "\\" and following in ESCAPES and following:
            parts.append(ESCAPES[following].encode())
        elif character == "%" and following == "%":
            parts.append(b"%")
        elif character == "%" and following in writers and following:
            parts.append(writers[following])
        else:
            raise UsageProblem(f"unknown {character + following!r} in --format; known are %k %v %o %p %t %T %h %% \\n \\t \\r \\0 \\\\")
    return lambda record: b"".join(part if isinstance(part, bytes) else part(record) for part in parts)


def headers_text(headers: Sequence[tuple[str, bytes | None]]) -> bytes:
    """`name=value,name=value`; a header without a value as its name alone."""
    return b",".join(name.encode() if value is None else name.encode() + b"=" + value for name, value in headers)


def parse_headers(pairs: list[str] | None) -> Headers:
    """`name=value` texts of --header. Raises UsageProblem."""
    headers: Headers = []
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not (separator and name):
            raise UsageProblem(f"--header {pair!r} is not name=value")
        headers.append((name, value.encode()))
    return headers


def _pairs(headers: Any) -> list[tuple[str, Any]]:
    if headers is None:
        return []
    return [(str(name), value) for name, value in (headers.items() if isinstance(headers, dict) else headers)]


def _part(fields: dict[str, Any], name: str) -> bytes | None:
    encoded = fields.get(name + "_base64")
    return base64.b64decode(encoded, validate=True) if encoded is not None else _text_bytes(fields.get(name))


def _text_bytes(value: Any) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False).encode()


def _json_part(name: str, content: bytes | None) -> dict[str, str | None]:
    if content is None:
        return {name: None}
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {name + "_base64": base64.b64encode(content).decode()}
