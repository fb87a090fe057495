"""Lines into records and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftlog_cli.errors import CliError, UsageProblem
from raftlog_cli.records import Consumed, Record, compile_format, headers_text, json_line, parse_headers, records_of_json, records_of_lines

CONSUMED = Consumed("flights", 3, 42, 1700000000000, b"UA", b"late", [("a", b"1"), ("b", None)])


def lines(*texts: bytes, key: bytes | None = None, key_separator: bytes | None = None) -> list[Record]:
    return list(records_of_lines(texts, key=key, key_separator=key_separator, headers=[], partition=-1))


def test_a_line_is_a_value_without_its_line_end() -> None:
    assert [record.value for record in lines(b"one\n", b"two\r\n", b"\n", b"last")] == [b"one", b"two", b"", b"last"]


def test_the_key_is_what_stands_before_the_first_separator() -> None:
    assert lines(b"UA:a:b\n", key_separator=b":") == [Record(b"UA", b"a:b", [])]


def test_a_line_without_its_separator_is_named() -> None:
    with pytest.raises(CliError, match=r"line 2 has no key separator ':'"):
        lines(b"k:v\n", b"kv\n", key_separator=b":")


def test_one_key_for_all() -> None:
    assert {record.key for record in lines(b"a", b"b", key=b"k")} == {b"k"}


def test_json_lines_carry_everything() -> None:
    line = json.dumps({"key": "k", "value": {"n": 1}, "headers": {"h": "x"}, "partition": 2, "timestamp": 5}).encode()
    assert list(records_of_json([line, b"\n"], headers=[("all", b"1")], partition=-1)) == [
        Record(b"k", b'{"n": 1}', [("h", b"x"), ("all", b"1")], 2, 5)
    ]


@pytest.mark.parametrize("line", [b"{", b"[]", b'"x"', b'{"partition": "x"}', b'{"value_base64": "%"}', b'{"headers": 3}'])
def test_a_bad_json_line_is_named(line: bytes) -> None:
    with pytest.raises(CliError, match="line 1 is not a record in JSON"):
        list(records_of_json([line], headers=[], partition=-1))


@given(key=st.none() | st.binary(), value=st.none() | st.binary(), headers=st.lists(st.tuples(st.text(), st.none() | st.text().map(str.encode))))
def test_what_consume_prints_as_json_produce_reads_again(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    line = json_line(Consumed("t", 4, 7, 99, key, value, headers))
    assert line.count(b"\n") == 1
    assert list(records_of_json([line], headers=[], partition=-1)) == [Record(key, value, headers, 4, 99)]


def test_formats() -> None:
    assert compile_format(r"%t/%p@%o %T %k=%v [%h] 100%%\n")(CONSUMED) == b"flights/3@42 1700000000000 UA=late [a=1,b] 100%\n"
    assert compile_format(r"\t\\\0")(CONSUMED) == b"\t\\\0"
    assert compile_format("%k%v%T")(CONSUMED._replace(key=None, value=None, timestamp_ms=None)) == b""


@pytest.mark.parametrize("text", ["%x", "%", "\\", "\\q", "abc%"])
def test_an_unknown_format_is_a_usage_problem(text: str) -> None:
    with pytest.raises(UsageProblem, match="unknown"):
        compile_format(text)


def test_headers() -> None:
    assert parse_headers(["a=1", "b=x=y", "c="]) == [("a", b"1"), ("b", b"x=y"), ("c", b"")]
    assert headers_text([("a", b"1"), ("b", None)]) == b"a=1,b"
    with pytest.raises(UsageProblem):
        parse_headers(["novalue"])
