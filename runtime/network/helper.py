"""A short-lived process inside a sandbox's network namespace: reads it, and takes it over.

Owns all that happens in the namespace.  Decides nothing: it reports what it finds, waits for the
plan, opens the packet sockets and takes the addresses off the host's links, since netstack will
answer for them.  Started by ``runtime/network/setup.py``; speaks to it over the stream socket that
is descriptor 3 (``runtime/network/channel.py``):

    helper -> parent    {"links": [...], "refused": [...]}    what was found
    parent -> helper    {"sockets": [...]}        go on; if it closes instead, nothing is changed
    helper -> parent    {"done": true}, sockets   the addresses are off
    parent -> helper    {"kept": true}            if it closes instead, they're put back

or from the helper, at any time, {"error": "..."}.

This is the only user of pyroute2, of which it needs no more than the decoding of messages.  In a
namespace without any link that is up it does without that, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from array import array

from runtime.base.errors import reason
from runtime.network.channel import receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Json = dict[str, Any]

CHANNEL = 3
_RTM_DELETE = 1  # added to the number of an RTM_NEW... message
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_NEWNEIGH, _RTM_NEWRULE = 16, 20, 24, 28, 32
_RTM_GET = 2
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP_INTERRUPTED, _DUMP, _CREATE = 0x1, 0x4, 0x10, 0x300, 0x400
_HEADER = struct.Struct("=IHHII")
_DUMP_ATTEMPTS = 5
# Size of the fixed part of each table's messages.
_FIXED = {
    _RTM_NEWLINK: 16,
    _RTM_NEWADDR: 8,
    _RTM_NEWROUTE: 12,
    _RTM_NEWNEIGH: 12,
    _RTM_NEWRULE: 12,
}

_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_ARPHRD_ETHER = 1
_RT_TABLE_MAIN, _RT_TABLE_LOCAL, _RTM_F_CLONED = 254, 255, 0x200
_RTN_UNICAST, _RTN_REFUSING = 1, (6, 7, 8)  # blackhole, unreachable, prohibit
_RTNH_F_DEAD = 0x1
# Of a rule (linux/fib_rules.h): what it may say and still be one by source address alone.
_FR_ACT_TO_TBL, _FIB_RULE_INVERT = 1, 0x2
_FRA_SRC, _FRA_TABLE = 2, 15
_FRA_HARMLESS = (_FRA_SRC, _FRA_TABLE, 6, 14, 18, 21)  # priority, suppress_*, pad, protocol
_NO_SUPPRESSION = b"\xff\xff\xff\xff"
# Flags that a dump reports but a request must not have.
_RTNH_F_STATE = 0x1 | 0x8 | 0x10
_IFA_F_DADFAILED = 0x8
_NUD_PERMANENT, _NTF_PROXY = 0x80, 0x8
_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 6}

_SIOCGIFFLAGS, _SIOCETHTOOL, _ETHTOOL_GGSO = 0x8913, 0x8946, 0x23
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 4 << 20


def main(fd: int = CHANNEL) -> None:
    """The process, which speaks over the socket ``fd``, and ends when that is closed."""
    channel = socket.socket(fileno=fd)
    status = 0
    try:
        _serve(channel)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        status = 1  # the parent has lost interest
    except Exception as error:
        status = 1
        send(channel, {"error": _describe(error)})
    # The parent waits for the end, and there is nothing to be finalized.
    os._exit(status)


def _serve(channel: socket.socket) -> None:
    if not _links_up():
        send(channel, {"links": [], "refused": []})
        return
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    kernel.bind((0, 0))
    netlink = Rtnetlink(kernel)
    found = netlink.scan()
    send(channel, {"links": found, "refused": netlink.refused})
    order = receive(channel)
    sockets: list[socket.socket] = []
    indexes = set()
    for each in order["sockets"]:
        indexes.add(each["index"])
        name = next(link["name"] for link in found if link["index"] == each["index"])
        sockets += [
            _packet_socket(name, each["index"], each["vnet_hdr"]) for _ in range(each["count"])
        ]
    with Takeover(netlink, indexes) as takeover:
        send(channel, {"done": True}, [each.fileno() for each in sockets])
        receive(channel)
        takeover.keep()


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        return where + reason(error)
    return f"{type(error).__name__}: {error}"


# -- reading the namespace -------------------------------------------------------------------


def _links_up() -> bool:
    """Is any link but the loopback up?  Asked without netlink, whose decoding is expensive."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(query, _SIOCGIFFLAGS, _ifreq(name))
            except OSError:
                continue  # gone again
            flags = struct.unpack_from("=H", answer, 16)[0]
            if flags & _IFF_UP and not flags & _IFF_LOOPBACK:
                return True
    return False


