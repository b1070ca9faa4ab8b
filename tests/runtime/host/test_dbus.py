"""D-Bus on the wire: bytes as the specification has them, and any bytes at all."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.base.errors import DeadlineExceeded, Failed
from runtime.host import dbus
from runtime.host.dbus import (
    MAX_MESSAGE,
    Bus,
    DBusWireError,
    Message,
    Protocol,
    RemoteFault,
    encode_call,
    marshal,
    split_signature,
)
from tests.fakes.systemd import FakeSystemd, message

HELLO = (
    b"l\1\0\1\0\0\0\0\1\0\0\0\x6e\0\0\0"
    b"\1\1o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0"
    b"\2\1s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0"
    b"\3\1s\0\5\0\0\0Hello\0\0\0"
    b"\6\1s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0"
)


def ready() -> Protocol:
    protocol = Protocol(0)
    protocol.receive(b"OK 1234\r\n")
    protocol.outgoing()
    return protocol


def test_a_call_as_every_client_begins() -> None:
    name = "org.freedesktop.DBus"
    call = encode_call(1, name, "/org/freedesktop/DBus", name, "Hello")
    length = int.from_bytes(call[12:16], "little")
    assert call[:12] == HELLO[:12]
    assert 16 + length + -length % 8 == len(call)
    assert call[16:] == HELLO[16:]
    assert 16 + length == len(HELLO.rstrip(b"\0")) + 1


@pytest.mark.parametrize(
    ("signature", "values", "expected"),
    [
        ("y", (7,), b"\7"),
        ("yu", (7, 1), b"\7\0\0\0\1\0\0\0"),
        ("b", (True,), b"\1\0\0\0"),
        ("t", ((1 << 64) - 1,), b"\xff" * 8),
        ("i", (-1,), b"\xff" * 4),
        ("s", ("hé",), b"\3\0\0\0h\xc3\xa9\0"),
        ("g", ("a(st)",), b"\5a(st)\0"),
        ("v", (("u", 5),), b"\1u\0\0\5\0\0\0"),
        ("au", ([1, 2],), b"\x08\0\0\0\1\0\0\0\2\0\0\0"),
        ("ay", ([],), b"\0\0\0\0"),
        # An array of structures is padded even if it is empty; the padding is not in its length.
        ("a(sv)", ([],), b"\0\0\0\0\0\0\0\0"),
        ("a(st)", ([("a", 2)],), b"\x10\0\0\0\0\0\0\0\1\0\0\0a\0\0\0\2\0\0\0\0\0\0\0"),
    ],
)
def test_values(signature: str, values: tuple[Any, ...], expected: bytes) -> None:
    assert bytes(marshal(signature, values)) == expected


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("y", (256,)),
        ("u", (-1,)),
        ("u", ("1",)),
        ("s", (1,)),
        ("s", ("a\0b",)),
        ("s", ()),
        ("z", (1,)),
        ("(", ((),)),
        ("()", ((),)),
        ("a" * 20 + "y", ([],)),
    ],
)
def test_values_that_do_not_fit(signature: str, values: tuple[Any, ...]) -> None:
    with pytest.raises(DBusWireError):
        marshal(signature, values)


def test_signatures() -> None:
    assert split_signature("ssa(sv)a(sa(sv))") == ["s", "s", "a(sv)", "a(sa(sv))"]
    assert split_signature("a{sv}u") == ["a{sv}", "u"]


def as_message(data: bytes) -> Message:
    messages = ready().receive(data)
    assert len(messages) == 1
    return messages[0]


def test_a_signal_is_understood() -> None:
    data = message(4, 9, [(1, "o", "/a"), (3, "s", "Gone")], "uoss", 1, "/b", "c", "done")
    signal = as_message(data)
    assert (signal.kind, signal.serial, signal.path, signal.member) == (4, 9, "/a", "Gone")
    assert signal.body == (1, "/b", "c", "done")


def test_big_endian_is_understood() -> None:
    data = b"B\2\0\1\0\0\0\4\0\0\0\3\0\0\0\x0f\5\1u\0\0\0\0\7\x08\1g\0\1u\0\0\0\0\1\2"
    reply = as_message(data)
    assert (reply.reply_serial, reply.body) == (7, (258,))


def test_what_is_marshalled_is_understood() -> None:
    values = ("a", [("N", ("au", [1, 2])), ("M", ("a(st)", [("x", 3)])), ("B", ("b", True))])
    call = encode_call(3, "d", "/p", "i", "m", "sa(sv)", values)
    assert as_message(call).body == values


def test_any_chunking_gives_the_same_messages() -> None:
    stream = b"OK 1\r\n" + HELLO_CALL + message(2, 5, [(5, "u", 1)], "s", "x" * 300) + HELLO_CALL

    @given(st.lists(st.integers(1, len(stream)), max_size=30))
    def check(sizes: list[int]) -> None:
        protocol, found, rest = Protocol(0), [], stream
        for size in sizes:
            found += protocol.receive(rest[:size])
            rest = rest[size:]
        found += protocol.receive(rest)
        assert [m.member or m.body[0][:1] for m in found] == ["Hello", "x", "Hello"]

    check()


HELLO_CALL = encode_call(1, "d", "/p", "i", "Hello")


@given(st.binary(max_size=200), st.booleans())
def test_garbage_gives_messages_or_an_error(data: bytes, plausible: bool) -> None:
    protocol = ready()
    try:
        protocol.receive(b"l\2\0\1" + data if plausible else data)
    except DBusWireError:
        return


@given(st.integers(0, len(HELLO_CALL) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_a_message_or_an_error(place: int, value: int) -> None:
    data = bytearray(message(4, 9, [(1, "o", "/a")], "uoss", 1, "/b", "c", "done"))
    data[place % len(data)] = value
    try:
        ready().receive(bytes(data))
    except DBusWireError:
        return


@pytest.mark.parametrize("where", [4, 12])
def test_a_message_without_bounds_is_refused_at_once(where: int) -> None:
    data = bytearray(message(2, 5, [(5, "u", 1)], "s", "x")[:16])
    data[where : where + 4] = b"\0\0\x7f\0"
    with pytest.raises(DBusWireError, match="too long"):
        ready().receive(bytes(data))


def test_a_signal_beyond_what_a_bus_passes_on_is_refused() -> None:
    data = bytearray(message(4, 5, [(3, "s", "M")], "s", "x")[:16])
    data[4:8] = b"\0\0\0\x7f"
    with pytest.raises(DBusWireError, match="too long"):
        ready().receive(bytes(data))


@pytest.mark.parametrize("step", [4099, 70000])
@pytest.mark.parametrize("kind", [1, 4])
def test_what_any_local_user_may_send_is_left_out(kind: int, step: int) -> None:
    """Too long, or malformed within its bounds: the reply behind it is still understood."""
    endless = message(kind, 5, [(3, "s", "M")], "s", "x" * (MAX_MESSAGE + 1))
    malformed = bytearray(message(kind, 6, [(3, "s", "M")], "s", "xyz"))
    malformed[-8:-4] = b"\xff\xff\0\0"  # a text that ends beyond its message
    stream = endless + malformed + endless + message(2, 7, [(5, "u", 3)], "s", "fine")
    protocol, found = ready(), []
    for at in range(0, len(stream), step):
        found += protocol.receive(stream[at : at + step])
    assert [(m.reply_serial, m.body) for m in found] == [(3, ("fine",))]


def test_a_malformed_reply_is_an_error() -> None:
    data = bytearray(message(2, 6, [(5, "u", 1)], "s", "xyz"))
    data[-8:-4] = b"\xff\xff\0\0"
    with pytest.raises(DBusWireError, match="beyond its message"):
        ready().receive(bytes(data))


def test_a_greeting_without_end_is_refused() -> None:
    with pytest.raises(DBusWireError, match="no end"):
        Protocol(0).receive(b"O" * 2000)


def test_no_call_before_the_greeting() -> None:
    with pytest.raises(Failed):
        Protocol(0).call("d", "/p", "i", "m")


# -- the connection -----------------------------------------------------------------------------


def connect(peer: FakeSystemd, seconds: float = 5) -> Bus:
    import _socket

    sock = _socket.socket(fileno=os.dup(peer.ours.fileno()))
    return Bus(sock, time.monotonic() + seconds)


def soon(seconds: float = 5) -> float:
    return time.monotonic() + seconds


def test_who_we_are_is_told() -> None:
    peer = FakeSystemd()
    bus = connect(peer)
    assert (
        peer.greeting == b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
    )
    bus.close()
    peer.close()


@pytest.mark.parametrize("chunk", [1, 7, 65536])
def test_a_call_and_its_reply(chunk: int) -> None:
    peer = FakeSystemd(chunk=chunk)
    bus = connect(peer)
    assert bus.call("d", "/p", "i", "Hello", "", (), soon()) == (":1.42",)
    assert bus.wait_signal(lambda s: s.member == "NameAcquired", soon()).body == (":1.42",)
    assert bus.call("d", "/p", "i", "Anything", "su", ("a", 1), soon()) == ()
    assert peer.calls[-1] == ("Anything", ("a", 1))
    bus.close()
    peer.close()


def test_an_error_keeps_its_name_and_words() -> None:
    peer = FakeSystemd()
    peer.refuse["Thing"] = "org.example.Refused"
    bus = connect(peer)
    with pytest.raises(RemoteFault, match=r"Thing is refused \(org.example.Refused\)") as caught:
        bus.call("d", "/p", "i", "Thing", "", (), soon())
    assert caught.value.name == "org.example.Refused"
    bus.close()
    peer.close()


def test_a_refused_authentication() -> None:
    peer = FakeSystemd()
    peer.refuse["AUTH"] = "yes"
    with pytest.raises(Failed, match="authentication refused: REJECTED"):
        connect(peer)
    peer.close()


def test_a_peer_that_hangs_up_in_a_call() -> None:
    peer = FakeSystemd()
    bus = connect(peer)
    with pytest.raises(Failed, match="d-bus: "):
        bus.call("d", "/p", "i", "hang up", "", (), soon())
    bus.close()
    peer.close()


def test_a_silent_peer_is_given_up() -> None:
    peer = FakeSystemd()
    bus = connect(peer)
    with pytest.raises(DeadlineExceeded):
        bus.wait_signal(lambda _: True, soon(0.02))
    bus.close()
    peer.close()


def test_only_what_is_waited_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "MAX_SIGNALS", 1)
    peer = FakeSystemd()
    bus = connect(peer)
    for _ in range(3):  # each brings a signal along
        bus.heed(lambda _: False)
        assert bus.call("d", "/p", "i", "Hello", "", (), soon()) == (":1.42",)
    with pytest.raises(Failed, match="more than 1 signals came unasked"):
        bus.heed(lambda _: True)
        for _ in range(3):
            bus.call("d", "/p", "i", "Hello", "", (), soon())
    bus.close()
    peer.close()
