"""What administrators type: partitions, offsets, times, configs, groups."""

from __future__ import annotations

import pytest
from raftlog_cli.config_queries import APPEND, DELETE, SET, SUBTRACT, Change, Resource, parse_change, parse_changes, parse_resource
from raftlog_cli.configs import documentation_text
from raftlog_cli.errors import CliError, UsageProblem
from raftlog_cli.group_offsets import Bounds, choose_rule, new_offset
from raftlog_cli.group_queries import parse_assignment, state_name
from raftlog_cli.groups import STATES, kafka_names
from raftlog_cli.output import counted, print_rows, size_text
from raftlog_cli.partitions import Choice, choose, parse_choice, parse_numbers
from raftlog_cli.times import parse_duration, parse_timestamp
from raftlog_cli.topic_changes import parse_offsets
from raftlog_cli.topics import parse_assignment as parse_replica_assignment

from raftlog.ids import TopicPartition
from raftlog.protocol.messages import decode_response, encode_response

METADATA = 3


def metadata() -> object:
    topics = [
        {"name": name, "is_internal": name.startswith("__"), "partitions": [{"partition_index": number} for number in range(count)]}
        for name, count in (("orders", 3), ("orders-old", 1), ("__consumer_offsets", 2))
    ]
    topics.append({"name": "broken", "error_code": 29, "partitions": []})
    return decode_response(METADATA, 12, encode_response(METADATA, 12, 1, {"topics": topics}))[1]


def test_partitions_are_chosen() -> None:
    assert parse_choice("orders") == Choice("orders")
    assert parse_choice("orders:3,0-1,3") == Choice("orders", (3, 0, 1))
    found = metadata()
    assert [str(key) for key in choose(found, [])] == ["orders-0", "orders-1", "orders-2", "orders-old-0"]
    assert [str(key) for key in choose(found, [Choice("orders", (1,)), Choice("*old"), Choice("orders", (1,))])] == ["orders-1", "orders-old-0"]
    assert len(choose(found, [], internal=True)) == 6
    assert [str(key) for key in choose(found, [Choice("__consumer_offsets", (1,))])] == ["__consumer_offsets-1"]
    for choice, problem in (
        (Choice("broken"), "no such topic: 'broken'"),
        (Choice("x*"), "no such topic"),
        (Choice("orders", (3,)), "it has 0 to 2"),
    ):
        with pytest.raises(CliError, match=problem):
            choose(found, [choice])


@pytest.mark.parametrize("text", ["", ":1", "orders:", "orders:x", "orders:2-1", "orders:1-", "orders:-1", "orders:0-9999999", "orders:1,,2"])
def test_what_names_no_partitions(text: str) -> None:
    with pytest.raises(UsageProblem):
        parse_choice(text)


def test_offsets_to_delete_before() -> None:
    assert parse_numbers("1, 2") == (1, 2)
    assert parse_offsets([]) == ({}, -1)
    assert parse_offsets(["0=5", "3=-1"]) == ({0: 5, 3: -1}, None)
    assert parse_offsets(["0=5", "7"]) == ({0: 5}, 7)
    for texts in (["x"], ["0=x"], ["x=0"], ["-2"], ["0=1", "0=2"], ["1", "2"], ["=3"]):
        with pytest.raises(UsageProblem):
            parse_offsets(texts)


def test_times_and_durations() -> None:
    assert parse_timestamp("1700000000000", "--at") == 1_700_000_000_000
    assert parse_timestamp("2023-11-14T22:13:20.009+00:00", "--at") == 1_700_000_000_009
    assert [parse_duration(text, "--by") for text in ("90s", "1h30m", "2d", "15ms")] == [90_000, 5_400_000, 172_800_000, 15]
    assert [parse_duration(text, "--by") for text in ("P1DT2H", "PT0.5S", "pt1m")] == [93_600_000, 500, 60_000]
    for text in ("", "5", "s", "P", "PT", "1x", "-1s", "P1M"):
        with pytest.raises(UsageProblem, match="--by"):
            parse_duration(text, "--by")
    with pytest.raises(UsageProblem, match="--at"):
        parse_timestamp("999999-01-01", "--at")


