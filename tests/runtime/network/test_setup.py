"""The argument of the sentry's network call, and the shim's side of the helper."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from runtime.base.errors import InvalidRequest
from runtime.network import setup
from runtime.network.argument import NetworkOptions, plan, read_options
from runtime.network.restored import give_back
from runtime.network.routes import Link, Route

# What the stock CLI of release-20240729 sends for --network=none.
RECORDED = json.loads(
    '{"LoopbackLinks":[{"Name":"lo","Addresses":[{"Address":"127.0.0.1","PrefixLen":8},'
    '{"Address":"::1","PrefixLen":128}],"Routes":[{"Destination":{"IP":"127.0.0.0",'
    '"Mask":"/wAAAA=="},"Gateway":""},{"Destination":{"IP":"::1",'
    '"Mask":"/////////////////////w=="},"Gateway":""}],"GVisorGRO":false}],'
    '"FDBasedLinks":null,"XDPLinks":null,"Defaultv4Gateway":{"Route":{"Destination":'
    '{"IP":"","Mask":null},"Gateway":""},"Name":""},"Defaultv6Gateway":{"Route":{"Destination":'
    '{"IP":"","Mask":null},"Gateway":""},"Name":""},"PCAP":false,"LogPackets":false,'
    '"NATBlob":false,"DisconnectOk":false}'
)

ETH0 = Link(
    name="eth0",
    index=3,
    mtu=1450,
    address="0a0000000002",
    gso=True,
    gso_max_size=65536,
    addresses=((4, "10.1.0.2", 24), (6, "fd99::2", 64)),
    routes=(
        Route(family=4, gateway="10.1.0.1"),
        Route(family=4, destination="10.0.0.0", prefix=8, gateway="10.1.0.7", mtu=1400),
        Route(family=4, destination="10.1.0.0", prefix=24),
        Route(family=6, destination="fd99::", prefix=64, metric=256),
    ),
    neighbors=(("10.1.0.9", "0a0000000009"),),
)


def decoded(mask: str) -> str:
    return base64.b64decode(mask).hex()


def test_loopback_is_what_the_cli_sends() -> None:
    argument = setup.loopback_argument()
    assert {key: argument[key] for key in RECORDED} == RECORDED
    assert setup.loopback_argument(gro=True)["LoopbackLinks"][0]["GVisorGRO"]
    assert setup.loopback_argument(disconnect_ok=True)["DisconnectOk"]
    json.dumps(argument)


def test_nothing_but_a_loopback() -> None:
    planned = plan((), NetworkOptions())
    assert planned.argument == setup.loopback_argument()
    assert planned.sockets == ()
    bare = Link(name="eth0", index=2, mtu=1500, routes=(Route(family=4, gateway="10.0.0.1"),))
    assert plan((bare,), NetworkOptions()) == planned


def test_a_link() -> None:
    planned = plan((ETH0,), NetworkOptions())
    (link,) = planned.argument["FDBasedLinks"]
    assert (link["Name"], link["MTU"], link["NumChannels"]) == ("eth0", 1450, 1)
    assert base64.b64decode(link["LinkAddress"]) == b"\x0a\0\0\0\0\2"
    assert link["Addresses"] == [
        {"Address": "10.1.0.2", "PrefixLen": 24},
        {"Address": "fd99::2", "PrefixLen": 64},
    ]
    assert [(r["Destination"]["IP"], r["Gateway"]) for r in link["Routes"]] == [
        ("10.1.0.0", ""),
        ("10.0.0.0", "10.1.0.7"),
        ("fd99::", ""),
    ]
    assert [decoded(r["Destination"]["Mask"]) for r in link["Routes"]] == [
        "ffffff00",
        "ff000000",
        "f" * 16 + "0" * 16,
    ]
    assert link["Routes"][1]["MTU"] == 1400
    assert link["Neighbors"] == [{"IP": "10.1.0.9", "HardwareAddr": "CgAAAAAJ"}]
    assert planned.argument["Defaultv4Gateway"] == {
        "Route": {"Destination": {"IP": "0.0.0.0", "Mask": "AAAAAA=="}, "Gateway": "10.1.0.1"},
        "Name": "eth0",
    }
    assert planned.argument["Defaultv6Gateway"]["Name"] == ""
    (sockets,) = planned.sockets
    assert (sockets.index, sockets.count, sockets.vnet_hdr) == (3, 1, True)
    # The sandbox has 127.0.0.1 although the namespace's loopback is down.
    assert planned.argument["LoopbackLinks"] == setup.loopback_argument()["LoopbackLinks"]


@pytest.mark.parametrize(
    ("device", "host", "software", "expected"),
    [
        (True, True, True, (65536, False, True)),
        (True, False, True, (65536, True, False)),
        (False, True, True, (65536, True, False)),
        (False, True, False, (0, False, False)),
        (True, True, False, (65536, False, True)),
    ],
)
def test_segmentation(
    device: bool, host: bool, software: bool, expected: tuple[int, bool, bool]
) -> None:
    planned = plan(
        (ETH0.replace(gso=device),), NetworkOptions(host_gso=host, software_gso=software)
    )
    (link,) = planned.argument["FDBasedLinks"]
    seen = (link["GSOMaxSize"], link["GVisorGSOEnabled"], planned.sockets[0].vnet_hdr)
    assert seen == expected


@pytest.mark.parametrize(("size", "expected"), [(0, 65536), (20000, 20000), (524280, 65536)])
def test_segment_size(size: int, expected: int) -> None:
    planned = plan((ETH0.replace(gso_max_size=size),), NetworkOptions())
    assert planned.argument["FDBasedLinks"][0]["GSOMaxSize"] == expected


def test_loopback_as_found() -> None:
    lo = Link(
        name="lo",
        index=1,
        mtu=65536,
        loopback=True,
        addresses=((4, "127.0.0.1", 8), (4, "10.200.3.77", 20), (6, "fd00::7777", 61)),
        routes=(Route(family=4, destination="10.66.0.0", prefix=16),),
    )
    planned = plan((lo, ETH0), NetworkOptions(gro=True))
    (loopback,) = planned.argument["LoopbackLinks"]
    assert [each["Address"] for each in loopback["Addresses"]] == [
        "127.0.0.1",
        "10.200.3.77",
        "fd00::7777",
    ]
    assert [
        (r["Destination"]["IP"], decoded(r["Destination"]["Mask"])) for r in loopback["Routes"]
    ] == [
        ("127.0.0.0", "ff000000"),
        ("10.200.0.0", "fffff000"),
        ("fd00::", "fffffffffffffff8" + "0" * 16),
        ("10.66.0.0", "ffff0000"),
    ]
    assert loopback["GVisorGRO"]
    assert [each.index for each in planned.sockets] == [3]


def test_routes_are_in_the_order_in_which_they_are_tried() -> None:
    routes = (
        Route(family=4, destination="10.0.0.0", prefix=8),
        Route(family=4, destination="10.1.0.0", prefix=16, gateway="10.9.9.9", metric=20),
        Route(family=4, destination="10.1.0.0", prefix=16, gateway="10.8.8.8", metric=10),
        Route(family=4, destination="10.1.2.3", prefix=32),
    )
    (link,) = plan((ETH0.replace(routes=routes),), NetworkOptions()).argument["FDBasedLinks"]
    assert [(r["Destination"]["IP"], r["Gateway"]) for r in link["Routes"]] == [
        ("10.1.2.3", ""),
        ("10.1.0.0", "10.8.8.8"),
        ("10.0.0.0", ""),
    ]
    # A full mask and an empty one.
    assert decoded(link["Routes"][0]["Destination"]["Mask"]) == "ffffffff"


@pytest.mark.parametrize("family", [4, 6])
def test_the_lowest_metric_is_the_default_route(family: int) -> None:
    """On one link or several, whichever comes first; as the kernel has it."""
    low = Route(family=family, gateway={4: "10.1.0.1", 6: "fd99::1"}[family], metric=5, order=9)
    high = Route(family=family, gateway={4: "10.1.0.9", 6: "fd99::9"}[family], metric=6, order=1)
    first = ETH0.replace(routes=(low,))
    second = ETH0.replace(name="eth1", index=4, routes=(high,))
    for links, name in (
        ((first, second), "eth0"),
        ((first.replace(routes=(high,)), second.replace(routes=(low,))), "eth1"),
        ((first.replace(routes=(high, low)),), "eth0"),
    ):
        argument = plan(links, NetworkOptions()).argument
        default = argument[f"Defaultv{family}Gateway"]
        assert (default["Name"], default["Route"]["Gateway"]) == (name, low.gateway)
        assert not any(link["Routes"] for link in argument["FDBasedLinks"])
    other = second.replace(routes=(Route(family=10 - family, gateway="fd99::1"),))
    assert plan((first, other), NetworkOptions()).argument["Defaultv4Gateway"]["Name"]


def gateways(argument: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(link, destination, gateway) in the order in which netstack gets them."""
    found = [
        (link["Name"], route["Destination"]["IP"], route["Gateway"])
        for link in argument["LoopbackLinks"] + argument["FDBasedLinks"]
        for route in link["Routes"]
    ]
    for family in (4, 6):
        default = argument[f"Defaultv{family}Gateway"]
        if default["Name"]:
            found.append((default["Name"], "default", default["Route"]["Gateway"]))
    return found[2:]  # without the loopback's own


