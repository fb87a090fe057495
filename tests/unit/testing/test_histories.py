"""The checker finds each anomaly in a history made by hand, and nothing in clean ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raftlog.testing import histories


class Script:
    """Writes a history line by line; time passes by one with each event."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _event(self, **event: Any) -> None:
        self.lines.append(json.dumps({"time_ns": len(self.lines), **event}))

    def run(self, f: str, process: str, outcome: str = "ok", end: dict[str, Any] | None = None, **fields: Any) -> None:
        identity = len(self.lines)
        self._event(id=identity, type="invoke", f=f, process=process, **fields)
        self._event(id=identity, type=outcome, **(end or {}))

    def send(self, value: int, offset: int | None, process: str = "p", outcome: str = "ok", **fields: Any) -> None:
        end = {"offset": offset} if offset is not None else None
        self.run("send", process, outcome, end, partition="t-0", value=value, ordered=True, **({"idempotent": True} | fields))

    def poll(self, *records: tuple[int, int], process: str = "c") -> None:
        self.run("poll", process, end={"records": [["t-0", offset, value] for offset, value in records]})

    def final(self, *records: tuple[int, int]) -> None:
        self.run("final_read", "f", end={"records": [["t-0", offset, value] for offset, value in records]}, partition="t-0")

    def commit(self, offset: int, outcome: str = "ok") -> None:
        self.run("commit", "c", outcome, group="g", offsets={"t-0": offset})

    def committed(self, offset: int) -> None:
        self.run("committed", "c", end={"offsets": {"t-0": offset}}, group="g")

    def anomalies(self) -> list[str]:
        return [anomaly.kind for anomaly in histories.check(histories.parse(self.lines)).anomalies]


def test_a_clean_history_is_clean() -> None:
    script = Script()
    script.send(1, 0)
    script.send(2, None, outcome="info")
    script.send(3, None, outcome="fail")
    script.poll((0, 1))
    script.poll((1, 2))
    script.commit(1)
    script.commit(2)
    script.committed(2)
    script.final((0, 1), (1, 2))
    assert script.anomalies() == []


def test_an_unknown_outcome_may_be_missing_or_present() -> None:
    script = Script()
    script.send(1, None, outcome="info")
    script.send(2, 0)
    script.final((0, 2))
    assert script.anomalies() == []


def test_lost_write_below_what_was_read() -> None:
    script = Script()
    script.send(1, 0)
    script.send(2, 1)
    script.poll((1, 2))
    assert script.anomalies() == ["lost_write"]


def test_lost_write_at_the_end_shows_in_the_final_read() -> None:
    script = Script()
    script.send(1, 0)
    script.send(2, 1)
    script.final((0, 1))
    assert script.anomalies() == ["lost_write"]


def test_acks_one_may_be_lost() -> None:
    script = Script()
    script.send(1, 0, acks="1")
    script.final()
    assert script.anomalies() == []


def test_reads_of_what_was_never_sent_or_was_refused() -> None:
    script = Script()
    script.send(2, None, outcome="fail")
    script.poll((0, 1), (1, 2))
    assert script.anomalies() == ["unwritten_read", "unwritten_read"]


def test_duplicates_count_under_idempotence_only() -> None:
    for idempotent in (True, False):
        script = Script()
        script.send(1, 0, idempotent=idempotent)
        script.poll((0, 1), (1, 1))
        assert script.anomalies() == (["duplicate"] if idempotent else [])


def test_two_values_at_one_offset() -> None:
    script = Script()
    script.send(1, 0)
    script.send(2, None, outcome="info", process="q")
    script.poll((0, 1))
    script.poll((0, 2), process="d")
    assert "inconsistent_offset" in script.anomalies()


def test_another_value_where_one_was_acknowledged() -> None:
    script = Script()
    script.send(1, 0)
    script.send(2, None, outcome="info", process="q")
    script.poll((0, 2), (1, 1))
    assert script.anomalies() == ["inconsistent_offset"]


def test_order_of_one_producer() -> None:
    script = Script()
    script.send(1, None, outcome="info")
    script.send(2, None, outcome="info")
    script.poll((0, 2), (1, 1))
    assert script.anomalies() == ["misordered"]


def test_offsets_told_to_one_producer_grow() -> None:
    script = Script()
    script.send(1, 5)
    script.send(2, 4)
    assert script.anomalies() == ["nonmonotonic_send"]


