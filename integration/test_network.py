"""The network helper against real network namespaces.  Needs root, ``ip`` and ``unshare``.

Each test makes its own namespaces, which end with the processes that hold them; the host's own
is never touched.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from integration.sandbox.lab import Lab
from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest
from runtime.host.linux import CLONE_NEWNET, setns
from runtime.network import setup as network
from runtime.runsc.driver import find_driver
from runtime.sandbox import checkpoint

TIMEOUT = 20.0
# Without duplicate address detection, which takes seconds per address.
HOLD = "echo 0 2>&- > /proc/sys/net/ipv6/conf/default/accept_dad; echo; exec sleep 1000"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"
)


class Namespace:
    """A network namespace, held by a process that sleeps in it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", HOLD], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.pid = self._holder.pid
        self.path = f"/proc/{self.pid}/ns/net"

    def ip(self, *arguments: str) -> str:
        command = ["nsenter", "-t", str(self.pid), "-n", "ip", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def state(self) -> dict[str, Any]:
        """Addresses and routes, without what changes by itself."""
        addresses = [
            (link["ifname"], each["local"], each["prefixlen"])
            for link in json.loads(self.ip("-j", "address"))
            for each in link["addr_info"]
        ]
        routes = sorted(
            self.ip(family, "route", "show", "table", "main").replace("linkdown", "")
            for family in ("-4", "-6")
        )
        return {"addresses": sorted(addresses), "routes": routes}

    def settle(self) -> None:
        """Wait until no address is tentative."""
        deadline = time.monotonic() + TIMEOUT
        while "tentative" in self.ip("-6", "address"):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def inside(self, function: Any) -> Any:
        """Run ``function`` in a thread that is in the namespace."""
        results: list[Any] = []

        def enter() -> None:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            setns(fd, CLONE_NEWNET)
            os.close(fd)
            results.append(function())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(TIMEOUT)
        return results[0]

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()


@pytest.fixture
def pod() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def peer() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()  # a driver holds runsc's file for as long as it lives
    fds, children = set(os.listdir("/proc/self/fd")), child_pids()
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == fds
    assert child_pids() == children


def child_pids() -> set[int]:
    pids: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            children = Path(f"/proc/self/task/{task}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
        pids.update(map(int, children.split()))
    return pids


def connect(pod: Namespace, peer: Namespace, name: str = "eth0") -> None:
    pod.ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", str(peer.pid))
    for namespace in (pod, peer):
        namespace.ip("link", "set", name, "up")


def scrape(pod: Namespace, **flags: str) -> network.NetworkSetup:
    return network.scrape(pod.pid, flags=flags, deadline=time.monotonic() + TIMEOUT)


def close(setup: network.NetworkSetup) -> None:
    if setup.taken is not None:
        setup.taken.keep()
    for fd in setup.fds:
        os.close(fd)


def destinations(link: dict[str, Any]) -> list[tuple[str, str]]:
    return [(route["Destination"]["IP"], route["Gateway"]) for route in link["Routes"]]


def test_loopback_only(pod: Namespace) -> None:
    for _ in range(2):
        setup = scrape(pod)
        assert setup.argument == network.loopback_argument()
        assert setup.fds == ()
        by_path = network.begin(pod.path, flags={}).result(time.monotonic() + TIMEOUT)
        assert by_path.argument == setup.argument
        pod.ip("link", "set", "lo", "up")


def test_links_that_are_down_or_bare_do_not_count(pod: Namespace, peer: Namespace) -> None:
    pod.ip("link", "add", "d0", "type", "veth", "peer", "name", "d0", "netns", str(peer.pid))
    pod.ip("address", "add", "10.1.0.2/24", "dev", "d0")
    assert scrape(pod).argument == network.loopback_argument()
    pod.ip("address", "flush", "dev", "d0")
    pod.ip("link", "set", "d0", "addrgenmode", "none")
    pod.ip("link", "set", "d0", "up")
    assert scrape(pod).argument == network.loopback_argument()


def test_everything(pod: Namespace, peer: Namespace) -> None:
    connect(pod, peer)
    pod.ip("link", "set", "lo", "up")
    pod.ip("link", "set", "eth0", "mtu", "1400")
    pod.ip("address", "add", "10.211.7.2/24", "dev", "eth0")
    pod.ip("address", "add", "10.211.7.3/24", "dev", "eth0")  # secondary
    pod.ip("address", "add", "fd99:7::2/64", "dev", "eth0", "nodad")
    pod.ip("route", "add", "default", "via", "10.211.7.1")
    pod.ip("route", "add", "10.99.0.0/18", "via", "10.211.7.1", "mtu", "1300")
    pod.ip("route", "add", "10.99.0.0/20", "via", "10.211.7.9")
    pod.ip("route", "add", "blackhole", "10.98.0.0/16")
    pod.ip("route", "add", "10.97.0.0/16", "via", "inet6", "fd99:7::1", "dev", "eth0")
    hops = ["nexthop", "via", "10.211.7.1", "nexthop", "via", "10.211.7.4"]
    pod.ip("route", "add", "10.96.0.0/16", *hops)
    pod.ip("route", "add", "192.0.2.0/24", "via", "10.211.7.1", "table", "100")
    pod.ip("-6", "route", "add", "default", "via", "fd99:7::1")
    hardware = "02:00:00:00:00:09"
    permanent = ["lladdr", hardware, "dev", "eth0", "nud", "permanent"]
    pod.ip("neighbor", "add", "10.211.7.9", *permanent)
    pod.ip("neighbor", "add", "fd99:7::9", *permanent)
    pod.ip("neighbor", "add", "10.211.7.8", "lladdr", hardware, "dev", "eth0", "nud", "stale")
    pod.settle()
    mac = json.loads(pod.ip("-j", "link", "show", "eth0"))[0]["address"]

    setup = scrape(pod)
    argument = json.loads(json.dumps(setup.argument))
    (loopback,) = argument["LoopbackLinks"]
    blackhole = loopback["Routes"].pop()
    assert blackhole["Destination"]["IP"] == "10.98.0.0"
    assert loopback == network.loopback_argument()["LoopbackLinks"][0]
    (link,) = argument["FDBasedLinks"]
    assert (link["Name"], link["MTU"]) == ("eth0", 1400)
    assert link["LinkAddress"] == network_base64(bytes.fromhex(mac.replace(":", "")))
    addresses = [(each["Address"], each["PrefixLen"]) for each in link["Addresses"]]
    assert addresses[:2] == [("10.211.7.2", 24), ("10.211.7.3", 24)]
    assert ("fd99:7::2", 64) in addresses
    assert len(addresses) == 4  # and the link-local one
    assert destinations(link)[:4] == [
        ("10.211.7.0", ""),
        ("10.99.0.0", "10.211.7.9"),
        ("10.99.0.0", "10.211.7.1"),
        ("10.96.0.0", "10.211.7.1"),
    ]
    assert set(destinations(link)[4:]) == {("fd99:7::", ""), ("fe80::", "")}
    assert link["Routes"][2]["MTU"] == 1300
    assert link["Routes"][2]["Destination"]["Mask"] == network_base64(b"\xff\xff\xc0\0")
    for family, gateway in (("4", "10.211.7.1"), ("6", "fd99:7::1")):
        default = argument[f"Defaultv{family}Gateway"]
        assert (default["Name"], default["Route"]["Gateway"]) == ("eth0", gateway)
    neighbors = {each["IP"]: each["HardwareAddr"] for each in link["Neighbors"]}
    expected = network_base64(bytes.fromhex(hardware.replace(":", "")))
    assert neighbors == {"10.211.7.9": expected, "fd99:7::9": expected}
    assert link["GSOMaxSize"] == 65536
    # Off the host's link, and with them the routes of IPv4.
    assert not [each for each in pod.state()["addresses"] if each[0] == "eth0"]
    assert "10.211.7.1" not in pod.ip("route")
    close(setup)


def network_base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_sockets_see_the_link(pod: Namespace, peer: Namespace) -> None:
    connect(pod, peer)
    pod.ip("address", "add", "10.211.7.2/24", "dev", "eth0")
    peer.ip("address", "add", "10.211.7.1/24", "dev", "eth0")
    setup = scrape(pod, **{"num-network-channels": "3", "gso": "false"})
    assert len(setup.fds) == 3
    (link,) = setup.argument["FDBasedLinks"]
    assert link["NumChannels"] == 3
    assert link["GVisorGSOEnabled"]
    packets = [socket.socket(fileno=os.dup(fd)) for fd in setup.fds]
    assert packets[0].family == socket.AF_PACKET
    buffer = packets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert buffer >= 4 << 20
    # Nobody answers for the address any more, but its frames arrive here.

    def call() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
            caller.sendto(b"x", ("10.211.7.2", 9))

    peer.inside(call)
    packets[1].settimeout(TIMEOUT)
    while True:
        frame = packets[1].recv(2000)
        if frame[12:14] == b"\x08\x06":  # ARP: who has 10.211.7.2?
            assert frame[38:42] == socket.inet_aton("10.211.7.2")
            break
    for packet in packets:
        packet.close()
    close(setup)


def test_two_links_and_point_to_point(pod: Namespace, peer: Namespace) -> None:
    connect(pod, peer, "eth0")
    connect(pod, peer, "eth1")
    pod.ip("address", "add", "10.1.0.2", "peer", "10.1.0.1/32", "dev", "eth0")
    pod.ip("address", "add", "10.2.0.2/24", "dev", "eth1")
    pod.ip("route", "add", "default", "dev", "eth0", "scope", "link")
    setup = scrape(pod)
    links = {link["Name"]: link for link in setup.argument["FDBasedLinks"]}
    assert len(setup.fds) == 2
    assert {"Address": "10.1.0.2", "PrefixLen": 32} in links["eth0"]["Addresses"]
    assert ("10.1.0.1", "") in destinations(links["eth0"])
    assert {"Address": "10.2.0.2", "PrefixLen": 24} in links["eth1"]["Addresses"]
    default = setup.argument["Defaultv4Gateway"]
    assert (default["Name"], default["Route"]["Gateway"]) == ("eth0", "")
    assert "10.1.0.2" not in pod.ip("address")
    close(setup)


def test_the_default_route_of_the_lowest_metric(pod: Namespace, peer: Namespace) -> None:
    """Multus' rules for the address of a second link make its default route the second choice."""
    connect(pod, peer, "eth0")
    connect(pod, peer, "eth1")
    pod.ip("address", "add", "10.1.0.2/24", "dev", "eth0")
    pod.ip("address", "add", "10.2.0.2/24", "dev", "eth1")
    pod.ip("route", "add", "default", "via", "10.1.0.1")
    pod.ip("route", "add", "default", "via", "10.1.0.9", "metric", "10")
    pod.ip("route", "add", "default", "via", "10.2.0.1", "table", "100")
    pod.ip("rule", "add", "from", "10.2.0.2", "lookup", "100")
    pod.ip("route", "add", "blackhole", "10.3.0.0/16")
    setup = network.scrape(pod.pid, flags={}, deadline=time.monotonic() + TIMEOUT, sorts=True)
    links = {link["Name"]: destinations(link) for link in setup.argument["FDBasedLinks"]}
    defaults = {
        name: [gateway for destination, gateway in found if destination == "0.0.0.0"]
        for name, found in links.items()
    }
    assert defaults == {"eth0": ["10.1.0.1"], "eth1": ["10.2.0.1"]}
    assert ("10.3.0.0", "") in destinations(setup.argument["LoopbackLinks"][0])
    close(setup)


def furnish(pod: Namespace, peer: Namespace) -> dict[str, Any]:
    connect(pod, peer)
    pod.ip("address", "add", "10.1.0.2/24", "dev", "eth0")
    pod.ip("address", "add", "10.1.0.3/24", "dev", "eth0")
    pod.ip("address", "add", "10.3.0.3/24", "broadcast", "10.3.0.9", "dev", "eth0")
    pod.ip("address", "add", "fd99::2/64", "dev", "eth0", "nodad")
    pod.ip("route", "add", "10.9.0.0/16", "via", "10.1.0.7", "src", "10.1.0.3", "metric", "7")
    pod.ip("route", "add", "default", "via", "10.9.0.1", "onlink", "dev", "eth0")
    hops = ["nexthop", "via", "10.1.0.1", "nexthop", "via", "10.1.0.4"]
    pod.ip("route", "add", "10.96.0.0/16", *hops)
    pod.ip("-6", "route", "add", "default", "via", "fd99::1", "mtu", "1300")
    pod.settle()
    return pod.state()


def test_cancel_leaves_everything(pod: Namespace, peer: Namespace) -> None:
    before = furnish(pod, peer)
    pending = network.begin(pod.path, flags={})
    pending.cancel()
    pending.cancel()
    assert pod.state() == before


def test_failure_after_the_removal_puts_everything_back(
    pod: Namespace, peer: Namespace, tmp_path: Any
) -> None:
    before = furnish(pod, peer)
    with pytest.raises(Failed, match="packet log"):
        scrape(pod, **{"pcap-log": str(tmp_path / "no" / "such" / "directory")})
    pod.settle()
    assert pod.state() == before
    # And it can be tried again.
    setup = scrape(pod, **{"pcap-log": str(tmp_path / "pcap")})
    assert setup.argument["PCAP"]
    assert len(setup.fds) == 2
    assert os.readlink(f"/proc/self/fd/{setup.fds[1]}") == str(tmp_path / "pcap")
    close(setup)


def test_addresses_are_put_back_until_they_are_kept(pod: Namespace, peer: Namespace) -> None:
    """The sentry may still refuse what it is given, or the shim die: then they are not lost."""
    before = furnish(pod, peer)
    setup = scrape(pod)
    assert not [each for each in pod.state()["addresses"] if each[0] == "eth0"]
    assert setup.taken is not None
    setup.taken.cancel()
    pod.settle()
    assert pod.state() == before
    for fd in setup.fds:
        os.close(fd)
    setup = scrape(pod)
    close(setup)
    assert setup.taken is not None
    setup.taken.cancel()  # too late, and no harm
    assert not [each for each in pod.state()["addresses"] if each[0] == "eth0"]


def test_cancel_while_waiting(pod: Namespace, peer: Namespace) -> None:
    before = furnish(pod, peer)
    pending = network.begin(pod.path, flags={})
    timer = threading.Timer(0.005, pending.cancel)
    timer.start()
    with pytest.raises(Failed):
        pending.result(time.monotonic() + TIMEOUT)
    timer.join()
    assert pod.state() == before


def test_deadline(pod: Namespace, peer: Namespace) -> None:
    before = furnish(pod, peer)
    with pytest.raises(DeadlineExceeded):
        network.begin(pod.path, flags={}).result(time.monotonic() + 0.001)
    assert pod.state() == before


def test_the_hosts_namespace_is_refused() -> None:
    before = subprocess.run(["ip", "address"], capture_output=True, check=True).stdout
    for path in ("/proc/self/ns/net", f"/proc/{os.getpid()}/ns/net"):
        with pytest.raises(InvalidRequest, match="is the host's"):
            network.begin(path, flags={})
    assert subprocess.run(["ip", "address"], capture_output=True, check=True).stdout == before


@pytest.mark.parametrize(
    "path", ["/proc/self/ns/mnt", "/dev/null", "/", "/nowhere", "nul\0", __file__]
)
def test_what_is_not_a_network_namespace(path: str) -> None:
    with pytest.raises(InvalidRequest):
        network.begin(path, flags={})


def test_begun_before_it_is_needed(pod: Namespace, peer: Namespace) -> None:
    """The helper reads while the sentry would boot, and changes nothing until it is asked."""
    before = furnish(pod, peer)
    pending = network.begin(pod.path, flags={})
    time.sleep(0.5)
    assert pod.state() == before
    begin = time.monotonic()
    setup = pending.result(time.monotonic() + TIMEOUT)
    assert time.monotonic() - begin < 0.2
    assert not [each for each in pod.state()["addresses"] if each[0] == "eth0"]
    close(setup)


# -- with a sentry ---------------------------------------------------------------------------


@pytest.fixture(params=peers.RUNSCS)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    tmp_path.chmod(0o755)
    lab = Lab(request.param, tmp_path, tmp_path / "cache")
    yield lab
    lab.close()


def serve(namespace: Namespace, address: str) -> tuple[int, Callable[[], bytes]]:
    """Listen in a namespace; the function returns what the first caller sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = namespace.inside(lambda: socket.create_server((address, 0), family=family))
    listener.settimeout(TIMEOUT)

    def accept() -> bytes:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(TIMEOUT)
            chunks = []
            while chunk := connection.recv(1 << 16):
                chunks.append(chunk)
            connection.sendall(b"welcome\n")
            return b"".join(chunks)

    return listener.getsockname()[1], accept


@pytest.mark.parametrize("gso", ["true", "false"])
def test_a_sandbox_talks_through_it(lab: Lab, pod: Namespace, peer: Namespace, gso: str) -> None:
    connect(pod, peer)
    pod.ip("address", "add", "10.211.7.2/24", "dev", "eth0")
    pod.ip("address", "add", "fd99:7::2/64", "dev", "eth0", "nodad")
    pod.ip("route", "add", "default", "via", "10.211.7.1")
    pod.ip("-6", "route", "add", "default", "via", "fd99:7::1")
    peer.ip("link", "set", "lo", "up")
    for address in ("10.211.7.1/24", "fd99:7::1/64"):
        peer.ip("address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    for address in ("10.99.0.1/32", "fd77::1/128"):  # behind the gateway
        peer.ip("address", "add", address, "dev", "lo")
    flags = {"gso": gso, "num-network-channels": "2"}
    pending = network.begin(pod.path, flags=flags)
    kinds = ("pid", "ipc", "uts", "mount")
    namespaces = [{"type": kind} for kind in kinds] + [{"type": "network", "path": pod.path}]
    run = lab.boot(
        ("sleep", "1000"),
        config=lab.config(network="sandbox", num_network_channels="2", gso=gso),
        network=lambda pid: pending.result(time.monotonic() + TIMEOUT),
        linux={"namespaces": namespaces},
    ).start()
    size = 3_000_000
    for address in ("10.211.7.1", "fd99:7::1", "10.99.0.1", "fd77::1"):
        port, accept = serve(peer, address)
        got: list[bytes] = []
        thread = threading.Thread(target=lambda accept=accept, got=got: got.append(accept()))
        thread.start()
        script = f"busybox head -c {size} /dev/zero | busybox nc {address} {port}"
        output, _ = run.execute("busybox", "sh", "-c", script)
        thread.join(TIMEOUT)
        assert output == "welcome\n"
        assert got == [bytes(size)]
    echo = "busybox nc -l -p 99 -e busybox cat &"
    script = f"{echo} until echo inside | busybox nc 127.0.0.1 99 2>/dev/null; do :; done; wait"
    output, _ = run.execute("busybox", "timeout", "15", "busybox", "sh", "-c", script)
    assert output == "inside\n"
    # And in the other direction.
    inbound: list[tuple[str, Any]] = []
    script = "echo inside | busybox timeout 15 busybox nc -l -p 77"
    command = ("busybox", "sh", "-c", script)
    server = threading.Thread(target=lambda: inbound.append(run.execute(*command)))
    server.start()

    def call() -> bytes:
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                with socket.create_connection(("10.211.7.2", 77), timeout=TIMEOUT) as connection:
                    connection.sendall(b"outside\n")
                    # The end comes after it, as nc goes by it whatever it has to say itself.
                    said = connection.recv(100)
                    connection.shutdown(socket.SHUT_WR)
                    return said
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    assert peer.inside(call) == b"inside\n"
    server.join(TIMEOUT)
    assert inbound[0][0] == "outside\n"
    lab.finish(run)


def test_a_restored_sandbox_has_its_network_again(
    lab: Lab, pod: Namespace, peer: Namespace, tmp_path: Path
) -> None:
    """In the same namespace, whose addresses the first one took; a listener goes on listening."""
    boot = _server(lab, pod, peer)
    path, image = str(tmp_path / "image"), None
    for restored in (False, True):
        if restored:
            generation = find_driver(lab.config(), str(lab.cache)).generation
            image = checkpoint.load(path, generation)
        kept = image.about.network if image is not None and image.about is not None else None
        run = boot(f"box{restored}", image, kept)
        if restored:
            assert b" 404 " in peer.inside(_ask)
            lab.finish(run)
            continue
        _wait_for(run, "netstat -ltn | grep :99")
        checkpoint.save_sandbox(run.sandbox, path, exit=True, execs=0, timeout=TIMEOUT)
        run.exit.get()
        lab.finish(run)
        assert "10.211.7.2" not in pod.ip("address")


def test_what_is_connected_when_it_is_saved(
    lab: Lab, pod: Namespace, peer: Namespace, tmp_path: Path
) -> None:
    """The sentry refuses, and where it can it goes on as if nothing had been asked.

    Releases that have the flag allow-live-tcp-migration save it; what listens goes on listening.
    """
    path = str(tmp_path / "image")
    boot = _server(lab, pod, peer)
    run = boot("box", None, None)
    generation = find_driver(lab.config(), str(lab.cache)).generation
    _wait_for(run, "netstat -ltn | grep :99")
    address = ("10.211.7.2", 99)
    with peer.inside(lambda: socket.create_connection(address, timeout=TIMEOUT)):
        _wait_for(run, "netstat -tn | grep ESTABLISHED")
        if "allow-live-tcp-migration" in generation.global_flags:
            checkpoint.save_sandbox(run.sandbox, path, exit=True, execs=0, timeout=TIMEOUT)
            run.exit.get()
            lab.finish(run)
            image = checkpoint.load(path, generation)
            assert image.about is not None
            run = boot("again", image, image.about.network)
            assert b" 404 " in peer.inside(_ask)
            lab.finish(run)
            return
        with pytest.raises(Failed, match="cannot be saved in connected state"):
            checkpoint.save_sandbox(run.sandbox, path, exit=True, execs=0, timeout=TIMEOUT)
    assert not os.path.exists(path)
    if lab.old:
        run.exit.get()
    else:
        assert b" 404 " in peer.inside(_ask)
    lab.finish(run)


def _server(lab: Lab, pod: Namespace, peer: Namespace) -> Callable[[str, Any, Any], Any]:
    """Furnish two namespaces; the function returned starts, or restores, a server in the first."""
    connect(pod, peer)
    pod.ip("address", "add", "10.211.7.2/24", "dev", "eth0")
    pod.ip("route", "add", "default", "via", "10.211.7.1")
    peer.ip("address", "add", "10.211.7.1/24", "dev", "eth0")
    kinds = ("pid", "ipc", "uts", "mount")
    namespaces = [{"type": kind} for kind in kinds] + [{"type": "network", "path": pod.path}]

    def boot(name: str, image: Any, kept: Any) -> Any:
        pending = network.begin(pod.path, flags={}, kept=kept)
        return lab.boot(
            # It asks again where its accept is interrupted, as gVisor's are by a restore.
            ("busybox", "httpd", "-f", "-p", "99", "-h", "/tmp"),
            name=name,
            config=lab.config(network="sandbox"),
            network=lambda pid: pending.result(time.monotonic() + TIMEOUT),
            linux={"namespaces": namespaces},
            boot={"image": image},
        ).start()

    return boot


def _wait_for(run: Any, condition: str) -> None:
    """Wait until a command of the shell succeeds in a sandbox."""
    script = f"until {condition}; do usleep 50000; done"
    assert run.execute("busybox", "timeout", "10", "busybox", "sh", "-c", script)[1].status == 0


def _ask() -> bytes:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            with socket.create_connection(("10.211.7.2", 99), timeout=TIMEOUT) as connection:
                connection.sendall(b"GET /none HTTP/1.0\r\n\r\n")
                return connection.recv(100)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
