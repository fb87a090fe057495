"""The codec of the voters' messages: what was sent comes back, and nothing else is taken."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftlog.quorum.messages import FrameReceiver, FrameSender, MalformedMessage, decode_message, encode_message

INT64 = st.integers(0, 2**62)


@st.composite
def appends(draw: st.DrawFn) -> dict[str, object]:
    previous, previous_term = draw(INT64), draw(st.integers(0, 100))
    terms = sorted(draw(st.lists(st.integers(previous_term, 200), max_size=5)))
    entries = [(draw(st.binary(min_size=1, max_size=50)), previous + 1 + position, term) for position, term in enumerate(terms)]
    return {
        "type": "append_entries",
        "term": 200,
        "commit_index": draw(INT64),
        "prevLogIdx": previous,
        "prevLogTerm": previous_term,
        "entries": entries,
    }


MESSAGES = st.one_of(
    appends(),
    st.builds(lambda term: {"type": "response_vote", "term": term}, INT64),
    st.builds(lambda a, b, c: {"type": "request_vote", "term": a, "last_log_index": b, "last_log_term": c}, INT64, INT64, INT64),
    st.builds(lambda a, b: {"type": "append_entries", "term": a, "commit_index": b, "serialized": None}, INT64, INT64),
    st.builds(
        lambda a, b, c, d: {"type": "next_node_idx", "term": a, "next_node_idx": b, "reset": c, "success": d},
        INT64,
        INT64,
        st.booleans(),
        st.booleans(),
    ),
    st.just({"type": "keepalive"}),
)


@given(MESSAGES)
def test_round_trip(message: dict[str, object]) -> None:
    kind, body = encode_message(message)
    assert decode_message(kind, memoryview(body)) == message


@given(MESSAGES, st.integers(0, 2**32))
def test_damage_is_malformed_or_another_message(message: dict[str, object], seed: int) -> None:
    chance = random.Random(seed)
    frame = bytearray(FrameSender(5).encode(message))
    fate = chance.random()
    if fate < 0.4:
        del frame[chance.randrange(len(frame)) :]
    elif fate < 0.8:
        frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
    else:
        frame += bytes(chance.randint(1, 20))
    try:
        decoded = FrameReceiver(5).decode(bytes(frame))
    except MalformedMessage:
        return
    assert decoded is None or isinstance(decoded["type"], str)


@given(st.binary(max_size=200))
def test_noise_is_malformed(noise: bytes) -> None:
    for kind in range(-1, 10):
        try:
            decode_message(kind, memoryview(noise))
        except MalformedMessage:
            continue


def test_a_huge_count_is_refused_without_memory() -> None:
    kind, body = encode_message({"type": "append_entries", "term": 1, "commit_index": 0, "prevLogIdx": 1, "prevLogTerm": 0, "entries": []})
    with pytest.raises(MalformedMessage):
        decode_message(kind, memoryview(body[:-4] + b"\x7f\xff\xff\xff"))
