"""`gvctl metrics`, read by Debian's Prometheus: all of a pod, a sentry that hangs, a dashboard."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.base import peers
from integration.harness.base.lines import next_line
from integration.harness.base.waiting import until
from integration.harness.clients.gvctl import Gvctl
from integration.harness.host.prometheus import Prometheus, check
from integration.harness.nodes.pods import Pod, PodNode
from integration.pods.test_memory import HOG, limited

pytestmark = pytest.mark.gvisor
DASHBOARD = peers.CHECKOUT / "deploy/grafana/gvisor.json"
#: Queries that a node without trouble has nothing for.
MAY_BE_EMPTY = ("memory_limit_bytes", 'code!="OK"', "throttled_periods", "unimplemented")


def gvctl(pods: PodNode) -> Gvctl:
    """gvctl for this node's pods alone."""
    return Gvctl("--root", f"{pods.daemon.folder}/runsc/k8s.io")


@pytest.fixture
def exporter(pods: PodNode) -> Iterator[str]:
    """host:port of a `gvctl metrics --listen`."""
    with serving(pods, "127.0.0.1:0") as where:
        yield where


@contextlib.contextmanager
def serving(pods: PodNode, where: str) -> Iterator[str]:
    """Where it says that it serves."""
    process = gvctl(pods).begin("metrics", "--listen", where, text=False)
    try:
        line = next_line(process, 60) or ""
        assert line.startswith("serving "), line
        yield line.split()[1]
    finally:
        process.terminate()
        process.communicate()


def scrape(where: str) -> str:
    connection = http.client.HTTPConnection(where, timeout=30)
    connection.request("GET", "/metrics")
    reply = connection.getresponse()
    assert reply.status == 200
    return reply.read().decode()


def samples(page: str, name: str, pod: Pod) -> dict[str, float]:
    """Labels to value of the pod's samples of one name."""
    found = {}
    for line in page.splitlines():
        labels, _, value = line.rpartition(" ")
        if labels.startswith(f"{name}{{") and f'sandbox="{pod.id}"' in labels:
            found[labels[len(name) :]] = float(value)
    return found


def test_prometheus_reads_all_of_a_pod(pods: PodNode, exporter: str, tmp_path: Path) -> None:
    pod = pods.pod()
    busy = pod.start("sh", "-c", "while :; do cat /proc/stat >/dev/null; done", name="busy")
    hog = pod.start(*HOG, name="hog", **limited(48))
    assert pods.wait_reason(hog, "OOMKilled", 60) == 137
    pods.delete(hog)
    pod.start("sleep", "1000", name="hog", attempt=1)
    space = pod.config["metadata"]["namespace"]
    ours = f'namespace="{space}",pod="{pod.config["metadata"]["name"]}",sandbox="{pod.id}"'
    creations = 3 if pod.without_pause else 4
    with Prometheus(tmp_path / "p", exporter) as server:
        pids = f"gvisor_container_pids{{{ours}}}"
        until(lambda: len(server.query(pids)) == 3, 30, "all are told")
        assert server.target()["health"] == "up"
        assert server.value(f"gvisor_sandbox_up{{{ours}}}") == 1
        assert server.value(f"gvisor_shim_up{{{ours}}}") == 1
        assert server.value(f'gvisor_container_pids{{{ours},container="busy",id="{busy}"}}') >= 1
        assert server.value(f"gvisor_sandbox_memory_usage_bytes{{{ours}}}") > 1 << 20
        assert server.value(f'gvisor_container_memory_usage_bytes{{{ours},container="busy"}}') > 0
        assert server.value(f"gvisor_sandbox_boot_seconds{{{ours}}}") > 0.01
        assert server.value(f'gvisor_container_restarts_total{{{ours},container="hog"}}') == 1
        assert server.value(f'gvisor_container_oom_kills_total{{{ours},container="hog"}}') == 1
        assert server.value(f'gvisor_container_oom_kills_total{{{ours},container="busy"}}') == 0
        assert (
            server.value(f'gvisor_shim_rpcs_total{{{ours},method="Create",code="OK"}}') == creations
        )
        assert server.value(f"gvisor_shim_events_lost_total{{{ours}}}") == 0
        assert server.value(f"gvisor_sentry_fs_opens_total{{{ours}}}") > 10
        roles = server.query(f"gvisor_process_resident_memory_bytes{{{ours}}}")
        assert {each["metric"]["role"] for each in roles} == {"sentry", "gofer", "shim"}
        devices = server.query(f"gvisor_sandbox_network_transmit_bytes_total{{{ours}}}")
        assert {each["metric"]["interface"] for each in devices} == {"lo", "eth0"}
        rate = f'rate(gvisor_container_cpu_seconds_total{{{ours},container="busy"}}[15s])'
        until(lambda: any(float(e["value"][1]) > 0 for e in server.query(rate)), 30, "it is busy")
        _dashboard(server, space)
        assert server.complaints() == []