def test_the_others_stay_where_they_can_stand_behind() -> None:
    """For sockets that are bound to their link; a netstack that doesn't sort can't have them."""
    one = ETH0.replace(routes=(Route(family=4, gateway="10.1.0.1", metric=1),))
    two = ETH0.replace(name="eth1", routes=(Route(family=4, gateway="10.2.0.1", metric=2),))
    two = two.replace(index=4)
    told = [("eth0", "0.0.0.0", "10.1.0.1"), ("eth1", "0.0.0.0", "10.2.0.1")]
    assert gateways(dict(plan((one, two), NetworkOptions(), sorts=True).argument)) == told
    # eth1 comes first here, and so would the worse of the two.
    swapped = plan((two, one), NetworkOptions(), sorts=True).argument
    assert gateways(dict(swapped)) == [("eth0", "default", "10.1.0.1")]


def test_equal_metrics_are_decided_as_the_kernel_does() -> None:
    """The first; of IPv6, the one that its router prefers."""
    ways = [Route(family=6, gateway=f"fe80::{n}", preference=n, order=n) for n in (3, 0, 1)]
    link = ETH0.replace(routes=tuple(ways))
    default = plan((link,), NetworkOptions()).argument["Defaultv6Gateway"]
    assert default["Route"]["Gateway"] == "fe80::1"
    ways = [Route(family=4, gateway=f"10.0.0.{n}", order=n) for n in (2, 1)]
    default = plan((ETH0.replace(routes=tuple(ways)),), NetworkOptions()).argument[
        "Defaultv4Gateway"
    ]
    assert default["Route"]["Gateway"] == "10.0.0.1"