def _ifreq(name: str, rest: bytes = b"") -> bytes:
    return struct.pack("16s24s", os.fsencode(name), rest)


class Codec:
    """pyroute2's decoders.

    ``import pyroute2`` loads all of the library, which each pod's start would wait for.  The
    decoders want none of it, so a bare package stands in for the library's while
    they are imported.  Should a release not bear that, the library is imported as usual.
    """

    def __init__(self) -> None:
        try:
            self._stand_in()
            self._load()
        except Exception:
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]
            self._load()

    @staticmethod
    def _stand_in() -> None:
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec("pyroute2")
        if spec is not None and spec.submodule_search_locations is not None:
            package = type(sys)("pyroute2")
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules["pyroute2"] = package

    def _load(self) -> None:
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.ndmsg import ndmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        self._classes: dict[int, Callable[[bytes], Any]] = {
            _RTM_NEWLINK: ifinfmsg,
            _RTM_NEWADDR: ifaddrmsg,
            _RTM_NEWROUTE: rtmsg,
            _RTM_NEWNEIGH: ndmsg,
        }

    def decode(self, kind: int, data: bytes) -> Any:
        message = self._classes[kind](data)
        message.decode()
        return message


class Rtnetlink:
    """A routing socket: dumps tables, and sends messages of the dumps back as requests."""

    def __init__(self, kernel: socket.socket) -> None:
        self._codec = Codec()
        self._socket = kernel
        self._sequence = 0
        #: Index -> raw messages of its addresses and of its routes, in the kernel's order.
        self.addresses: dict[int, list[bytes]] = {}
        self.routes: dict[int, list[bytes]] = {}
        #: Routes that make what they match fail, in the form of a link's.
        self.refused: list[Json] = []
        self._order = 0

    def scan(self) -> list[Json]:
        """All links that are up, with what is configured on them."""
        links = {}
        for message, _ in self._dump(_RTM_NEWLINK):
            if message["flags"] & _IFF_UP:
                links[message["index"]] = self._link(message)
        for message, raw in self._dump(_RTM_NEWADDR):
            link = links.get(message["index"])
            if link is not None:
                self._add_address(link, message, raw)
        rules = dict(filter(None, map(_source_rule, self._raw_dump(_RTM_NEWRULE))))
        for message, raw in self._dump(_RTM_NEWROUTE):
            self._add_route(links, rules, message, raw)
        for message, _ in self._dump(_RTM_NEWNEIGH):
            link = links.get(message["ifindex"])
            if link is not None:
                _add_neighbor(link, message)
        return list(links.values())

    def request(self, kind: int, raw: bytes, flags: int = 0) -> None:
        """Send the body of a dumped message as a request of ``kind``.  Raises OSError."""
        self._send(kind, _ACK | flags, raw[_HEADER.size :])
        for answer, _, data in self._receive():
            if answer == _NLMSG_ERROR:
                code = -int(struct.unpack_from("=i", data, _HEADER.size)[0])
                if code:
                    raise OSError(code, os.strerror(code))
                return

    def _link(self, message: Any) -> Json:
        name = message.get_attr("IFLA_IFNAME")
        address = (message.get_attr("IFLA_ADDRESS") or "").replace(":", "")
        # Tunnels have addresses, too, but their frames no header in front.
        if message["ifi_type"] != _ARPHRD_ETHER:
            address = ""
        return {
            "name": name,
            "index": message["index"],
            "mtu": message.get_attr("IFLA_MTU") or 0,
            "address": address,
            "loopback": bool(message["flags"] & _IFF_LOOPBACK),
            "gso": _has_gso(name),
            "gso_max_size": message.get_attr("IFLA_GSO_MAX_SIZE") or 0,
            "addresses": [],
            "routes": [],
            "neighbors": [],
        }

    def _add_address(self, link: Json, message: Any, raw: bytes) -> None:
        family = _FAMILIES.get(message["family"])
        # Of a point-to-point link, IFA_ADDRESS is the peer's.
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        # An address that failed duplicate detection is somebody else's.
        if family is None or not address or flags & _IFA_F_DADFAILED:
            return
        link["addresses"].append([family, address, message["prefixlen"]])
        self.addresses.setdefault(link["index"], []).append(raw)

    def _add_route(
        self, links: dict[int, Json], rules: dict[tuple[int, int], str], message: Any, raw: bytes
    ) -> None:
        """Note a route that netstack can have: unicast, through a link, or one that refuses.

        Of the main table, or of one that a rule in ``rules`` keeps for an address of the link.
        Of several next hops each is noted, in their order, since netstack can't spread.  What
        depends on more than the destination it can't have, nor a gateway of another family.
        """
        family = _FAMILIES.get(message["family"])
        table = message.get_attr("RTA_TABLE") or message["table"]
        kind = message["type"]
        if family is None or table == _RT_TABLE_LOCAL or message["flags"] & _RTM_F_CLONED:
            return
        if kind in _RTN_REFUSING:
            if table == _RT_TABLE_MAIN and not message["tos"] and not message["src_len"]:
                self.refused.append(self._route(family, message, message))
            return
        if kind != _RTN_UNICAST:
            return
        hops = [(hop["oif"], hop) for hop in message.get_attr("RTA_MULTIPATH") or ()]
        hops = hops or [(message.get_attr("RTA_OIF"), message)]
        hops = [(index, hop) for index, hop in hops if index in links]
        if hops:
            self.routes.setdefault(hops[0][0], []).append(raw)
        if message["tos"] or message["src_len"]:
            return
        for index, hop in hops:
            bound = rules.get((family, table), "")
            if table != _RT_TABLE_MAIN and not any(
                each[1] == bound for each in links[index]["addresses"]
            ):
                continue
            if not hop.get_attr("RTA_VIA") and not hop["flags"] & _RTNH_F_DEAD:
                route = self._route(family, message, hop)
                links[index]["routes"].append({**route, "bound": table != _RT_TABLE_MAIN})

    def _route(self, family: int, message: Any, hop: Any) -> Json:
        self._order += 1
        metrics = message.get_attr("RTA_METRICS")
        return {
            "family": family,
            "destination": (message.get_attr("RTA_DST") or "") if message["dst_len"] else "",
            "prefix": message["dst_len"],
            "gateway": hop.get_attr("RTA_GATEWAY") or "",
            "metric": message.get_attr("RTA_PRIORITY") or 0,
            "mtu": (metrics.get_attr("RTAX_MTU") if metrics else 0) or 0,
            "preference": int(message.get_attr("RTA_PREF") or 0),
            "order": self._order,
        }

    def _dump(self, kind: int) -> Iterator[tuple[Any, bytes]]:
        for data in self._raw_dump(kind):
            yield self._codec.decode(kind, data), data

    def _raw_dump(self, kind: int) -> list[bytes]:
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind + _RTM_GET, _DUMP, bytes(_FIXED[kind]))
            found, interrupted = [], False
            for answer, flags, data in self._receive():
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                if answer == _NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", data, _HEADER.size)[0])
                    raise OSError(code, os.strerror(code))
                if answer == kind:
                    found.append(data)
            if not interrupted:
                return found
        raise RuntimeError("the namespace changes faster than it can be read")

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        size = _HEADER.size + len(body)
        header = _HEADER.pack(size, kind, _REQUEST | flags, self._sequence, 0)
        self._socket.sendall(header + body)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, flags, whole message) of each answer up to the end of the dump or its ack."""
        while True:
            data = self._socket.recv(1 << 18)
            at = 0
            while at < len(data):
                size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
                if size < _HEADER.size:
                    raise ValueError("malformed netlink message")
                if sequence == self._sequence:
                    if kind == _NLMSG_DONE:
                        return
                    yield kind, flags, data[at : at + size]
                    if kind == _NLMSG_ERROR:
                        return
                at += size + 3 & ~3


def _source_rule(data: bytes) -> tuple[tuple[int, int], str] | None:
    """((family, table), address) of a rule by which what comes from one address has its own table.

    None for any other, which netstack can't follow.
    """
    fixed = struct.unpack_from("=BBBBBxxBI", data, _HEADER.size)
    kernel_family, to_bits, from_bits, tos, table, action, flags = fixed
    family = _FAMILIES.get(kernel_family)
    if family is None or to_bits or tos or action != _FR_ACT_TO_TBL or flags & _FIB_RULE_INVERT:
        return None
    size = {4: 4, 6: 16}[family]
    source = b""
    at = _HEADER.size + _FIXED[_RTM_NEWRULE]
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return None
        value = data[at + 4 : at + length]
        if kind == _FRA_SRC:
            source = value
        elif kind == _FRA_TABLE and len(value) == 4:
            table = struct.unpack("=I", value)[0]
        elif kind not in _FRA_HARMLESS or (kind == 14 and value != _NO_SUPPRESSION):
            return None
        at += length + 3 & ~3
    if from_bits != 8 * size or len(source) != size:
        return None
    return (family, table), socket.inet_ntop(kernel_family, source)


def _add_neighbor(link: Json, message: Any) -> None:
    """Permanent entries only: all others netstack finds by itself."""
    address, hardware = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
    if message["family"] not in _FAMILIES or not address or not hardware:
        return
    if message["state"] == _NUD_PERMANENT and not message["flags"] & _NTF_PROXY:
        link["neighbors"].append([address, hardware.replace(":", "")])


def _has_gso(name: str) -> bool:
    """Does the device segment?  No, where it can't be asked."""
    value = array("I", (_ETHTOOL_GGSO, 0))
    pointer = struct.pack("P", value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        try:
            fcntl.ioctl(query, _SIOCETHTOOL, _ifreq(name, pointer))
        except OSError:
            return False
    return bool(value[1])


# -- taking it over --------------------------------------------------------------------------


def _packet_socket(name: str, index: int, vnet_hdr: bool) -> socket.socket:
    """A socket for all frames of a link, as ``runsc/sandbox/network.go`` makes it.

    It is made for no protocol, and gets one when it is bound: a socket that receives from the
    start would have to be taken off all other links first, which is slow.
    """
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packet.bind((name, _ETH_P_ALL))
    if packet.getsockname()[0] != name or socket.if_nametoindex(name) != index:
        raise RuntimeError(f"link {name} was replaced")
    if vnet_hdr:
        packet.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    # The usual maxima are far too small for a whole sandbox; they don't bind the privileged.
    for forced, plain in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        try:
            packet.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
        except PermissionError:
            packet.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
    return packet


class Takeover:
    """Takes the addresses off some links; puts them and the routes back unless it is kept."""

    def __init__(self, netlink: Rtnetlink, indexes: set[int]) -> None:
        self._netlink = netlink
        self._indexes = indexes
        self._kept = False

    def keep(self) -> None:
        """The sandbox has the addresses now."""
        self._kept = True

    def __enter__(self) -> Takeover:
        try:
            for index in self._indexes:
                # From the last to the first, since the secondary ones come after their primary,
                # with which the kernel would remove them.
                for raw in reversed(self._netlink.addresses.get(index, [])):
                    self._try(_RTM_NEWADDR + _RTM_DELETE, raw, 0, (errno.EADDRNOTAVAIL,))
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self._restore()

    def _restore(self) -> None:
        """Best effort, past all errors: what is reported is why it was needed."""
        ignored = tuple(errno.errorcode)
        routes = []
        for index in self._indexes:
            for raw in self._netlink.addresses.get(index, []):
                self._try(_RTM_NEWADDR, raw, _CREATE, ignored)
            routes += [_plain_route(raw) for raw in self._netlink.routes.get(index, [])]
        # Twice: gateways can't be used before the routes to them are there.
        for raw in routes + routes:
            self._try(_RTM_NEWROUTE, raw, _CREATE, ignored)

    def _try(self, kind: int, raw: bytes, flags: int, ignored: tuple[int, ...]) -> None:
        try:
            self._netlink.request(kind, raw, flags)
        except OSError as error:
            if error.errno not in ignored:
                raise


def _plain_route(raw: bytes) -> bytes:
    """A dumped route without the flags that only the kernel sets."""
    at = _HEADER.size + 8
    flags = struct.unpack_from("=I", raw, at)[0] & ~_RTNH_F_STATE
    return raw[:at] + struct.pack("=I", flags) + raw[at + 4 :]