def _dashboard(server: Prometheus, namespace: str) -> None:
    """Its queries give something, or are known to give nothing here."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len(panels) > 10
    for panel in panels:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "15s")
            query = query.replace("$namespace", namespace).replace("$pod", ".*")
            assert "$" not in query
            found = server.query(query)
            empty_is_fine = any(word in query for word in MAY_BE_EMPTY)
            assert found or empty_is_fine, (panel["title"], query)


def test_promtool_has_nothing_to_say_of_our_names(pods: PodNode) -> None:
    pod = pods.pod()
    pod.start("sleep", "1000")
    page = gvctl(pods).ok("metrics")
    assert samples(page, "gvisor_sandbox_up", pod)
    # The sentry's own have the names that gVisor gave them.
    assert [line for line in check(page) if not line.startswith("gvisor_sentry_")] == []


def _wait_known(exporter: str, pod: Pod) -> None:
    """Until a page has it; one that was made before is given again while it is fresh."""
    until(lambda: samples(scrape(exporter), "gvisor_sandbox_up", pod), 20, "a page has the pod")


def test_a_hung_sentry_harms_no_scrape_and_no_scrape_harms_it(pods: PodNode, exporter: str) -> None:
    hung, good = pods.pod(), pods.pod()
    container = hung.start("sleep", "1000")
    good.start("sleep", "1000")
    for each in (hung, good):
        _wait_known(exporter, each)

    def up_of(pod: Pod) -> list[float]:
        return list(samples(scrape(exporter), "gvisor_sandbox_up", pod).values())

    os.kill(hung.sentry(), signal.SIGSTOP)
    try:
        until(lambda: up_of(hung) == [0], 30, "a page says that it hangs")
        for _ in range(3):
            began = time.monotonic()
            page = scrape(exporter)
            took = time.monotonic() - began
            [(_, up)] = samples(page, "gvisor_sandbox_up", hung).items()
            [(_, other)] = samples(page, "gvisor_sandbox_up", good).items()
            assert (up, other) == (0, 1)
            [(labels, _)] = samples(page, "gvisor_sandbox_unanswered_info", hung).items()
            assert 'who="sentry"' in labels and 'reason="stopped"' in labels
            # What the host and the shim know is told all the same.
            assert samples(page, "gvisor_sandbox_memory_usage_bytes", hung)
            assert list(samples(page, "gvisor_shim_up", hung).values()) == [1]
            assert samples(page, "gvisor_container_pids", good)
            # Other processes of the machine may slow it; by itself it takes some milliseconds.
            assert took < 20
            time.sleep(1.1)  # scrapes closer to each other may have one look
    finally:
        os.kill(hung.sentry(), signal.SIGCONT)
    until(lambda: up_of(hung) == [1], 30, "it answers again")
    assert pods.exec(container, "echo", "alive").out == "alive\n"


def test_a_pod_that_ends_leaves_no_series(pods: PodNode, exporter: str) -> None:
    pod = pods.pod()
    pod.start("sleep", "1000")
    _wait_known(exporter, pod)
    pod.stop()
    pod.remove()
    until(lambda: pod.id not in scrape(exporter), 30, "its series are gone")


def test_a_socket_serves_as_well(pods: PodNode, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with serving(pods, f"unix:{path}"), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        page = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    assert b"gvisor_exporter_info" in page


@pytest.mark.parametrize("where", ["0.0.0.0:9410", "nonsense"])
def test_where_it_may_not_listen(where: str) -> None:
    done: Any = Gvctl()("metrics", "--listen", where)
    assert done.code == 1 and where.split(":")[0] in done.err
