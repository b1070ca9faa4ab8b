"""What is told of a look, under which names: base units, counters in ``_total``, few labels.

A pod's labels are ``namespace`` and ``pod`` as Kubernetes has them, elsewhere containerd's
namespace and the sandbox's id, and ``sandbox``, which keeps two lives of a pod apart.  A container
has ``container`` and ``id`` besides.  What a sentry tells is a stranger's word: its names,
types and numbers are checked.
"""

from __future__ import annotations

from runtime.base.record import Record
from runtime.base.version import VERSION
from runtime.cli.exporter.text import Page, is_name, labels, render_labels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.cli.exporter.collect import ContainerLook, NodeLook, SandboxLook
    from runtime.cli.exporter.text import Family

#: Samples of one sentry that are told; an idle one has some ten, a busy one some hundred.
MAX_EXPORTED = 1000
#: Labels and histogram buckets of one of them.
_MAX_LABELS, _MAX_BUCKETS = 8, 64
#: Different ones of all sandboxes that are remembered.
_MAX_SHAPES = 20_000
#: What the names of histograms end with, and no others do.
_DISTRIBUTION = "_distribution"
_KINDS = ("untyped", "gauge", "counter", "histogram")
_CODES = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound"),
    *("AlreadyExists", "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted"),
    *("OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
_NETWORK = (
    ("receive_bytes", "rx_bytes", "Bytes received"),
    ("receive_packets", "rx_packets", "Packets received"),
    ("receive_errors", "rx_errors", "Errors while receiving"),
    ("receive_dropped", "rx_dropped", "Packets dropped while receiving"),
    ("transmit_bytes", "tx_bytes", "Bytes sent"),
    ("transmit_packets", "tx_packets", "Packets sent"),
    ("transmit_errors", "tx_errors", "Errors while sending"),
    ("transmit_dropped", "tx_dropped", "Packets dropped while sending"),
)


class Renderer:
    """Makes pages, and remembers what of the last one can be used again.  For one thread at a time.

    Most of a page is what idle shims say, and most of the work at a sentry's sample is to find out
    whether its name and labels may be told.
    """

    def __init__(self) -> None:
        self._shims: dict[str, tuple[Mapping[str, Any], Page]] = {}
        self._shapes: dict[tuple[object, ...], _Shape | None] = {}

    def render(self, look: NodeLook) -> str:
        """The page of a look."""
        page = Page()
        shims: dict[str, tuple[Mapping[str, Any], Page]] = {}
        seen: set[str] = set()
        for each in look.sandboxes:
            told = labels(namespace=each.namespace, pod=each.pod, sandbox=each.id)
            if told in seen:
                continue  # a second root directory has it as well
            seen.add(told)
            part = Page()
            _sandbox(part, each, told)
            for container in each.containers:
                _container(part, container, told)
            self._exported(part, each, told)
            page.include(part)
            known = self._shims.get(told)
            if known is None or known[0] != each.counters:
                known = each.counters, Page()
                _shim(known[1], each.counters, told)
            shims[told] = known
            page.include(known[1])
        self._shims = shims
        _node(page, look)
        return page.render()

    def _exported(self, page: Page, each: SandboxLook, told: str) -> None:
        left = out = 0
        for sample in each.exported:
            if left < MAX_EXPORTED and self._sample(page, sample, told):
                left += 1
            else:
                out += 1
        if out:
            page.gauge(
                "gvisor_sandbox_metrics_left_out",
                "Samples of the sentry's that were malformed, doubled, or too many.",
            ).add(told, out)

    def _sample(self, page: Page, sample: Any, told: str) -> bool:
        """One sample; False if it isn't told."""
        try:
            metric, own = sample["metric"], sample.get("labels") or {}
            name, kind, help = metric.get("name"), metric.get("type", 0), metric.get("help", "")
            key = name, kind, help, *own.items()
            shape = self._shapes[key]
        except KeyError:
            if "metric" not in sample:
                return False
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            shape = self._shapes[key] = _shape(name, kind, help, own)
        except (AttributeError, TypeError):
            return False
        if shape is None:
            return False
        label = f"{told},{shape.labels}" if shape.labels else told
        family = page.family(shape.name, shape.kind, shape.help)
        if shape.kind == "histogram":
            return _buckets(family, sample.get("histogram"), label)
        value = _number(sample.get("val"))
        return value is not None and family.add(label, value)


def _node(page: Page, look: NodeLook) -> None:
    page.gauge("gvisor_sandboxes", "Sandboxes that live on the node.").add("", len(look.sandboxes))
    page.gauge("gvisor_fork_servers", "Fork servers on the node.").add("", len(look.fork_servers))
    page.gauge(
        "gvisor_fork_servers_resident_memory_bytes", "Resident memory of all fork servers."
    ).add("", sum(look.fork_servers))
    page.gauge("gvisor_scrape_problems", "State files that could not be read.").add(
        "", len(look.problems)
    )
    page.gauge("gvisor_scrape_seconds", "How long this look at the node took.").add(
        "", round(look.seconds, 6)
    )
    page.gauge("gvisor_exporter_info", "What made this page.").add(labels(version=VERSION), 1)


def _sandbox(page: Page, each: SandboxLook, told: str) -> None:
    page.gauge("gvisor_sandbox_up", "Whether the sandbox's sentry answered.").add(
        told, int(not each.sentry)
    )
    if each.has_shim:
        page.gauge("gvisor_shim_up", "Whether the sandbox's shim answered.").add(
            told, int(not each.shim)
        )
    for who, why in (("sentry", each.sentry), ("shim", each.shim)):
        if why:
            page.gauge("gvisor_sandbox_unanswered_info", "Who did not answer, and why.").add(
                _also(told, who=who, reason=why), 1
            )
    page.gauge("gvisor_sandbox_info", "What the sandbox is.").add(
        _also(
            told,
            containerd_namespace=each.containerd_namespace,
            release=str(each.release) if each.release else "",
        ),
        1,
    )
    for state, count in sorted(each.states.items()):
        page.gauge("gvisor_sandbox_containers", "Containers of the sandbox, by state.").add(
            _also(told, state=state), count
        )
    for role, size in each.resident.items():
        page.gauge(
            "gvisor_process_resident_memory_bytes",
            "Resident memory of the sandbox's processes on the host, shared pages included.",
        ).add(_also(told, role=role), size)
    for interface in each.networks:
        device = _also(told, interface=interface.name)
        for name, field, help in _NETWORK:
            page.counter(f"gvisor_sandbox_network_{name}_total", f"{help} by the sandbox.").add(
                device, getattr(interface, field)
            )
    host = each.host
    if host is None:
        return
    for name, value, help in (
        ("cpu_seconds", host.cpu_usage_ns, "CPU time of the sandbox as the host counts it."),
        ("cpu_user_seconds", host.cpu_user_ns, "The part of it in user mode."),
        ("cpu_system_seconds", host.cpu_system_ns, "The part of it in the host's kernel."),
        ("cpu_throttled_seconds", host.cpu_throttled_ns, "Time for which its quota held it."),
    ):
        page.counter(f"gvisor_sandbox_{name}_total", help).add(told, value / 1e9)
    page.counter(
        "gvisor_sandbox_cpu_periods_total", "Periods of its CPU quota in which it wanted to run."
    ).add(told, host.cpu_periods)
    page.counter(
        "gvisor_sandbox_cpu_throttled_periods_total", "Those in which its quota held it."
    ).add(told, host.cpu_throttled_periods)
    memory = host.memory
    for name, amount, help in (
        ("memory_usage_bytes", memory.usage, "Memory that the sandbox's cgroup is charged for."),
        (
            "memory_working_set_bytes",
            max(memory.usage - host.inactive_file, 0),
            "The same without what the host can take back at once.",
        ),
        ("memory_limit_bytes", memory.limit, "Limit of the sandbox's cgroup, if it has one."),
        ("host_tasks", host.pids, "Threads and processes that the sandbox has on the host."),
    ):
        page.gauge(f"gvisor_sandbox_{name}", help).add(told, amount)
    page.counter(
        "gvisor_sandbox_oom_kills_total",
        "Its processes that the host killed for memory.",
    ).add(told, host.memory_events.oom_kill)


def _container(page: Page, each: ContainerLook, told: str) -> None:
    metrics = each.metrics
    if metrics is None:
        return
    told = _also(told, container=each.name, id=each.id)
    page.counter(
        "gvisor_container_cpu_seconds_total",
        "The container's part of the sandbox's CPU time, by what the sentry counts.",
    ).add(told, metrics.cpu_usage_ns / 1e9)
    page.gauge(
        "gvisor_container_memory_usage_bytes", "Memory of the container as the sentry counts it."
    ).add(told, metrics.memory_usage)
    page.gauge("gvisor_container_memory_limit_bytes", "Its limit, if it has one.").add(
        told, metrics.memory_limit
    )
    page.gauge("gvisor_container_pids", "Processes in the container.").add(told, metrics.pids)


def _shim(page: Page, counters: Mapping[str, Any], told: str) -> None:
    """What the shim counts.  It is ours and root's, but may be of another version."""
    if not counters:
        return
    bounds = [float(bound) for bound in counters.get("bounds", ())]
    for method, figures in counters.get("rpcs", {}).items():
        by_method = _also(told, method=method)
        for code, count in figures["codes"].items():
            name = _CODES[int(code)] if int(code) < len(_CODES) else "Unknown"
            page.counter("gvisor_shim_rpcs_total", "Calls that the shim answered.").add(
                _also(by_method, code=name), count
            )
        if len(figures["buckets"]) == len(bounds) + 1:
            page.histogram(
                "gvisor_shim_rpc_duration_seconds",
                "How long calls took; of Wait until the shim knew what to wait for.",
            ).add_histogram(by_method, bounds, figures["buckets"], figures["seconds"])
    events = counters.get("events", {})
    page.gauge("gvisor_shim_events_queued", "Events that wait for containerd.").add(
        told, events.get("queued")
    )
    page.counter("gvisor_shim_events_sent_total", "Events that containerd took.").add(
        told, events.get("sent")
    )
    page.counter(
        "gvisor_shim_events_lost_total", "Events dropped from a full queue, or refused."
    ).add(told, events.get("lost"))
    page.gauge("gvisor_shim_threads", "Threads of the shim.").add(told, counters.get("threads"))
    page.gauge("gvisor_shim_start_time_seconds", "When the shim started, since the epoch.").add(
        told, counters.get("started")
    )
    for name, starts in counters.get("starts", {}).items():
        page.counter(
            "gvisor_container_restarts_total", "Containers made anew under the same name."
        ).add(_also(told, container=name), starts - 1)
    kills_by_name = dict.fromkeys(counters.get("starts", ()), 0) | counters.get("oomKills", {})
    for name, kills in kills_by_name.items():
        page.counter("gvisor_container_oom_kills_total", "Ends of containers for memory.").add(
            _also(told, container=name), kills
        )
    for stage, (count, total, last) in counters.get("stages", {}).items():
        by_stage = _also(told, stage=stage)
        family = page.family(
            "gvisor_shim_stage_duration_seconds", "summary", "Stages of creations and starts."
        )
        family.add(by_stage, total, "_sum")
        family.add(by_stage, count, "_count")
        if stage == "boot":
            page.gauge("gvisor_sandbox_boot_seconds", "How long the sandbox took to boot.").add(
                told, last
            )


def _also(told: str, **more: str) -> str:
    added = labels(**more)
    return f"{told},{added}" if added else told


# -- the sentry's own -------------------------------------------------------------------------


class _Shape(Record):
    """How samples are told that have one name, type, help and labels of their own."""

    name: str
    kind: str
    help: str
    labels: str


def _shape(name: Any, kind: Any, help: Any, own: Any) -> _Shape | None:
    """None if they aren't told."""
    if not isinstance(name, str) or len(name) > 200 or not is_name(name):
        return None
    if _DISTRIBUTION in name:
        return None  # it would be in the way of a histogram's samples, maybe another sentry's
    if type(kind) is not int or not 0 <= kind < len(_KINDS) or not isinstance(help, str):
        return None
    if not isinstance(own, dict) or len(own) > _MAX_LABELS:
        return None
    theirs: dict[str, str] = {}
    for key, value in own.items():
        if not is_name(key) or len(key) > 100 or not isinstance(value, str):
            return None
        # Ours are ours, and "le" a bucket's.
        ours = key in ("namespace", "pod", "sandbox", "container", "id", "le") or key[:2] == "__"
        theirs[f"sentry_{key}" if ours else key] = value
    if len(theirs) != len(own):
        return None
    if kind == 2 and not name.endswith("_total"):
        name += "_total"
    if kind == 3:
        name += _DISTRIBUTION
    return _Shape(
        name=f"gvisor_sentry_{name}", kind=_KINDS[kind], help=help, labels=render_labels(theirs)
    )


def _buckets(family: Family, value: object, label: str) -> bool:
    buckets = value.get("buckets") if isinstance(value, dict) else None
    if not isinstance(buckets, list) or not 0 < len(buckets) <= _MAX_BUCKETS:
        return False
    assert isinstance(value, dict)
    bounds: list[float] = []
    counts: list[int] = []
    for bucket in buckets:
        count = bucket.get("n", 0) if isinstance(bucket, dict) else None
        bound = _number(bucket.get("le")) if isinstance(bucket, dict) else None
        if type(count) is not int or count < 0:
            return False
        counts.append(count)
        if bound is not None and len(bounds) < len(buckets) - 1:
            bounds.append(float(bound))
    total = _number(value.get("total"))
    if len(bounds) != len(buckets) - 1 or sorted(set(bounds)) != bounds or total is None:
        return False
    family.add_histogram(label, bounds, counts, total)
    return True


def _number(value: object) -> float | None:
    """A number of the sentry's; an empty one is zero."""
    if not isinstance(value, dict):
        return None
    found = value.get("int") or value.get("float") or 0
    return found if type(found) in (int, float) else None
