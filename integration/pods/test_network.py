"""Traffic between a pod, the host and other pods, over what CNI made."""

from __future__ import annotations

import http.server
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from integration.harness.pods import Pod, PodNode
from integration.harness.waiting import until


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


def test_interfaces(pods: PodNode) -> None:
    """A pod has a loopback and the link of its own, with the address that CRI tells."""
    pod = pods.pod(dual=True)
    container = pod.start("sleep", "1000")
    seen = pods.exec(container, "ifconfig", "-a").out
    assert [line.split()[0] for line in seen.splitlines() if line[:1].strip()] == ["eth0", "lo"]
    assert f"inet addr:{pod.ips[0]} " in seen
    assert f"inet6 addr: {pod.ips[1]}/64" in seen
    assert "inet addr:127.0.0.1 " in seen


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
