"""What the sentry is told about its network, decided from what was found in the namespace.  Pure.

The JSON is that of gVisor's ``CreateLinksAndRoutesArgs`` (``runsc/boot/network.go``).  One shape
serves all generations: a sentry ignores the fields that it doesn't know and compares names
without regard to case.  What is taken over follows ``runsc/sandbox/network.go``; the differences
are named where they are made.
"""

from __future__ import annotations

import _socket
from binascii import b2a_base64, unhexlify

from runtime.base.errors import InvalidRequest
from runtime.base.golang import parse_bool
from runtime.base.record import Record
from runtime.network.routes import Link, Route, decide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from runtime.network.routes import Routing

_NAMESPACE = "network namespace"
_FLAGS = "runsc_config"
_FAMILIES = {4: (_socket.AF_INET, 32, "0.0.0.0"), 6: (_socket.AF_INET6, 128, "::")}
_QDISCS = {"none": 0, "fifo": 1, "tbf": 2}
# netstack's segments must fit an IP packet, whatever the device offers (BIG TCP).
_GSO_MAX = 65536
# SCM_MAX_FD, less one for the packet log.
_MAX_SOCKETS = 252
_NANOSECONDS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


class NetworkOptions(Record):
    """The runsc flags that shape the network."""

    host_gso: bool = True
    software_gso: bool = True
    gro: bool = False
    #: Of releases to which GRO is a duration, in nanoseconds.
    gro_timeout: int = 0
    tx_checksum: bool = False
    rx_checksum: bool = True
    qdisc: int = 1
    tbf_rate: int = 0
    tbf_burst: int = 0
    channels: int = 1
    processors_per_channel: int = 0
    log_packets: bool = False
    pcap: str = ""
    disconnect_ok: bool = False
    allow_connected_on_save: bool = False
    pause: bool = False


class SocketPlan(Record):
    """The packet sockets that a link gets, in the order of the argument's links."""

    index: int
    count: int
    #: Frames carry a virtio header, so that the device segments.
    vnet_hdr: bool


class Plan(Record):
    """The argument, and the sockets that must accompany it."""

    argument: Mapping[str, Any]
    sockets: tuple[SocketPlan, ...] = ()


def loopback_argument(*, gro: bool = False, disconnect_ok: bool = False) -> dict[str, Any]:
    """The network call's argument for a sandbox that has nothing but a loopback interface."""
    return _argument(NetworkOptions(gro=gro, disconnect_ok=disconnect_ok), [_default_loopback(gro)])


def read_options(flags: Mapping[str, str]) -> NetworkOptions:
    """The options in runsc's global flags (names without dashes).

    Raises InvalidRequest for a malformed value.
    """
    qdisc = flags.get("qdisc", "fifo")
    if qdisc not in _QDISCS:
        raise InvalidRequest(_FLAGS, f"flag 'qdisc' is none of none, fifo, tbf: {qdisc!r}")
    gro = flags.get("gvisor-gro", "false")
    enabled = parse_bool(gro)
    return NetworkOptions(
        host_gso=_boolean(flags, "gso", True),
        software_gso=_boolean(flags, "software-gso", True),
        gro=bool(enabled),
        gro_timeout=0 if enabled is not None else _duration("gvisor-gro", gro),
        tx_checksum=_boolean(flags, "tx-checksum-offload", False),
        rx_checksum=_boolean(flags, "rx-checksum-offload", True),
        qdisc=_QDISCS[qdisc],
        tbf_rate=_integer(flags, "qdisc-tbf-rate", 0, (1 << 64) - 1),
        tbf_burst=_integer(flags, "qdisc-tbf-burst", 0, (1 << 32) - 1),
        channels=_integer(flags, "num-network-channels", 1, _MAX_SOCKETS) or 1,
        processors_per_channel=_integer(flags, "network-processors-per-channel", 0, 1 << 16),
        log_packets=_boolean(flags, "log-packets", False),
        pcap=flags.get("pcap-log", ""),
        disconnect_ok=_boolean(flags, "net-disconnect-ok", False),
        allow_connected_on_save=_boolean(flags, "allow-connected-on-save", False),
        pause=_boolean(flags, "pause-external-networking", False),
    )


def plan(
    links: tuple[Link, ...],
    options: NetworkOptions,
    *,
    refused: tuple[Route, ...] = (),
    sorts: bool = False,
) -> Plan:
    """Decide what the sandbox gets.  ``links`` are those that are up, in the kernel's order.

    A link without addresses is left where it is.  A namespace whose loopback is down gets the
    usual one: nobody can have meant a sandbox without 127.0.0.1.  (runsc leaves it out.)
    ``refused`` and ``sorts`` are as for :func:`runtime.network.routes.decide`.  (runsc refuses a
    second default route whatever its metric, and loses routes that refuse.)

    Raises InvalidRequest for more sockets than one message can carry.
    """
    loopbacks = [link for link in links if link.loopback and link.addresses]
    used = [link for link in links if not link.loopback and link.addresses]
    routing = decide(used, refused if used else (), sorts=sorts)
    sockets = tuple(
        SocketPlan(index=link.index, count=options.channels, vnet_hdr=options.host_gso and link.gso)
        for link in used
    )
    count = sum(each.count for each in sockets)
    if count > _MAX_SOCKETS:
        raise InvalidRequest(_NAMESPACE, f"{count} packet sockets for {len(used)} links")
    described = [_loopback(link, options) for link in loopbacks]
    argument = _argument(options, described or [_default_loopback(options.gro)])
    argument["LoopbackLinks"][0]["Routes"] += _routes(routing.refused)
    argument["FDBasedLinks"] = [_fd_link(link, options, routing) for link in used] or None
    argument["PCAP"] = bool(options.pcap and used)
    for family, (link, route) in routing.defaults.items():
        argument[f"Defaultv{family}Gateway"] = {"Route": _route(route), "Name": link.name}
    return Plan(argument=argument, sockets=sockets)


