"""Verbs that only look: list, ps, state, events, usage, stacks."""

from __future__ import annotations

import time

from runtime.base.errors import InvalidState, NotFound, RuntimeFault, SandboxGone
from runtime.cli import find, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from runtime.cgroups.metrics import Amount, Metrics
    from runtime.runsc.control import SandboxProcess
    from runtime.state.loaded import StoredContainer


def list_verb(args: argparse.Namespace) -> None:
    """``list``: a broken state file is told of and hides no other."""
    containers, problems = find.every(args)
    for problem in problems:
        output.warn(problem)
    if args.quiet:
        output.write("".join(f"{output.printable(each.id)}\n" for each in containers))
        return
    states = [describe(each) for each in containers]
    if args.format == "json":
        output.write(output.dumps(states or None))
        return
    heads = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER", "NAMESPACE")
    names = ("id", "pid", "status", "bundle", "created", "owner", "namespace")
    output.write(output.table(heads, ([s.get(n, "") for n in names] for s in states)))


def describe(container: StoredContainer) -> dict[str, Any]:
    """A container as runc's ``list`` and ``state`` show one, and where it is kept."""
    state = _oci_state(container)
    return {
        "ociVersion": state["ociVersion"],
        "id": container.id,
        "pid": state["pid"],
        "status": state["status"],
        "bundle": container.bundle,
        "rootfs": _rootfs(container),
        "created": container.created_at,
        "annotations": state.get("annotations") or {},
        "owner": container.owner,
        "sandbox": container.sandbox_id,
        "namespace": find.namespace_of(container.root),
        "root": container.root,
    }


def _oci_state(container: StoredContainer) -> dict[str, Any]:
    try:
        return container.oci_state()
    except RuntimeFault:
        # The bundle of a container that is being deleted may be gone already.
        from runtime.base.version import OCI_VERSION

        status = container.status()
        pid = max(container.sandbox_pid, 0)
        return {"ociVersion": OCI_VERSION, "pid": pid, "status": status}


def _rootfs(container: StoredContainer) -> str:
    try:
        return container.rootfs
    except RuntimeFault:
        return ""


def state_verb(args: argparse.Namespace) -> None:
    output.write(output.dumps(describe(find.find(args)), indent=2))


def ps_verb(args: argparse.Namespace) -> None:
    """``ps``: in JSON the pids alone, as runc's callers read them, or all that is known."""
    processes = find.find(args).processes()
    if args.format == "json":
        output.write(output.dumps([each.pid for each in processes]))
        return
    if args.format == "details":
        output.write(output.dumps([process_json(each) for each in processes]))
        return
    heads = ("UID", "PID", "PPID", "C", "TTY", "STIME", "TIME", "CMD")
    rows = (
        (p.uid, p.pid, p.ppid, p.cpu_percent, p.tty, p.start_time, p.cpu_time, p.command)
        for p in processes
    )
    output.write(output.table(heads, rows))


def process_json(process: SandboxProcess) -> dict[str, Any]:
    """A process in the form of ``runsc ps``."""
    return {
        "uid": process.uid,
        "pid": process.pid,
        "ppid": process.ppid,
        "threads": process.threads,
        "c": process.cpu_percent,
        "tty": process.tty,
        "stime": process.start_time,
        "time": process.cpu_time,
        "cmd": process.command,
    }


def events_verb(args: argparse.Namespace) -> None:
    """``events``: ends with the container."""
    container = find.find(args)
    told = False
    while True:
        started = time.monotonic()
        try:
            metrics = container.event()
        except (InvalidState, SandboxGone, NotFound):
            if not told or container.status() != "stopped":
                raise
            return
        told = True
        event = {"type": "stats", "id": container.id, "data": stats_json(metrics)}
        output.write(output.dumps(event))
        if args.stats:
            return
        time.sleep(max(args.interval - (time.monotonic() - started), 0.05))


def stats_json(metrics: Metrics) -> dict[str, Any]:
    """Figures in the form of ``runc events``."""
    m = metrics
    return {
        "cpu": {
            "usage": {"total": m.cpu_usage_ns, "kernel": m.cpu_system_ns, "user": m.cpu_user_ns},
            "throttling": {
                "periods": m.cpu_periods,
                "throttledPeriods": m.cpu_throttled_periods,
                "throttledTime": m.cpu_throttled_ns,
            },
        },
        "memory": {
            "cache": m.file,
            "usage": _amount(m.memory),
            "swap": _amount(m.swap),
            "kernel": _amount(m.kernel),
            "raw": dict(m.memory_detail),
            "oomKills": m.memory_events.oom_kill,
        },
        "pids": {"current": m.pids, "limit": m.pids_limit or 0},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"major": d.major, "minor": d.minor, "op": op, "value": value}
                for d in m.io
                for op, value in (("Read", d.read_bytes), ("Write", d.write_bytes))
            ]
        },
        "network_interfaces": [
            {
                "name": n.name,
                "rx_bytes": n.rx_bytes,
                "rx_packets": n.rx_packets,
                "tx_bytes": n.tx_bytes,
                "tx_packets": n.tx_packets,
            }
            for n in m.networks
        ],
    }


def _amount(amount: Amount) -> dict[str, int]:
    found = {"usage": amount.usage, "max": amount.maximum, "failcnt": amount.failures}
    return found if amount.limit is None else {**found, "limit": amount.limit}


def usage_verb(args: argparse.Namespace) -> None:
    container = find.find(args)
    if args.fd:
        with container.usage_fd() as files:
            usage = files.read()
    else:
        usage = container.usage(args.full)
    values = {name: getattr(usage, name) for name in usage._fields}
    if args.format == "json":
        output.write(output.dumps(values))
        return
    rows = [(name.replace("_", " "), output.size(n)) for name, n in values.items() if n]
    output.write(output.table(("MEMORY", "USED"), rows))


def stacks_verb(args: argparse.Namespace) -> None:
    text = output.plain(find.find(args).stacks())
    output.write(text if text.endswith("\n") else text + "\n")