def test_changes_of_configs() -> None:
    assert parse_change("a=1") == Change("a", SET, "1")
    assert parse_change("a = b=c") == Change("a", SET, "b=c")
    assert parse_change("a+=x,y") == Change("a", APPEND, "x,y")
    assert parse_change("a-=x") == Change("a", SUBTRACT, "x")
    assert parse_change("a=") == Change("a", SET, "")
    assert parse_changes(["a=1"], ["b"]) == [Change("a", SET, "1"), Change("b", DELETE, None)]
    for settings, unset in ((["a"], []), (["=1"], []), (["+=1"], []), ([], []), (["a=1"], ["a"])):
        with pytest.raises(UsageProblem):
            parse_changes(settings, unset)


def test_what_configs_belong_to() -> None:
    assert parse_resource("topics", "orders") == Resource("topic", "orders")
    everyone = parse_resource("broker", "default")
    assert (everyone.name, everyone.node_id, everyone.fields, str(everyone)) == ("", None, {"type": "broker", "name": "default"}, "all brokers")
    assert parse_resource("brokers", "3").node_id == 3
    assert parse_resource("client-metrics", "m") == Resource("client-metrics", "m")
    for kind, name in (("user", "x"), ("broker", "x"), ("broker-logger", "default"), ("topic", ""), ("group", "")):
        with pytest.raises(UsageProblem):
            parse_resource(kind, name)


def rule_of(flags: list[str] | None = None, **options: int) -> tuple[object, int | None]:
    wanted: dict[str, int | None] = {"to_offset": None, "shift_by": None, "time_ms": None, "back_ms": None, **options}
    return choose_rule(flags or [], now_ms=1000, **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "options", "old", "expected"),
    [
        (["earliest"], {}, 15, 10),
        (["latest"], {}, 15, 20),
        (["current"], {}, 15, 15),
        (["current"], {}, None, 20),
        (["current"], {}, 5, 10),
        ([], {"to_offset": 12}, 15, 12),
        ([], {"to_offset": 99}, 15, 20),
        ([], {"shift_by": -2}, 15, 13),
        ([], {"shift_by": -2}, None, 18),
        ([], {"shift_by": -9}, 15, 10),
        ([], {"time_ms": 7}, 15, 17),
        ([], {"back_ms": 300}, 15, 17),
    ],
)
def test_where_a_group_goes_on(flags: list[str], options: dict[str, int], old: int | None, expected: int) -> None:
    rule, _ = rule_of(flags, **options)
    assert new_offset(rule, old, Bounds(start=10, end=20, at_time=17)) == expected  # type: ignore[arg-type]


def test_the_time_that_a_rule_asks_for() -> None:
    assert rule_of(time_ms=7)[1] == 7
    assert rule_of(back_ms=300)[1] == 700
    assert rule_of(back_ms=5000)[1] == 0
    assert rule_of(["latest"])[1] is None
    for flags, options in (([], {}), (["earliest", "latest"], {}), (["latest"], {"shift_by": 1})):
        with pytest.raises(UsageProblem, match="say where to"):
            rule_of(flags, **options)


def test_names_of_states() -> None:
    assert state_name("PreparingRebalance") == "preparing rebalance"
    assert kafka_names(["preparing-rebalance", "Stable", "completing rebalance"], STATES, "--state") == [
        "PreparingRebalance",
        "Stable",
        "CompletingRebalance",
    ]


def test_what_a_classic_member_owns() -> None:
    data = b"\0\1\0\0\0\1\0\5first\0\0\0\2\0\0\0\1\0\0\0\0\xff\xff\xff\xff"
    assert parse_assignment(data) == (TopicPartition("first", 0), TopicPartition("first", 1))
    assert all(parse_assignment(data[:size]) == () for size in range(len(data) - 4))
    assert parse_assignment(b"\0\0\x7f\xff\xff\xff\0\1t\x7f\xff\xff\xff") == ()
    assert parse_assignment(b"") == ()


def test_replica_assignments() -> None:
    assert parse_replica_assignment("1:2,3") == [[1, 2], [3]]


def test_texts_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 1 << 30, 1 << 50)] == ["0 B", "1023 B", "1.5 KiB", "1.0 GiB", "1024.0 TiB"]
    assert (counted(1, "move"), counted(1200, "move")) == ("1 move", "1,200 moves")
    assert documentation_text("See <a href='x'>this</a> &amp; that, if a &lt; b.") == "    See this & that, if a < b."
    print_rows(["a_b", "c"], [{"a_b": (1, 2), "c": None, "d": 0}, {"a_b": (), "c": 10}], right=["c", "absent"])
    assert capsys.readouterr().out == "A B   C\n1,2   -\n-    10\n"
