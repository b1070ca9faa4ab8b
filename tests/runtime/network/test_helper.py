"""The network helper on a made-up kernel: a thread that speaks netlink over a socket pair."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.network import channel, helper
from runtime.network.helper import Rtnetlink, Takeover

LINK, ADDRESS, ROUTE, NEIGHBOR, RULE = 16, 20, 24, 28, 32
DELETE_ADDRESS = 21
#: Groups of changes to links, neighbours, addresses and routes.
LINK_NEWS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
V4, V6 = socket.AF_INET, socket.AF_INET6


def attribute(kind: int, data: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(data), kind) + data).ljust((4 + len(data) + 3) & ~3, b"\0")


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def ip(text: str) -> bytes:
    return socket.inet_pton(V6 if ":" in text else V4, text)


def link(index: int, name: str, flags: int = 1, kind: int = 1, mac: bytes = bytes(6)) -> bytes:
    fixed = struct.pack("=BxHiII", 0, kind, index, flags, 0)
    named = attribute(3, name.encode() + b"\0")
    return fixed + named + number(4, 1400) + attribute(1, mac) + number(41, 60000)


def address(
    index: int, text: str, prefix: int, local: str = "", flags: int = 0x80, extra: bytes = b""
) -> bytes:
    family = V6 if ":" in text else V4
    fixed = struct.pack("=BBBBI", family, prefix, flags & 0xFF, 0, index)
    own = attribute(2, ip(local)) if local else b""
    return fixed + attribute(1, ip(text)) + own + number(8, flags) + extra


def route(
    family: int,
    prefix: int,
    *attributes: bytes,
    table: int = 254,
    kind: int = 1,
    flags: int = 0,
    tos: int = 0,
    source: int = 0,
) -> bytes:
    fixed = struct.pack("=BBBBBBBBI", family, prefix, source, tos, table, 3, 0, kind, flags)
    return fixed + b"".join(attributes)


def to(text: str) -> bytes:
    return attribute(1, ip(text))


def via(text: str) -> bytes:
    return attribute(5, ip(text))


def through(index: int) -> bytes:
    return number(4, index)


def hop(index: int, gateway: str, flags: int = 0) -> bytes:
    body = via(gateway)
    return struct.pack("=HBBi", 8 + len(body), flags, 0, index) + body


def rule(
    source: str, table: int, *attributes: bytes, flags: int = 0, bits: int = 0, action: int = 1
) -> bytes:
    family = V6 if ":" in source else V4
    bits = bits or 8 * len(ip(source))
    fixed = struct.pack("=BBBBBxxBI", family, 0, bits, 0, table & 0xFF, action, flags)
    return fixed + attribute(2, ip(source)) + b"".join(attributes) + number(15, table)


def neighbor(
    index: int, text: str, mac: bytes, state: int = 0x80, flags: int = 0, family: int = 0
) -> bytes:
    family = family or (V6 if ":" in text else V4)
    fixed = struct.pack("=BxxxiHBB", family, index, state, flags, 0)
    return fixed + attribute(1, ip(text)) + (attribute(2, mac) if mac else b"")


class Kernel:
    """Answers dumps from ``tables`` and requests by ``verdict``, and notes the requests."""

    def __init__(self) -> None:
        kinds = (LINK, ADDRESS, ROUTE, NEIGHBOR, RULE)
        self.tables: dict[int, list[bytes]] = {kind: [] for kind in kinds}
        self.requests: list[tuple[int, bytes]] = []
        self.verdict: Callable[[int, bytes], int] = lambda kind, body: 0
        self.interruptions = 0
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while data := self._theirs.recv(1 << 16):
            _, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
            body = data[16:]
            if flags & 0x300 == 0x300:
                self._dump(kind - 2, sequence)
            else:
                self.requests.append((kind, body))
                code = self.verdict(kind, body)
                answer = struct.pack("=i", -code) + data[:16]
                self._send([(2, 0, answer)], sequence)

    def _dump(self, kind: int, sequence: int) -> None:
        interrupted = 0x10 if self.interruptions else 0
        self.interruptions = max(self.interruptions - 1, 0)
        messages = [(kind, 2 | interrupted, body) for body in self.tables[kind]]
        # Two messages a datagram, one of an earlier request between them.
        for at in range(0, len(messages), 2):
            self._send(messages[at : at + 2], sequence)
            self._send([(3, 2, bytes(4))], sequence - 1)
        self._send([(3, 2 | interrupted, bytes(4))], sequence)

    def _send(self, messages: list[tuple[int, int, bytes]], sequence: int) -> None:
        data = b""
        for kind, flags, body in messages:
            header = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 1)
            data += header + body + bytes(-len(body) % 4)
        self._theirs.send(data)

    def close(self) -> None:
        self.ours.close()
        self._thread.join(5)
        self._theirs.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture(autouse=True)
def stand_in_goes() -> Iterator[None]:
    """A bare package stands in for pyroute2 after a decoding; nobody else should meet it."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
        del sys.modules[name]