def _argument(options: NetworkOptions, loopbacks: list[dict[str, Any]]) -> dict[str, Any]:
    unset = {"Route": {"Destination": {"IP": "", "Mask": None}, "Gateway": ""}, "Name": ""}
    return {
        "LoopbackLinks": loopbacks,
        "FDBasedLinks": None,
        "XDPLinks": None,
        "Defaultv4Gateway": unset,
        "Defaultv6Gateway": unset,
        "PCAP": False,
        "LogPackets": options.log_packets,
        "NATBlob": False,
        "DisconnectOk": options.disconnect_ok,
        "AllowConnectedOnSave": options.allow_connected_on_save,
        "PauseExternalNetworking": options.pause,
    }


def _default_loopback(gro: bool) -> dict[str, Any]:
    addresses = ((4, "127.0.0.1", 8), (6, "::1", 128))
    link = Link(name="lo", index=1, mtu=65536, loopback=True, addresses=addresses)
    return _loopback(link, NetworkOptions(gro=gro))


def _loopback(link: Link, options: NetworkOptions) -> dict[str, Any]:
    # The prefixes' routes stand in the kernel's local table, so they're derived; routes of the
    # main table come on top.
    routes = [
        Route(family=family, destination=_network(family, address, prefix), prefix=prefix)
        for family, address, prefix in link.addresses
    ]
    alone = decide((link,), sorts=False)
    return {
        "Name": link.name,
        "Addresses": _addresses(link),
        "Routes": _routes(routes) + _routes(alone.of_link[link.index]),
        "GVisorGRO": options.gro,
    }


def _fd_link(link: Link, options: NetworkOptions, routing: Routing) -> dict[str, Any]:
    device = options.host_gso and link.gso
    software = options.software_gso and not device
    size = _GSO_MAX if software else 0
    if device:
        size = min(link.gso_max_size or _GSO_MAX, _GSO_MAX)
    described: dict[str, Any] = {
        "Name": link.name,
        "InterfaceIndex": link.index,
        "MTU": link.mtu,
        "Addresses": _addresses(link),
        "Routes": _routes(routing.of_link[link.index]),
        "GSOMaxSize": size,
        "GVisorGSOEnabled": software,
        "GVisorGRO": options.gro,
        "TXChecksumOffload": options.tx_checksum,
        "RXChecksumOffload": options.rx_checksum,
        "LinkAddress": _base64(unhexlify(link.address)),
        "QDisc": options.qdisc,
        "TBFRate": options.tbf_rate,
        "TBFBurst": options.tbf_burst,
        "Neighbors": [
            {"IP": address, "HardwareAddr": _base64(unhexlify(hardware))}
            for address, hardware in link.neighbors
        ],
        "NumChannels": options.channels,
        "ProcessorsPerChannel": options.processors_per_channel,
    }
    if options.gro_timeout:
        described["GvisorGROTimeout"] = options.gro_timeout
    return described


def _addresses(link: Link) -> list[dict[str, Any]]:
    return [{"Address": address, "PrefixLen": prefix} for _, address, prefix in link.addresses]


def _routes(routes: Iterable[Route]) -> list[dict[str, Any]]:
    return [_route(route) for route in routes]


def _route(route: Route) -> dict[str, Any]:
    _, bits, unset = _FAMILIES[route.family]
    mask = ((1 << bits) - (1 << (bits - route.prefix))).to_bytes(bits // 8, "big")
    described: dict[str, Any] = {
        "Destination": {"IP": route.destination or unset, "Mask": _base64(mask)},
        "Gateway": route.gateway,
    }
    if route.mtu:
        described["MTU"] = route.mtu
    return described


def _network(family: int, address: str, prefix: int) -> str:
    number, bits, _ = _FAMILIES[family]
    value = int.from_bytes(_socket.inet_pton(number, address), "big")
    value = value >> (bits - prefix) << (bits - prefix)
    return _socket.inet_ntop(number, value.to_bytes(bits // 8, "big"))


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def _boolean(flags: Mapping[str, str], name: str, default: bool) -> bool:
    if name not in flags:
        return default
    value = parse_bool(flags[name])
    if value is None:
        raise InvalidRequest(_FLAGS, f"flag {name!r} is not a boolean: {flags[name]!r}")
    return value


def _integer(flags: Mapping[str, str], name: str, default: int, maximum: int) -> int:
    text = flags.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 20) or int(text) > maximum:
        raise InvalidRequest(_FLAGS, f"flag {name!r} is not within 0 and {maximum}: {text!r}")
    return int(text)


def _duration(name: str, text: str) -> int:
    """Nanoseconds of a simple Go duration: one number with one unit."""
    number = text.rstrip("nuµms")
    unit = text[len(number) :]
    if number.isascii() and number.isdigit() and len(number) <= 18:
        if unit in _NANOSECONDS:
            return int(number) * _NANOSECONDS[unit]
        if not unit and not int(number):
            return 0
    raise InvalidRequest(_FLAGS, f"flag {name!r} is not a duration: {text!r}")
