"""The frame layer against frames written out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.ttrpc import frames
from shim.ttrpc.errors import LocalProtocolError


def flat(found: list[frames.Frame | frames.Oversized]) -> list[tuple[object, ...]]:
    return [
        (f.stream_id, f.type, f.flags, f.body if isinstance(f, frames.Frame) else f.length)
        for f in found
    ]


def test_header_layout() -> None:
    golden = bytes.fromhex("00000003 00000005 01 02 616263")
    assert frames.encode(5, frames.REQUEST, frames.REMOTE_OPEN, b"abc") == golden
    assert flat(frames.FrameBuffer().feed(golden)) == [(5, 1, 2, b"abc")]


def test_empty_body_is_a_frame() -> None:
    assert flat(frames.FrameBuffer().feed(bytes.fromhex("00000000 00000001 02 00"))) == [
        (1, 2, 0, b"")
    ]


def test_longest_body_passes_and_one_more_is_refused() -> None:
    body = bytes(frames.MAX_BODY)
    buffer = frames.FrameBuffer()
    assert flat(buffer.feed(frames.encode(1, 3, 0, body))) == [(1, 3, 0, body)]
    assert not buffer.partial
    with pytest.raises(LocalProtocolError):
        frames.encode(1, 3, 0, body + b"x")


@pytest.mark.parametrize("stream_id", [-1, 1 << 32])
def test_stream_id_out_of_range(stream_id: int) -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode(stream_id, 1, 0, b"")


def test_oversized_body_is_skipped_and_the_next_frame_found() -> None:
    buffer = frames.FrameBuffer()
    length = frames.MAX_BODY + 1
    assert buffer.feed(length.to_bytes(4, "big") + bytes.fromhex("00000007 01 00")) == []
    assert buffer.feed(bytes(length - 1)) == []
    assert buffer.partial
    assert flat(buffer.feed(b"\0" + frames.encode(9, 1, 0, b"k"))) == [
        (7, 1, 0, length),
        (9, 1, 0, b"k"),
    ]
    assert not buffer.partial


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_any_chunking_gives_the_same_frames(data: bytes, cuts: list[int]) -> None:
    # Small lengths, so that frames do complete.
    data = data.replace(b"\xff", b"\0\0\0")
    whole = frames.FrameBuffer()
    expected = flat(whole.feed(data))
    parts = frames.FrameBuffer()
    found: list[tuple[object, ...]] = []
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    for start, end in pairwise(edges):
        found += flat(parts.feed(data[start:end]))
    assert found == expected
    assert parts.partial == whole.partial
