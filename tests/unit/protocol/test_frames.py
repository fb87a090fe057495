"""The receive buffer: frames in any pieces, in place, bounded."""

from __future__ import annotations

import random

import pytest

from raftlog.protocol.frames import RECEIVE_BUFFER_BYTES, FrameBuffer, MalformedFrame, frame_prefix


def feed(buffer: FrameBuffer, content: bytes, sizes: list[int]) -> list[bytes]:
    """Receive `content` in pieces of `sizes` (repeated), taking frames after each."""
    frames = []
    offset = turn = 0
    while offset < len(content):
        space = buffer.space()
        assert len(space) > 0
        piece = content[offset : offset + min(sizes[turn % len(sizes)], len(space))]
        space[: len(piece)] = piece
        buffer.received(len(piece))
        offset += len(piece)
        turn += 1
        while (frame := buffer.next_frame()) is not None:
            frames.append(bytes(frame))
    return frames


def test_frames_in_any_pieces() -> None:
    for seed in range(60):
        chance = random.Random(seed)
        frames = [chance.randbytes(chance.choice((0, 1, 3, 100, 20_000, 70_000, 200_000))) for _ in range(12)]
        content = b"".join(frame_prefix([frame]) + frame for frame in frames)
        sizes = [chance.choice((1, 2, 5, 1000, 65_536, 100_000)) for _ in range(5)]
        if max(sizes) < 1000:
            sizes.append(50_000)
        buffer = FrameBuffer(1_000_000)
        assert feed(buffer, content, sizes) == frames, f"seed {seed}"
        assert buffer.pending_bytes == 0


def test_frames_reuse_one_buffer_and_that_of_a_huge_one_is_let_go() -> None:
    buffer = FrameBuffer(5_000_000)
    first = buffer.space().obj
    feed(buffer, (frame_prefix([b"x" * 100]) + b"x" * 100) * 100, [104])
    assert buffer.space().obj is first
    large = frame_prefix([bytes(900_000)]) + bytes(900_000)
    feed(buffer, large, [1 << 20])
    grown = buffer.space().obj
    feed(buffer, large, [1 << 20])
    assert buffer.space().obj is grown
    feed(buffer, frame_prefix([bytes(4_000_000)]) + bytes(4_000_000), [1 << 20])
    assert len(buffer.space().obj) == RECEIVE_BUFFER_BYTES


def test_a_quiet_connection_has_no_buffer() -> None:
    buffer = FrameBuffer(1000)
    feed(buffer, frame_prefix([b"x"]) + b"x\0", [6])
    buffer.release()
    assert buffer.pending_bytes == 1  # Nothing is lost: it is not quiet.
    assert feed(buffer, b"\0\0\1y", [4]) == [b"y"]
    buffer.release()
    assert len(buffer._buffer) == 0
    assert feed(buffer, frame_prefix([b"z"]) + b"z", [5]) == [b"z"]


def test_an_announced_size_costs_no_memory() -> None:
    buffer = FrameBuffer(100_000_000)
    feed(buffer, frame_prefix([bytes(50_000_000)]) + b"begin", [9])
    assert len(buffer.space().obj) <= 2 * RECEIVE_BUFFER_BYTES


def test_a_frame_handed_out_keeps_its_bytes_when_the_buffer_grows() -> None:
    buffer = FrameBuffer(1_000_000)
    content = frame_prefix([b"first"]) + b"first" + frame_prefix([bytes(200_000)]) + b"part"
    space = buffer.space()
    space[: len(content)] = content
    buffer.received(len(content))
    frame = buffer.next_frame()
    assert frame is not None
    assert buffer.next_frame() is None
    buffer.space()[:] = b"\xff" * len(buffer.space())
    assert bytes(frame) == b"first"


@pytest.mark.parametrize("size", [-1, 1001, 0x7FFFFFFF])
def test_lengths_that_are_not_allowed(size: int) -> None:
    buffer = FrameBuffer(1000)
    space = buffer.space()
    space[:4] = size.to_bytes(4, "big", signed=True)
    buffer.received(4)
    with pytest.raises(MalformedFrame, match=f"a frame of {size} bytes; at most 1000 are allowed"):
        buffer.next_frame()