MAC = b"\x02\0\0\0\0\x09"


def scan(kernel: Kernel) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in Rtnetlink(kernel.ours).scan()}


def test_links(kernel: Kernel) -> None:
    kernel.tables[LINK] = [
        link(1, "lo", 0x9, 772),
        link(2, "down", 0, 1, MAC),
        link(3, "eth0", 0x1043, 1, MAC),
        link(4, "tun0", 0x91, 65534, b"\x0a\0\0\1"),
    ]
    found = scan(kernel)
    assert list(found) == ["lo", "eth0", "tun0"]
    assert found["lo"]["loopback"]
    assert found["eth0"]["address"] == "020000000009"
    assert (found["eth0"]["mtu"], found["eth0"]["gso_max_size"]) == (1400, 60000)
    assert found["tun0"]["address"] == ""


def test_addresses(kernel: Kernel) -> None:
    kernel.tables[LINK] = [link(3, "eth0"), link(4, "eth1", 0)]
    kernel.tables[ADDRESS] = [
        address(3, "10.0.0.2", 24, local="10.0.0.2"),
        address(3, "10.0.0.9", 32, local="10.0.0.3"),  # point to point: the peer is .9
        address(4, "10.0.0.4", 24, local="10.0.0.4"),
        address(3, "fd99::2", 64),
        address(3, "fd99::3", 64, flags=0x88),  # duplicate address
        address(3, "fe80::1", 64, flags=0x40),  # tentative
        address(9, "10.0.0.5", 24),
    ]
    assert scan(kernel)["eth0"]["addresses"] == [
        [4, "10.0.0.2", 24],
        [4, "10.0.0.3", 32],
        [6, "fd99::2", 64],
        [6, "fe80::1", 64],
    ]


def test_routes(kernel: Kernel) -> None:
    kernel.tables[LINK] = [link(1, "lo", 9), link(3, "eth0"), link(4, "eth1")]
    metrics = attribute(8, number(2, 1300))
    mixed = attribute(18, struct.pack("=H", V6) + ip("fd99::1"))
    kernel.tables[ROUTE] = [
        route(V4, 0, via("10.0.0.1"), through(3)),
        route(V4, 24, to("10.0.0.0"), through(3), number(6, 7), metrics),
        route(V4, 32, to("10.0.0.2"), through(3), table=255, kind=2),  # local
        route(V4, 16, to("10.8.0.0"), kind=6),  # blackhole
        route(V6, 16, to("fd08::"), through(1), kind=7),  # unreachable, through lo
        route(V4, 16, to("10.7.0.0"), mixed, through(3)),  # gateway of the other family
        route(V4, 16, to("10.6.0.0"), attribute(9, hop(9, "10.0.0.8") + hop(4, "10.0.0.4"))),
        route(V4, 16, to("10.5.0.0"), through(3), number(15, 1000), table=252),
        route(V4, 16, to("10.4.0.0"), through(3), flags=0x200),  # cloned
        route(V4, 16, to("10.3.0.0"), through(9)),
        route(V6, 0, to("::"), via("fe80::1"), through(4), number(6, 1024), attribute(20, b"\1")),
        route(V4, 16, to("10.2.0.0"), through(3), tos=16),
        route(V6, 16, to("fd07::"), through(3), source=64),
        route(V4, 16, to("10.1.0.0"), attribute(9, hop(3, "10.0.0.8", flags=1))),  # dead
    ]
    found = scan(kernel)
    nothing = {"family": 4, "destination": "", "prefix": 0, "gateway": "", "metric": 0, "mtu": 0}
    nothing |= {"preference": 0, "bound": False}
    assert found["eth0"]["routes"] == [
        {**nothing, "gateway": "10.0.0.1", "order": 1},
        {**nothing, "destination": "10.0.0.0", "prefix": 24, "metric": 7, "mtu": 1300, "order": 2},
    ]
    assert found["eth1"]["routes"] == [
        {**nothing, "destination": "10.6.0.0", "prefix": 16, "gateway": "10.0.0.4", "order": 5},
        {
            **nothing,
            "family": 6,
            "gateway": "fe80::1",
            "metric": 1024,
            "order": 6,
            "preference": 1,
        },
    ]
    assert found["lo"]["routes"] == []