def test_what_the_kernel_refuses_goes_nowhere() -> None:
    """It ends at the loopback where another route would take it, and the metric counts there."""
    link = ETH0.replace(routes=(Route(family=4, gateway="10.1.0.1", metric=100),))
    walls = (
        Route(family=4, destination="10.8.0.0", prefix=16),
        Route(family=6, destination="fd08::", prefix=16),  # there is no other way anyhow
        Route(family=4, metric=200),
    )
    told = [("lo", "10.8.0.0", ""), ("eth0", "default", "10.1.0.1")]
    assert gateways(dict(plan((link,), NetworkOptions(), refused=walls).argument)) == told
    assert (
        gateways(dict(plan((link,), NetworkOptions(), refused=(Route(family=4),)).argument)) == []
    )
    assert plan((), NetworkOptions(), refused=walls) == plan((), NetworkOptions())


def test_a_route_for_one_address_comes_last() -> None:
    """Multus' source-based routing: its table's default route is for the second link's address."""
    one = ETH0.replace(routes=(Route(family=4, gateway="10.1.0.1", metric=900),))
    bound = Route(family=4, gateway="10.2.0.1", bound=True)
    two = ETH0.replace(name="net1", index=4, routes=(bound,))
    told = [("eth0", "0.0.0.0", "10.1.0.1"), ("net1", "0.0.0.0", "10.2.0.1")]
    assert gateways(dict(plan((one, two), NetworkOptions(), sorts=True).argument)) == told
    # Alone it would be taken for everything.
    alone = plan((one.replace(routes=()), two), NetworkOptions(), sorts=True).argument
    assert gateways(dict(alone)) == []


