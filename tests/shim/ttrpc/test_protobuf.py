import pytest
from google.protobuf.internal import decoder, encoder
from hypothesis import given
from hypothesis import strategies as st

from protos import bootstrap_pb2, task_pb2
from shim.ttrpc import protobuf


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_varint_is_protobufs(value: int) -> None:
    expected: list[bytes] = []
    encoder._EncodeVarint(expected.append, value & (1 << 64) - 1)
    data = protobuf.varint(value)
    assert data == b"".join(expected)
    assert decoder._DecodeVarint(data, 0)[0] == value & (1 << 64) - 1
    ((_, read),) = protobuf.fields(protobuf.varint(1 << 3) + data)
    assert protobuf.number(read) == value


def test_bootstrap_params_of_protobuf() -> None:
    params = bootstrap_pb2.BootstrapParams(instance_id="a", log_level=-8, socket_dir="/s")
    found = dict(protobuf.fields(params.SerializeToString()))
    assert protobuf.text(found[1]) == "a"
    assert protobuf.number(found[3]) == -8
    assert protobuf.text(found[9]) == "/s"


def test_delete_response_for_protobuf() -> None:
    data = protobuf.number_field(1, 7) + protobuf.number_field(2, 137)
    data += protobuf.bytes_field(3, protobuf.timestamp(1_700_000_000_000_000_001))
    response = task_pb2.DeleteResponse.FromString(data)
    assert (response.pid, response.exit_status) == (7, 137)
    assert (response.exited_at.seconds, response.exited_at.nanos) == (1_700_000_000, 1)


@given(st.text(), st.binary())
def test_any_round_trip(type_url: str, value: bytes) -> None:
    assert protobuf.parse_any(protobuf.any_message(type_url, value)) == (type_url, value)


@given(st.binary())
def test_garbage_raises_wire_error_only(data: bytes) -> None:
    try:
        for _, value in protobuf.fields(data):
            protobuf.text(value) if isinstance(value, bytes) else protobuf.number(value)
    except protobuf.Malformed:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x0a\x05abc",
        b"\x0b",
        b"\x00\x00",
        b"\x09\x01",
        b"\xff" * 11,
        b"\x08" + b"\xff" * 10,
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(protobuf.Malformed):
        list(protobuf.fields(data))


def test_fixed_width_fields_are_skippable() -> None:
    data = b"\x0d\x01\x00\x00\x00" + b"\x11" + b"\x02" + b"\0" * 7 + protobuf.bytes_field(3, "x")
    assert list(protobuf.fields(data)) == [(3, b"x")]


def test_wrong_kinds() -> None:
    with pytest.raises(protobuf.Malformed):
        protobuf.text(1)
    with pytest.raises(protobuf.Malformed):
        protobuf.blob(1)
    with pytest.raises(protobuf.Malformed):
        protobuf.number(b"")
    with pytest.raises(protobuf.Malformed):
        protobuf.text(b"\xff")