def test_routes_that_refuse(kernel: Kernel) -> None:
    kernel.tables[LINK] = [link(1, "lo", 9), link(3, "eth0")]
    kernel.tables[ROUTE] = [
        route(V4, 16, to("10.8.0.0"), number(6, 5), kind=6),
        route(V6, 16, to("fd08::"), through(1), kind=7),
        route(V4, 16, to("10.9.0.0"), kind=8, table=100),  # of another table
        route(V4, 16, to("10.9.0.0"), kind=9),  # throw
        route(V4, 16, to("10.9.0.0"), kind=8, tos=16),
    ]
    netlink = Rtnetlink(kernel.ours)
    netlink.scan()
    told = [(each["destination"], each["metric"]) for each in netlink.refused]
    assert told == [("10.8.0.0", 5), ("fd08::", 0)]


def test_routes_for_one_address(kernel: Kernel) -> None:
    """A table that a rule keeps for an address of the link; rules that say more are left alone."""
    kernel.tables[LINK] = [link(3, "eth0"), link(4, "net1")]
    kernel.tables[ADDRESS] = [address(4, "10.2.0.5", 24), address(4, "fd02::5", 64)]
    kernel.tables[RULE] = [
        rule("10.2.0.5", 1000, number(6, 32765), number(14, 0xFFFFFFFF)),
        rule("fd02::5", 101),
        rule("10.2.0.5", 102, number(10, 7)),  # a mark
        rule("10.2.0.5", 103, flags=2),  # not from
        rule("10.2.0.5", 104, bits=24),
        rule("10.2.0.5", 105, action=6),
        rule("10.2.0.5", 106, number(14, 0)),  # without its default route
        rule("10.2.0.6", 107),  # nobody's
    ]
    tables = (102, 103, 104, 105, 106, 107)
    kernel.tables[ROUTE] = [
        route(V4, 0, via("10.2.0.1"), through(4), number(15, 1000), table=252),
        route(V4, 0, via("10.3.0.1"), through(3), number(15, 1000), table=252),
        route(V6, 0, via("fe80::1"), through(4), table=101),
        *(route(V4, 0, via("10.9.9.9"), through(4), table=table) for table in tables),
    ]
    found = scan(kernel)
    assert [(each["gateway"], each["bound"]) for each in found["net1"]["routes"]] == [
        ("10.2.0.1", True),
        ("fe80::1", True),
    ]
    assert found["eth0"]["routes"] == []


def test_all_that_goes_with_an_address_comes_back(kernel: Kernel) -> None:
    """Routes of other tables, too, whether the sandbox was told of them or not."""
    kernel.tables[LINK] = [link(3, "eth0")]
    kernel.tables[ADDRESS] = [address(3, "10.2.0.5", 24)]
    kernel.tables[ROUTE] = [
        route(V4, 0, via("10.2.0.1"), through(3), table=100),
        route(V4, 8, to("10.0.0.0"), through(3), tos=16),
        route(V4, 32, to("10.2.0.5"), through(3), table=255, kind=2),
    ]
    netlink = Rtnetlink(kernel.ours)
    netlink.scan()
    with Takeover(netlink, {3}):
        pass
    restored = [body for kind, body in kernel.requests if kind == ROUTE]
    assert restored == 2 * kernel.tables[ROUTE][:2]


def test_neighbors(kernel: Kernel) -> None:
    kernel.tables[LINK] = [link(3, "eth0")]
    kernel.tables[NEIGHBOR] = [
        neighbor(3, "10.0.0.9", MAC),
        neighbor(3, "fd99::9", MAC),
        neighbor(3, "10.0.0.8", MAC, state=2),
        neighbor(3, "ff02::16", MAC, state=0x40),
        neighbor(3, "10.0.0.7", MAC, flags=8),
        neighbor(3, "10.0.0.6", b""),
        neighbor(9, "10.0.0.5", MAC),
    ]
    expected = [["10.0.0.9", "020000000009"], ["fd99::9", "020000000009"]]
    assert scan(kernel)["eth0"]["neighbors"] == expected


def test_interrupted_dump_is_repeated(kernel: Kernel) -> None:
    kernel.tables[LINK] = [link(3, "eth0")]
    kernel.interruptions = 3
    assert list(scan(kernel)) == ["eth0"]
    kernel.interruptions = 1000
    with pytest.raises(RuntimeError, match="changes faster"):
        scan(kernel)


def furnish(kernel: Kernel) -> tuple[Rtnetlink, list[bytes], list[bytes]]:
    kernel.tables[LINK] = [link(3, "eth0"), link(4, "eth1")]
    addresses = [
        address(3, "10.0.0.2", 24, local="10.0.0.2"),
        address(3, "10.0.0.3", 24, local="10.0.0.3", flags=0x81),
        address(3, "fd99::2", 64),
    ]
    kernel.tables[ADDRESS] = [*addresses, address(4, "10.1.0.2", 24, local="10.1.0.2")]
    routes = [
        route(V4, 0, via("10.0.0.1"), through(3), flags=0x1 | 0x4 | 0x8 | 0x10),
        route(V4, 24, to("10.0.0.0"), through(3)),
    ]
    kernel.tables[ROUTE] = [*routes, route(V4, 24, to("10.1.0.0"), through(4))]
    netlink = Rtnetlink(kernel.ours)
    netlink.scan()
    return netlink, addresses, [route(V4, 0, via("10.0.0.1"), through(3), flags=4), routes[1]]