def test_direct_default_route() -> None:
    link = ETH0.replace(routes=(Route(family=4),))
    default = plan((link,), NetworkOptions()).argument["Defaultv4Gateway"]
    assert default["Route"] == {
        "Destination": {"IP": "0.0.0.0", "Mask": "AAAAAA=="},
        "Gateway": "",
    }
    assert default["Name"] == "eth0"


def test_more_sockets_than_fit_a_message() -> None:
    links = tuple(ETH0.replace(index=n, routes=()) for n in range(3))
    assert sum(each.count for each in plan(links, NetworkOptions(channels=84)).sockets) == 252
    with pytest.raises(InvalidRequest, match="packet sockets"):
        plan(links, NetworkOptions(channels=85))


def test_flags() -> None:
    assert read_options({}) == NetworkOptions()
    assert read_options({"debug": "true", "platform": "kvm"}) == NetworkOptions()
    options = read_options(
        {
            "gso": "false",
            "software-gso": "0",
            "gvisor-gro": "true",
            "tx-checksum-offload": "T",
            "rx-checksum-offload": "F",
            "qdisc": "tbf",
            "qdisc-tbf-rate": "1000",
            "qdisc-tbf-burst": "99",
            "num-network-channels": "4",
            "network-processors-per-channel": "2",
            "log-packets": "1",
            "pcap-log": "/log",
            "net-disconnect-ok": "true",
            "allow-connected-on-save": "true",
            "pause-external-networking": "true",
        }
    )
    planned = plan((ETH0,), options)
    (link,) = planned.argument["FDBasedLinks"]
    assert (link["QDisc"], link["TBFRate"], link["TBFBurst"]) == (2, 1000, 99)
    assert (link["NumChannels"], link["ProcessorsPerChannel"]) == (4, 2)
    assert (link["TXChecksumOffload"], link["RXChecksumOffload"]) == (True, False)
    assert (link["GSOMaxSize"], link["GVisorGSOEnabled"], link["GVisorGRO"]) == (0, False, True)
    for name in ("LogPackets", "PCAP", "DisconnectOk", "AllowConnectedOnSave"):
        assert planned.argument[name] is True
    assert planned.argument["PauseExternalNetworking"] is True


@pytest.mark.parametrize(
    ("text", "nanoseconds"), [("0", 0), ("20000ns", 20000), ("1ms", 10**6), ("2s", 2 * 10**9)]
)
def test_old_receive_offload_is_a_duration(text: str, nanoseconds: int) -> None:
    options = read_options({"gvisor-gro": text})
    assert (options.gro, options.gro_timeout) == (False, nanoseconds)
    (link,) = plan((ETH0,), options).argument["FDBasedLinks"]
    assert link.get("GvisorGROTimeout", 0) == nanoseconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gso", "maybe"),
        ("qdisc", "red"),
        ("num-network-channels", "-1"),
        ("num-network-channels", "253"),
        ("num-network-channels", "1e3"),
        ("num-network-channels", "9" * 5000),
        ("network-processors-per-channel", ""),
        ("gvisor-gro", "soon"),
        ("gvisor-gro", "ms"),
        ("gvisor-gro", "1h"),
    ],
)
def test_malformed_flags(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        read_options({name: value})


@pytest.mark.parametrize("path", ["/proc/self/ns/uts", "/dev/null", "/", "/nowhere/at/all", "a\0b"])
def test_not_a_network_namespace(path: str) -> None:
    with pytest.raises(InvalidRequest, match="network namespace"):
        setup.begin(path, flags={})


def test_own_namespace_is_refused() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for netns in ("/proc/self/ns/net", os.getpid()):
        with pytest.raises(InvalidRequest, match="host's"):
            setup.begin(netns, flags={})
    assert len(os.listdir("/proc/self/fd")) == before


def test_process_that_is_not_there() -> None:
    with pytest.raises(InvalidRequest, match="no such file"):
        setup.scrape(2**22 + 1, flags={}, deadline=time.monotonic() + 5)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; sys.path[:] = sys.argv[1:]; import runtime.network.setup; "
        "print([name for name in ('pyroute2', 'typing', 're', 'logging', 'asyncio', 'inspect', "
        "'runtime.network.helper') if name in sys.modules])"
    )
    paths = [path for path in sys.path if path.startswith("/")]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(setup.__file__))))
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code, root, *paths], capture_output=True, check=True
    )
    assert done.stdout == b"[]\n"


