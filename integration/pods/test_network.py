"""Traffic between a pod, the host and other pods, over what CNI made."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from integration.harness.base.waiting import until
from integration.harness.clients import cri
from integration.harness.nodes.pods import Pod, PodNode
from runtime.host.linux import CLONE_NEWNET, setns


class _Server(http.server.ThreadingHTTPServer):
    """Tells every client which address it has."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        self.address_family = 10 if ":" in address else 2
        super().__init__((address, 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{_bracketed(str(host))}:{port}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(self.client_address[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def servers(pods: PodNode) -> Iterator[list[_Server]]:
    """A server on the host for IPv4, and one for IPv6."""
    running = [_Server(address) for address in (pods.network.host4, pods.network.host6)]
    yield running
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.core
def test_traffic_in_and_out(pods: PodNode, servers: list[_Server]) -> None:
    """IPv4 and IPv6, from the host into the pod, and from the pod to the host."""
    pod = pods.pod(dual=True)
    assert len(pod.ips) == 2
    container = _web(pod)
    for address, server in zip(pod.ips, servers, strict=True):
        assert _fetch(f"http://{_bracketed(address)}:8080/notice") == "made for the tests\n"
        assert pods.exec(container, "wget", "-q", "-O", "-", server.url).out == address
    pod.remove()
    pods.assert_clean()


def test_pods_reach_each_other(pods: PodNode) -> None:
    """Each under its own address; what one listens on, another can listen on as well."""
    one, two = pods.pod(), pods.pod()
    _web(one)
    client = _web(two)
    assert one.ips != two.ips
    done = pods.exec(client, "wget", "-q", "-O", "-", f"http://{one.ips[0]}:8080/notice")
    assert done.out == "made for the tests\n"


def test_much_data(pods: PodNode) -> None:
    """Segmentation offload or not, every byte arrives."""
    pod = pods.pod()
    script = "head -c 20000000 /dev/zero > /tmp/big; exec httpd -f -p 8080 -h /tmp"
    pod.start("sh", "-c", script)
    url = f"http://{pod.ips[0]}:8080/big"
    _fetch(url)
    with urllib.request.urlopen(url, timeout=20) as reply:
        assert len(reply.read()) == 20000000


@pytest.mark.without_pause
def test_interfaces(pods: PodNode) -> None:
    """A pod has a loopback and the link of its own, with the address that CRI tells."""
    pod = pods.pod(dual=True)
    container = pod.start("sleep", "1000")
    seen = pods.exec(container, "ifconfig", "-a").out
    assert [line.split()[0] for line in seen.splitlines() if line[:1].strip()] == ["eth0", "lo"]
    assert f"inet addr:{pod.ips[0]} " in seen
    assert f"inet6 addr: {pod.ips[1]}/64" in seen
    assert "inet addr:127.0.0.1 " in seen


@pytest.mark.core
@pytest.mark.gvisor
def test_the_sentry_is_not_the_last_to_close_its_packet_sockets(pods: PodNode) -> None:
    """Which would be a part of its end, and take an RCU grace period: a ring of the shim's is."""
    pod = pods.pod()
    pod.start("sleep", "1000")
    rings = [
        text
        for fd, target in _open_files(pod.shim).items()
        if target == "anon_inode:[io_uring]"
        and (text := Path(f"/proc/{pod.shim}/fdinfo/{fd}").read_text())
    ]
    assert len(rings) == 1, "needs io_uring, which sysctl kernel.io_uring_disabled forbids"
    assert "UserFiles:\t1\n" in rings[0]
    pinned = re.search(r"^ *0: (\S+)$", rings[0], re.MULTILINE)
    assert pinned is not None and "socket" in pinned[1], rings[0]
    assert pinned[1] in _open_files(pod.sentry()).values()


def _open_files(pid: int) -> dict[str, str]:
    """What each descriptor of a process is of."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return found


@pytest.mark.core
@pytest.mark.gvisor
def test_links_routes_and_neighbors(pods: PodNode) -> None:
    """All that CNI's plugins left: a second link, routes through it, a neighbor, the MTU."""
    hardware = "02:00:00:00:00:99"
    pods.network.script.write_text(f"""
        ip link set eth0 mtu 1380
        ip link add eth1 type veth peer name eth2
        ip link set eth2 addrgenmode none up
        ip link set eth1 up
        ip address add 10.9.8.7/28 dev eth1
        ip address add fd99:8::7/64 dev eth1 nodad
        ip route add 10.77.0.0/16 via 10.9.8.1
        ip -6 route add fd77::/48 via fd99:8::1
        ip neighbor add 10.9.8.1 lladdr {hardware} dev eth1 nud permanent
    """)
    pod = pods.pod(variant="chain")
    container = pod.start("sleep", "1000")
    seen = pods.exec(container, "ifconfig").out
    links = {part.split()[0]: part for part in seen.split("\n\n") if part.strip()}
    assert sorted(links) == ["eth0", "eth1", "lo"]
    assert "MTU:1380" in links["eth0"] and f"addr:{pod.ips[0]} " in links["eth0"]
    assert "addr:10.9.8.7 " in links["eth1"] and "fd99:8::7/64" in links["eth1"]
    routes = pods.exec(container, "cat", "/proc/net/route").out
    # Destinations and gateways in hexadecimal, from the last byte to the first.
    assert "eth1\t00004D0A\t0108090A" in routes
    assert "eth0\t00000000\t" in routes
    # What goes there goes out of that link, and to the neighbor, though it never answers.
    with _capture(pod, "eth2") as frames:
        pods.exec(container, "ping", "-c", "1", "-W", "1", "10.77.5.5", timeout=5)
        frame = until(lambda: _echo(frames), 5, "the packet on the link")
    assert frame[:6] == bytes.fromhex(hardware.replace(":", ""))
    assert frame[30:34] == bytes((10, 77, 5, 5))
    _web(pod)
    assert _fetch(f"http://{pod.ips[0]}:8080/notice") == "made for the tests\n"


@pytest.mark.core
@pytest.mark.gvisor
@pytest.mark.parametrize(("metric4", "metric6"), [(50, 5000), (5000, 50)])
def test_the_default_route_of_the_lowest_metric(pods: PodNode, metric4: int, metric6: int) -> None:
    """Of two links, for both families; and what the host refuses to send is not sent."""
    pods.network.script.write_text(f"""
        ip link add eth1 type veth peer name eth2
        ip link set eth2 addrgenmode none up
        ip link set eth1 up
        ip address add 10.9.8.7/24 dev eth1
        ip address add fd99:8::7/64 dev eth1 nodad
        ip neighbor add 10.9.8.1 lladdr 02:00:00:00:00:99 dev eth1 nud permanent
        ip neighbor add fd99:8::1 lladdr 02:00:00:00:00:99 dev eth1 nud permanent
        for family in 4 6; do
            ip -$family route show default | grep -o "via [^ ]*" | while read -r _ via; do
                ip -$family route del default
                ip -$family route add default via "$via" dev eth0 metric 1000
            done
        done
        ip -4 route add default via 10.9.8.1 metric {metric4}
        ip -6 route add default via fd99:8::1 metric {metric6}
        ip -4 route add blackhole 192.0.2.0/24
        ip -6 route add unreachable 2001:db8:2::/48
    """)
    pod = pods.pod(variant="chain")
    container = pod.start("sleep", "1000")
    for program, target, refused, metric in (
        ("ping", "198.51.100.1", "192.0.2.1", metric4),
        ("ping6", "2001:db8:1::1", "2001:db8:2::1", metric6),
    ):
        with _capture(pod, "eth0") as first, _capture(pod, "eth2") as second:
            frames = second if metric == 50 else first
            for each in (refused, target):
                pods.exec(container, program, "-c", "1", "-W", "1", each, timeout=5)
            destination = until(lambda f=frames: _destination(f), 5, f"{program} on its link")
        assert destination == target


@pytest.mark.core
@pytest.mark.gvisor
def test_what_was_taken_is_recorded(pods: PodNode) -> None:
    """For a restore: the namespace has the addresses no more."""
    pod = pods.pod(dual=True)
    folder = pods.daemon.folder / "runsc" / "k8s.io"
    record = json.loads((folder / f"{pod.id}_sandbox:{pod.id}.shim.json").read_text())
    (link,) = record["network"]["FDBasedLinks"]
    addresses = [each["Address"] for each in link["Addresses"]]
    assert (link["Name"], addresses[0]) == ("eth0", pod.ips[0])
    assert pod.ips[1] in addresses
    assert record["network"]["Defaultv4Gateway"]["Route"]["Gateway"] == pods.network.host4


@pytest.mark.core
@pytest.mark.gvisor
def test_host_network(pods: PodNode) -> None:
    """The pod is on the host's stack; a port that it listens on is the host's."""
    if pods.without_pause and pods.daemon.release < (2, 3):
        pytest.skip("containerd before 2.3 panics")
    options = {"security_context": {"namespace_options": {"network": cri.NODE}}}
    pod = pods.pod(linux=dict(options))
    container = pod.start("sleep", "1000", linux=options)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        port = server.getsockname()[1]
        said = pods.cri.call_later(
            "ExecSync",
            20,
            container_id=container,
            cmd=["sh", "-c", f"echo hello | nc -w 2 127.0.0.1 {port}"],
            timeout=10,
        )
        with server.accept()[0] as connection:
            assert connection.recv(100) == b"hello\n"
        said()


@contextmanager
def _capture(pod: Pod, link: str) -> Iterator[socket.socket]:
    """A socket that sees the frames of a link in the pod's network namespace."""
    path = next(
        each["path"]
        for each in pod.info["runtimeSpec"]["linux"]["namespaces"]
        if each["type"] == "network"
    )
    made: list[socket.socket] = []

    def enter() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        setns(fd, CLONE_NEWNET)
        os.close(fd)
        made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        made[0].bind((link, 0))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    with made[0]:
        made[0].settimeout(5)
        yield made[0]


def _echo(frames: socket.socket) -> bytes:
    """The next frame, if it is an ICMP message."""
    frame = frames.recv(2000)
    return frame if frame[12:14] == b"\x08\0" and frame[23] == 1 else b""


def _destination(frames: socket.socket) -> str:
    """Where the next frame is sent to, if it is a request for an echo."""
    frame = frames.recv(2000)
    if frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[34] == 8:
        return socket.inet_ntop(socket.AF_INET, frame[30:34])
    if frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 128:
        return socket.inet_ntop(socket.AF_INET6, frame[38:54])
    return ""


def _web(pod: Pod) -> str:
    """A container that serves a folder on port 8080, up and listening."""
    container = pod.start("httpd", "-f", "-p", "8080", "-h", "/etc")
    local = ("wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/notice")
    until(lambda: pod.node.exec(container, *local).code == 0, 10, "httpd listens")
    return container


def _fetch(url: str) -> str:
    """The body at `url`, once somebody answers there."""

    def attempt() -> bytes:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return bytes(reply.read())
        except OSError:
            return b""

    return until(attempt, 10, f"answer of {url}").decode(errors="replace")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