def test_kept_takeover_removes_and_no_more(kernel: Kernel) -> None:
    netlink, addresses, _ = furnish(kernel)
    with Takeover(netlink, {3}) as takeover:
        takeover.keep()
    assert kernel.requests == [(DELETE_ADDRESS, raw) for raw in reversed(addresses)]


def test_takeover_that_is_not_kept_is_undone(kernel: Kernel) -> None:
    netlink, addresses, routes = furnish(kernel)
    with pytest.raises(EOFError), Takeover(netlink, {3}):
        kernel.requests.clear()
        raise EOFError
    expected = [(ADDRESS, raw) for raw in addresses] + [(ROUTE, raw) for raw in routes] * 2
    assert kernel.requests == expected


def test_address_that_went_with_its_primary(kernel: Kernel) -> None:
    netlink, addresses, _ = furnish(kernel)
    kernel.verdict = lambda kind, body: errno.EADDRNOTAVAIL if body == addresses[1] else 0
    with Takeover(netlink, {3}) as takeover:
        takeover.keep()
    assert len(kernel.requests) == 3


def test_refused_removal_is_undone_in_spite_of_errors(kernel: Kernel) -> None:
    netlink, addresses, routes = furnish(kernel)

    def verdict(kind: int, body: bytes) -> int:
        if kind == DELETE_ADDRESS:
            return errno.EPERM if body == addresses[0] else 0
        return errno.EEXIST if body == addresses[0] else errno.ENETUNREACH

    kernel.verdict = verdict
    with pytest.raises(PermissionError), Takeover(netlink, {3}):
        pytest.fail("must not be entered")
    undone = [request for request in kernel.requests if request[0] != DELETE_ADDRESS]
    assert undone == [(ADDRESS, raw) for raw in addresses] + [(ROUTE, raw) for raw in routes] * 2


def test_the_whole_library_is_the_fallback(kernel: Kernel, monkeypatch: Any) -> None:
    def broken() -> None:
        raise AttributeError("a future release")

    monkeypatch.setattr(helper.Codec, "_stand_in", staticmethod(broken))
    kernel.tables[LINK] = [link(3, "eth0")]
    assert list(scan(kernel)) == ["eth0"]
    assert hasattr(sys.modules["pyroute2"], "IPRoute")


def test_own_namespace_can_be_read() -> None:
    """The real kernel's messages; whatever there is, it has a consistent form."""
    for _ in range(200):  # others may make links and remove them here meanwhile
        with (
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel,
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as news,
        ):
            news.bind((0, LINK_NEWS))
            news.setblocking(False)
            try:
                found, failure = Rtnetlink(kernel).scan(), ""
            except RuntimeError as error:
                found, failure = [], str(error)
            names = {name for _, name in socket.if_nameindex()}
            if not select.select([news], [], [], 0)[0]:
                break
    else:
        pytest.fail("links, addresses or routes of this namespace never stop changing")
    assert not failure
    assert {each["name"] for each in found} <= names
    for each in found:
        assert isinstance(each["mtu"], int)


# -- messages --------------------------------------------------------------------------------


def test_messages_and_descriptors() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader, writer = os.pipe()
        large = {"text": "é" * 100_000, "list": [1, None, True]}
        sender = threading.Thread(target=channel.send, args=(theirs, large, [reader]))
        sender.start()
        fds: list[int] = []
        assert channel.receive_with_fds(ours, fds) == large
        sender.join()
        channel.send(theirs, {})
        assert channel.receive(ours) == {}
        os.write(writer, b"x")
        assert os.read(fds[0], 1) == b"x"
        assert not os.get_inheritable(fds[0])
        for fd in (reader, writer, *fds):
            os.close(fd)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EOFError),
        (b"\2\0", EOFError),
        (struct.pack("=I", 5) + b"{}", EOFError),
        (struct.pack("=I", 1 << 31), ValueError),
        (struct.pack("=I", 2) + b"[]", ValueError),
        (struct.pack("=I", 2) + b"{x", ValueError),
    ],
)
@pytest.mark.parametrize("with_fds", [False, True])
def test_broken_messages(data: bytes, error: type[Exception], with_fds: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(error):
            if with_fds:
                channel.receive_with_fds(ours, [])
            else:
                channel.receive(ours)