def test_polls_go_forward_and_skip_nothing() -> None:
    script = Script()
    for offset in range(4):
        script.send(offset, offset)
    script.poll((0, 0), (1, 1), (2, 2), (3, 3), process="d")
    script.poll((1, 1))
    script.poll((3, 3))
    assert script.anomalies() == ["poll_skip"]
    script.poll((2, 2))
    assert script.anomalies() == ["nonmonotonic_poll", "poll_skip"]


def test_a_reposition_allows_both() -> None:
    script = Script()
    for offset in range(3):
        script.send(offset, offset)
    script.poll((0, 0), (1, 1), (2, 2))
    script.run("reposition", "c")
    script.poll((0, 0), (1, 1), (2, 2))
    assert script.anomalies() == []


@pytest.mark.parametrize(("told", "anomaly"), [(-1, "group_offset_lost"), (3, "group_offset_moved_back"), (9, "group_offset_lost")])
def test_group_offsets_are_kept(told: int, anomaly: str) -> None:
    script = Script()
    script.commit(3)
    script.commit(5)
    script.committed(told)
    assert script.anomalies() == [anomaly]


def test_a_commit_of_unknown_outcome_may_show_or_not() -> None:
    for told in (3, 5):
        script = Script()
        script.commit(3)
        script.commit(5, outcome="info")
        script.committed(told)
        assert script.anomalies() == []


def test_what_was_read_and_is_gone_is_lost_however_it_was_sent() -> None:
    for acks in ("all", "1"):
        script = Script()
        script.send(1, 0, acks=acks)
        script.send(2, 1, acks=acks)
        script.poll((0, 1), (1, 2))
        script.final((0, 1))
        assert script.anomalies() == ["lost_write"]


def test_a_beginning_that_was_deleted_is_not_lost() -> None:
    script = Script()
    for offset in range(3):
        script.send(offset, offset)
    script.poll((0, 0), (1, 1), (2, 2))
    script.final((2, 2))
    assert script.anomalies() == []


def test_what_is_acknowledged_after_the_final_read_is_not_missed() -> None:
    script = Script()
    script.final()
    script.send(1, 0)
    assert script.anomalies() == []


def test_an_acknowledged_write_stands_where_it_was_said_to() -> None:
    script = Script()
    script.send(1, 4)
    script.final((0, 1))
    assert script.anomalies() == ["inconsistent_offset"]


def test_a_commit_of_unknown_outcome_that_showed_stays() -> None:
    script = Script()
    script.commit(3)
    script.commit(5, outcome="info")
    script.committed(5)
    script.committed(3)
    assert script.anomalies() == ["group_offset_moved_back"]


def test_a_group_is_not_told_what_nobody_committed() -> None:
    script = Script()
    script.committed(7)
    assert script.anomalies() == ["group_offset_lost"]


def test_each_anomaly_is_explained_and_proved() -> None:
    script = Script()
    script.send(1, 0)
    script.final()
    (anomaly,) = histories.check(histories.parse(script.lines)).anomalies
    assert [operation.f for operation in anomaly.proof] == ["send", "final_read"]
    assert histories.__doc__ is not None
    assert all(f"    {kind} " in histories.__doc__ for kind in histories.ANOMALIES)
    assert all(f"    {f} " in histories.__doc__ for f in histories.OPERATIONS)


@pytest.mark.parametrize(
    ("invoked", "ended"),
    [
        ({"f": "send", "partition": "t-0"}, {}),
        ({"f": "send", "partition": "t-0", "value": [1]}, {}),
        ({"f": "send", "partition": "t-0", "value": 1}, {"offset": "3"}),
        ({"f": "poll"}, {"records": [["t-0", 1]]}),
        ({"f": "poll"}, {"records": 3}),
        ({"f": "commit", "group": "g"}, {}),
        ({"f": "committed", "group": "g"}, {"offsets": [1]}),
        ({"f": "final_read"}, {"records": []}),
        ({"f": "steal"}, {}),
    ],
)
def test_fields_that_can_not_be_judged_are_named(invoked: dict[str, Any], ended: dict[str, Any]) -> None:
    begin = {"id": 1, "type": "invoke", "process": "c", "time_ns": 0, **invoked}
    end = {"id": 1, "type": "ok", "time_ns": 1, **ended}
    with pytest.raises(histories.MalformedHistory, match=r"line [12] "):
        histories.parse([json.dumps(begin), json.dumps(end)])


def test_a_bad_line_is_named() -> None:
    with pytest.raises(histories.MalformedHistory, match="line 2"):
        histories.parse(['{"id": 1, "type": "invoke", "f": "poll", "process": "c", "time_ns": 0}', "nonsense"])
