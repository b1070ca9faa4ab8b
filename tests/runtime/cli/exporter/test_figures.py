"""What becomes of what shims and sentries tell, the untrue included."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cgroups.metrics import Amount, HostStats, NetworkStats, Use
from runtime.cli.exporter import figures
from runtime.cli.exporter.collect import ContainerLook, NodeLook, SandboxLook
from runtime.cli.exporter.figures import Renderer

TOLD = 'namespace="web",pod="shop",sandbox="s1"'


def node(*sandboxes: SandboxLook) -> NodeLook:
    return NodeLook(sandboxes=sandboxes, problems=(), fork_servers=(), seconds=0.25)


def look(**fields: Any) -> SandboxLook:
    told = {"id": "s1", "namespace": "web", "pod": "shop", "containerd_namespace": "k8s.io"}
    return SandboxLook(**{**told, **fields})


def lines(*sandboxes: SandboxLook, about: str) -> list[str]:
    page = Renderer().render(node(*sandboxes))
    return [line for line in page.splitlines() if line.startswith(about)]


def sample(name: str = "fs_opens", kind: int = 2, **fields: Any) -> dict[str, Any]:
    return {"metric": {"name": name, "type": kind, "help": "Help."}, "val": {"int": 3}, **fields}


def test_a_pod_with_its_containers() -> None:
    container = Use(cpu_usage_ns=1_500_000_000, memory_usage=7, memory_limit=9, pids=2)
    page = (
        Renderer()
        .render(
            node(
                look(
                    host=HostStats(cpu_usage_ns=2_000_000_000, memory=Amount(usage=100)),
                    networks=(NetworkStats(name="eth0", rx_bytes=5),),
                    resident={"sentry": 11},
                    containers=(ContainerLook(id="c1", name="main", metrics=container),),
                )
            )
        )
        .splitlines()
    )
    inner = f'{TOLD},container="main",id="c1"'
    for line in (
        f"gvisor_sandbox_up{{{TOLD}}} 1",
        f"gvisor_sandbox_cpu_seconds_total{{{TOLD}}} 2.0",
        f"gvisor_sandbox_memory_usage_bytes{{{TOLD}}} 100",
        f'gvisor_sandbox_network_receive_bytes_total{{{TOLD},interface="eth0"}} 5',
        f'gvisor_process_resident_memory_bytes{{{TOLD},role="sentry"}} 11',
        f"gvisor_container_cpu_seconds_total{{{inner}}} 1.5",
        f"gvisor_container_memory_usage_bytes{{{inner}}} 7",
        f"gvisor_container_memory_limit_bytes{{{inner}}} 9",
        f"gvisor_container_pids{{{inner}}} 2",
        "gvisor_scrape_seconds 0.25",
    ):
        assert line in page
    assert not any("memory_limit" in line and "sandbox_memory" in line for line in page)


def test_who_does_not_answer_is_named() -> None:
    page = lines(look(sentry="stopped", shim="NotFound"), about="gvisor_s")
    assert f"gvisor_sandbox_up{{{TOLD}}} 0" in page and f"gvisor_shim_up{{{TOLD}}} 0" in page
    assert f'gvisor_sandbox_unanswered_info{{{TOLD},who="sentry",reason="stopped"}} 1' in page
    # One that runsc made has no shim that could be down.
    assert not lines(look(has_shim=False), about="gvisor_shim_up")


def test_two_lives_of_a_pod_are_told_apart() -> None:
    page = lines(look(), look(id="s2"), about="gvisor_sandbox_up")
    assert len(page) == len(set(page)) == 2


def test_what_a_shim_counts() -> None:
    counters = {
        "bounds": [0.1],
        "rpcs": {"State": {"codes": {"0": 2, "5": 1, "99": 1}, "buckets": [3, 1], "seconds": 0.5}},
        "events": {"queued": 1, "lost": 2, "sent": 3},
        "starts": {"": 1, "web": 3},
        "oomKills": {"web": 2},
        "stages": {"boot": [1, 0.5, 0.5], "network": [2, 0.1, 0.04]},
        "threads": 5,
    }
    page = Renderer().render(node(look(counters=counters))).splitlines()
    for line in (
        f'gvisor_shim_rpcs_total{{{TOLD},method="State",code="NotFound"}} 1',
        f'gvisor_shim_rpcs_total{{{TOLD},method="State",code="Unknown"}} 1',
        f'gvisor_shim_rpc_duration_seconds_bucket{{{TOLD},method="State",le="+Inf"}} 4',
        f"gvisor_shim_events_lost_total{{{TOLD}}} 2",
        f'gvisor_container_restarts_total{{{TOLD},container="web"}} 2',
        f'gvisor_container_oom_kills_total{{{TOLD},container="web"}} 2',
        f"gvisor_container_oom_kills_total{{{TOLD}}} 0",
        f"gvisor_sandbox_boot_seconds{{{TOLD}}} 0.5",
        f'gvisor_shim_stage_duration_seconds_count{{{TOLD},stage="network"}} 2',
    ):
        assert line in page


def test_a_sentrys_own_metrics_by_name() -> None:
    page = lines(
        look(
            exported=[
                sample(),
                sample("tcp", 1, val={}),
                sample("left", 1, labels={"sysno": "334"}),
                sample("ratio", 1, val={"float": 0.5}),
                sample(
                    "wait",
                    3,
                    val=None,
                    histogram={
                        "total": {"int": 9},
                        "buckets": [{"le": {"int": 1}, "n": 2}, {"le": {"int": 4}}, {"n": 1}],
                    },
                ),
            ]
        ),
        about="gvisor_sentry_",
    )
    assert page == [
        f"gvisor_sentry_fs_opens_total{{{TOLD}}} 3",
        f"gvisor_sentry_tcp{{{TOLD}}} 0",
        f'gvisor_sentry_left{{{TOLD},sysno="334"}} 3',
        f"gvisor_sentry_ratio{{{TOLD}}} 0.5",
        f'gvisor_sentry_wait_distribution_bucket{{{TOLD},le="1.0"}} 2',
        f'gvisor_sentry_wait_distribution_bucket{{{TOLD},le="4.0"}} 2',
        f'gvisor_sentry_wait_distribution_bucket{{{TOLD},le="+Inf"}} 3',
        f"gvisor_sentry_wait_distribution_sum{{{TOLD}}} 9",
        f"gvisor_sentry_wait_distribution_count{{{TOLD}}} 3",
    ]


@pytest.mark.parametrize(
    "lie",
    [
        *(
            None,
            3,
            {},
            {"metric": "x"},
            {"metric": {}},
            sample(""),
            sample("a\nb 1"),
            sample("a b"),
        ),
        *(
            sample(kind=9),
            sample(kind=-1),
            sample(val={"int": "3"}),
            sample(val=3),
            sample(val=None),
        ),
        *(sample(labels=[]), sample(labels={"a b": "c"}), sample(labels={"a": 1})),
        sample(labels={f"l{n}": "x" for n in range(99)}),
        sample("n" * 300),
        sample(val={"int": True}),
        sample(kind=3),
        sample(kind=3, histogram={"total": {}, "buckets": []}),
        sample(kind=3, histogram={"total": {}, "buckets": [{"n": -1}]}),
        sample(kind=3, histogram={"total": {}, "buckets": [{"le": {"int": 2}}, {"le": {}}, {}]}),
        sample(kind=3, histogram={"total": {}, "buckets": [{}] * 999}),
        sample("wait_distribution_bucket", 1),
    ],
)
def test_lies_of_a_sentry_cost_nobody_else(lie: Any) -> None:
    honest = look(exported=[sample()])
    page = Renderer().render(node(honest, look(id="s2", exported=[lie, sample()])))
    assert page.count("gvisor_sentry_fs_opens_total{") == 2
    assert "gvisor_sandbox_metrics_left_out" in page
    for line in page.splitlines():
        assert line.startswith(("# HELP gvisor_", "# TYPE gvisor_", "gvisor_"))
    names = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_a_type_that_differs_costs_the_type() -> None:
    liar = {"metric": {"name": "fs_opens_total", "type": 1, "help": ""}, "val": {"int": 1}}
    for sandboxes in ([liar], [sample()]), ([sample()], [liar]):
        looks = [look(id=f"s{n}", exported=e) for n, e in enumerate(sandboxes)]
        page = Renderer().render(node(*looks))
        assert page.count("\ngvisor_sentry_fs_opens_total{") == 2
        assert "# TYPE gvisor_sentry_fs_opens_total untyped\n" in page


def test_a_sentry_can_not_take_another_pods_labels() -> None:
    stolen = {"pod": "bank", "le": "1", "__name__": "x", "id": "y"}
    [line] = lines(look(exported=[sample(labels=stolen)]), about="gvisor_sentry")
    assert line.startswith(f'gvisor_sentry_fs_opens_total{{{TOLD},sentry_pod="bank"')
    assert ',le="1"' not in line and ",__name__" not in line


def test_what_a_sentry_tells_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MAX_EXPORTED", 10)
    many = [sample(labels={"n": str(n)}) for n in range(100)]
    assert len(lines(look(exported=many), about="gvisor_sentry")) == 10
    left = lines(look(exported=many), about="gvisor_sandbox_metrics_left_out")
    assert left == [f"gvisor_sandbox_metrics_left_out{{{TOLD}}} 90"]
    twice = lines(look(exported=[sample(), sample()]), about="gvisor_sentry")
    assert len(twice) == 1


def test_what_is_remembered_is_told_anew_when_it_changes() -> None:
    renderer = Renderer()

    def page(threads: int, *exported: object, id: str = "s1") -> list[str]:
        counters = {"threads": threads}
        return renderer.render(node(look(id=id, counters=counters, exported=exported))).splitlines()

    def told(lines: list[str], name: str) -> list[str]:
        return [line.rpartition(" ")[2] for line in lines if line.startswith(name + "{")]

    for threads, opens in (5, 1), (5, 2), (6, 2), (6, 3):
        lines = page(threads, sample(val={"int": opens}))
        assert told(lines, "gvisor_shim_threads") == [str(threads)]
        assert told(lines, "gvisor_sentry_fs_opens_total") == [str(opens)]
    # The same name with another type, help or label is another.
    lines = page(6, sample("fs_opens", 1), sample("fs_opens", 2, labels={"a": "b"}))
    assert told(lines, "gvisor_sentry_fs_opens") and told(lines, "gvisor_sentry_fs_opens_total")
    # Who doesn't answer any more has no old figures, and neither has who is gone.
    gone = renderer.render(node(look(shim="NotFound")))
    assert "gvisor_shim_threads" not in gone and "gvisor_sentry_" not in gone
    assert 'sandbox="s1"' not in "\n".join(page(6, id="s2")) and len(renderer._shims) == 1


@pytest.mark.parametrize(
    "rubbish",
    [
        *(None, 3, "metric", [], {}, {"metric": None}, {"metric": {}}, {"metric": {"name": []}}),
        *({"metric": {"name": "a", "type": {}}}, {"metric": {"name": "a"}, "labels": [1]}),
        *({"metric": {"name": "a"}, "labels": {"b": []}}, {"metric": ["name"]}),
    ],
)
def test_rubbish_of_any_shape_is_left_out(rubbish: object) -> None:
    renderer = Renderer()
    for _ in range(2):
        page = renderer.render(node(look(exported=[rubbish, sample()])))
        assert f"gvisor_sandbox_metrics_left_out{{{TOLD}}} 1\n" in page
        assert "gvisor_sentry_fs_opens_total" in page


def test_shapes_that_always_change_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_MAX_SHAPES", 10)
    renderer = Renderer()
    for number in range(50):
        renderer.render(node(look(exported=[sample(f"m{number}")])))
    assert len(renderer._shapes) <= 10


def test_a_sandbox_that_two_folders_have_is_told_once() -> None:
    assert len(lines(look(), look(), about="gvisor_sandbox_up")) == 1
