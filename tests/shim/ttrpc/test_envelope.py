"""The hand-made codec against bytes written out by hand, and against protobuf itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import rpc_pb2, wkt_pb2
from shim.ttrpc.envelope import (
    MAX_METADATA,
    Request,
    Status,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from shim.ttrpc.protobuf import Malformed

GOLDEN_REQUEST = bytes.fromhex(
    "0a03 732e54"  # service "s.T"
    "1201 4d"  # method "M"
    "1a02 00ff"  # payload
    "20 80e59a77"  # timeout_nano 250,000,000
    "2a06 0a016b 120176"  # metadata k=v
    "2a06 0a016b 120177"  # metadata k=w
)


def fields(request: Request) -> tuple[object, ...]:
    return (
        request.service,
        request.method,
        request.payload,
        request.timeout_nano,
        dict(request.metadata),
    )


def test_request() -> None:
    request = Request("s.T", "M", b"\x00\xff", 250_000_000, {"k": ("v", "w")})
    assert encode_request(request) == GOLDEN_REQUEST
    assert fields(decode_request(GOLDEN_REQUEST)) == fields(request)


def test_negative_timeout_takes_ten_bytes() -> None:
    encoded = encode_request(Request("s", "m", timeout_nano=-1))
    assert encoded.endswith(bytes.fromhex("20 ffffffffffffffffff01"))
    assert decode_request(encoded).timeout_nano == -1


def test_unknown_fields_are_passed_over() -> None:
    unknown = bytes.fromhex(
        "30 96 01"  # 6, varint
        "39 0102030405060708"  # 7, 64 bits
        "42 02 6869"  # 8, bytes
        "4d 01020304"  # 9, 32 bits
        "53 08 01 5b 5c 54"  # 10, a group with a varint and an empty group 11 in it
        "08 01"  # 1 as a varint, which it is not
    )
    assert fields(decode_request(unknown + GOLDEN_REQUEST)) == fields(
        decode_request(GOLDEN_REQUEST)
    )


@pytest.mark.parametrize(
    "data",
    [
        "0a",  # no length
        "0a05 61",  # shorter than its length
        "0a01 ff",  # not UTF-8
        "00 00",  # field number 0
        "20 ffffffffffffffffffff01",  # 11 bytes of number
        "31 00",  # half a fixed64
        "35 00",  # half a fixed32
        "54",  # the end of no group
        "53 5c",  # a group ended by another
        "53",  # a group without an end
        "06",  # wire type 6
        "2a01 0a",  # bad bytes one level down
    ],
)
def test_malformed_request(data: str) -> None:
    with pytest.raises(Malformed):
        decode_request(bytes.fromhex(data))


def test_bounds() -> None:
    pair = bytes.fromhex("2a03 0a016b")
    assert decode_request(pair * MAX_METADATA).metadata == {"k": ("",) * MAX_METADATA}
    with pytest.raises(Malformed):
        decode_request(pair * (MAX_METADATA + 1))
    assert decode_request(b"\x53" * 64 + b"\x54" * 64).service == ""
    with pytest.raises(Malformed):
        decode_request(b"\x53" * 65 + b"\x54" * 65)


def test_success_omits_the_status() -> None:
    assert encode_response(None, b"hi") == bytes.fromhex("1202 6869")
    assert encode_response(None, b"") == b""
    assert decode_response(b"") == (None, b"")
    assert decode_response(bytes.fromhex("0a00 1202 6869")) == (None, b"hi")  # an empty status


def test_status() -> None:
    golden = bytes.fromhex("0a09 0805 1202 6e6f 1a01 64")
    assert encode_response(Status(5, "no", (b"d",)), b"") == golden
    status, payload = decode_response(golden)
    assert status is not None
    assert (status.code, status.message, status.details, payload) == (5, "no", (b"d",), b"")


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.text(), st.lists(st.binary(max_size=20)))
def test_status_agrees_with_protobuf(code: int, message: str, values: list[bytes]) -> None:
    message = message.encode(errors="replace").decode()
    details = [wkt_pb2.Any(type_url="t", value=value) for value in values]
    reference = rpc_pb2.Status(code=code, message=message, details=details)
    inner = reference.SerializeToString()
    ours = encode_response(
        Status(code, message, tuple(d.SerializeToString() for d in details)), b""
    )
    assert ours[-len(inner) :] == inner or not inner
    status, _ = decode_response(ours)
    if code == 0:
        assert status is None
    else:
        assert status is not None
        assert (status.code, status.message) == (code, message)
        assert [wkt_pb2.Any.FromString(d) for d in status.details] == details


@given(
    st.text(),
    st.binary(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.dictionaries(st.text(), st.lists(st.text(), min_size=1).map(tuple), max_size=4),
)
def test_round_trip(
    text: str, payload: bytes, timeout: int, metadata: dict[str, tuple[str, ...]]
) -> None:
    request = Request(text, text[::-1], payload, timeout, metadata)
    assert fields(decode_request(encode_request(request))) == fields(request)


@given(st.binary(max_size=64))
def test_garbage_is_malformed_or_a_message(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(data)
        except Malformed:
            pass