def test_a_link_that_a_sandbox_had_gets_its_addresses_back() -> None:
    kept = json.loads(json.dumps(plan((ETH0,), NetworkOptions()).argument))
    bare = ETH0.replace(addresses=(), routes=(), neighbors=(), index=9)
    again = plan(give_back((bare,), kept), NetworkOptions()).argument
    (link,) = again["FDBasedLinks"]
    assert link.pop("InterfaceIndex") == 9
    assert kept["FDBasedLinks"][0].pop("InterfaceIndex") == 3
    assert json.loads(json.dumps(again)) == kept


def test_a_restored_sandbox_has_the_same_default_routes() -> None:
    """Though what it was told names no metrics."""
    one = ETH0.replace(routes=(Route(family=4, gateway="10.1.0.1", metric=7),))
    two = ETH0.replace(name="eth1", address="0a0000000003", index=4)
    two = two.replace(routes=(Route(family=4, gateway="10.2.0.1", metric=8),))
    for links in ((one, two), (two, one)):
        kept = json.loads(json.dumps(plan(links, NetworkOptions(), sorts=True).argument))
        bare = tuple(link.replace(addresses=(), routes=(), neighbors=()) for link in links)
        again = plan(give_back(bare, kept), NetworkOptions(), sorts=True).argument
        assert json.loads(json.dumps(again)) == kept


def test_other_links_keep_what_they_have() -> None:
    kept = plan((ETH0,), NetworkOptions()).argument
    lo = Link(name="lo", index=1, mtu=65536, loopback=True)
    new = ETH0.replace(addresses=((4, "10.2.0.9", 24),), routes=())
    replaced = ETH0.replace(address="0a0000000077", addresses=())
    other = ETH0.replace(name="eth1", addresses=())
    for links in ((lo, new), (replaced,), (other,), ()):
        assert give_back(links, kept) == links


@pytest.mark.parametrize(
    "change",
    [
        {"Addresses": [{"Address": "10.0.0.1"}]},
        {"Addresses": 7},
        {"Routes": [{"Destination": {"IP": "", "Mask": "AAA="}, "Gateway": ""}]},
        {"Routes": [{"Destination": None}]},
        {"Routes": [{"Destination": {"IP": "05.0.0.0", "Mask": "/wAAAA=="}, "Gateway": ""}]},
        {"Routes": [{"Destination": {"IP": "fd::", "Mask": "/wAAAA=="}, "Gateway": ""}]},
        {"Routes": [{"Destination": {"IP": "10.0.0.0", "Mask": "/wAAAA=="}, "Gateway": "x"}]},
        {"Addresses": [{"Address": "10.0.0.256", "PrefixLen": 8}]},
        {"Addresses": [{"Address": "10.0.0.1", "PrefixLen": 33}]},
        {"Neighbors": [{"IP": 5, "HardwareAddr": "CgsMDQ4P"}]},
        {"Neighbors": [{"IP": "::g", "HardwareAddr": "CgsMDQ4P"}]},
        {"LinkAddress": "***"},
        {"LinkAddress": None},
        {"Neighbors": [5]},
    ],
)
def test_what_was_kept_may_be_malformed(change: dict[str, object]) -> None:
    kept = plan((ETH0,), NetworkOptions()).argument
    link = {**kept["FDBasedLinks"][0], **change}
    bare = ETH0.replace(addresses=())
    if change == {"LinkAddress": "***"}:  # decodes to nothing, which is another address
        assert give_back((bare,), {**kept, "FDBasedLinks": [link]}) == (bare,)
        return
    with pytest.raises(InvalidRequest, match="network is malformed"):
        give_back((bare,), {**kept, "FDBasedLinks": [link]})
    with pytest.raises(InvalidRequest, match="network is malformed"):
        give_back((bare,), {"FDBasedLinks": 5})
