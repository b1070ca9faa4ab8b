"""One pod's start and end, step by step, from what containerd and the shim log at level debug.

A step's time is the moment at which it was done, but for those whose name says that they begin.
The pods live one after the other, so all lines between a pod's first and last are that pod's.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from integration.harness.nodes.pods import PodNode

#: What containerd says, and what it is called.  The first one begins a pod, the last one ends it.
_CONTAINERD = (
    ('"RunPodSandbox for', "containerd begins the pod"),
    ('"cni result', "pod has a network"),
    ('"connecting to shim', "shim's start is over"),
    ('"RunPodSandbox for .* returns', "containerd has run the pod"),
    ('"CreateContainer within .* returns', "containerd has made the container"),
    ('"StartContainer for .* returns', "containerd has started the container"),
    ('"StopContainer for .* returns', "containerd has stopped the container"),
    ('"StopPodSandbox for [^ ]*"$', "containerd begins to stop the pod"),
    ('"received sandbox exit event', "containerd has the sandbox's end"),
    ('"cleaning up dead shim', "shim has hung up"),
    ('"received sandbox container exit event', "shim's delete is over"),
    ('"TearDown network', "pod's network is gone"),
    ('"StopPodSandbox for .* returns', "containerd has stopped the pod"),
    ('"RemovePodSandbox .* returns', "containerd has removed the pod"),
)
_FIRST, _LAST = _CONTAINERD[0][1], _CONTAINERD[-1][1]
#: Calls that are part of a life.
_METHODS = ("Create", "Start", "Kill", "Delete", "Shutdown")
_OURS = {
    "daemon.started": "shim serves",
    "container.created": "shim has created",
    "sentry.spawned": "sentry is started",
    "gofer.spawned": "gofer is started",
    "sentry.ready": "sentry answers",
    "network.read": "network has been read and taken over",
    "network.set": "sentry has the network",
    "init.started": "sentry has started init",
    "daemon.ended": "shim ends",
}
_LINE = re.compile(r'time="?([0-9T:.-]+)Z"? level=\w+ msg=("(?:[^"\\]|\\.)*"|\S+)(.*)')


class Step(NamedTuple):
    """Something that was done, and when: seconds since the pod's first step."""

    name: str
    at: float


def lives(log: Iterable[str]) -> list[list[Step]]:
    """The steps of each pod that lived from its first to its last line in ``log``."""
    found: list[list[Step]] = []
    steps: list[Step] = []
    began = 0.0
    for line in log:
        match = _LINE.match(line)
        if match is None:
            continue
        name = _name(match[2], match[3])
        at = _seconds(match[1])
        if name == _FIRST:
            steps, began = [], at
        if name and began:
            steps.append(Step(_numbered(name, steps), at - began))
        if name == _LAST and steps and steps[0].name == _FIRST:
            # The daemon's lines and the shims' come by different ways.
            found.append(sorted(steps, key=lambda step: step.at))
            steps, began = [], 0.0
    return found


def table(found: list[list[Step]]) -> list[str]:
    """A line for each step that every life has: milliseconds since the pod's start and since the
    step before, medians of all lives."""
    each = [dict(steps) for steps in found]
    common = [name for name in each[0] if all(name in steps for steps in each)]
    common.sort(key=lambda name: statistics.median(steps[name] for steps in each))
    lines = [f"{'ms':>8} {'since':>8}"]
    before = ""
    for name in common:
        at = statistics.median(steps[name] for steps in each)
        since = statistics.median(steps[name] - steps.get(before, 0.0) for steps in each)
        lines.append(f"{at * 1000:8.1f} {since * 1000:+8.1f}  {name}")
        before = name
    return lines


def record(node: PodNode, handler: str, count: int) -> list[list[Step]]:
    """`count` lives of a pod of one container, one after the other, on a node at level debug."""
    size = node.daemon.log.stat().st_size
    for _ in range(count):
        pod = node.prepare(handler=handler)
        pod.run()
        pod.start("sleep", "1000")
        pod.remove()
    with node.daemon.log.open(errors="replace") as file:
        file.seek(size)
        return lives(file)


def _name(message: str, fields: str) -> str:
    """What a line tells of; nothing if it is no step."""
    if message == "creation.step":
        return f"creation: {fields.rpartition('step=')[2].strip()} begins".replace('"', "")
    if message == "rpc.handled":
        method = re.search(r"method=(\w+)", fields)
        return f"{method[1]} is answered" if method and method[1] in _METHODS else ""
    if message in _OURS:
        return _OURS[message]
    for pattern, name in reversed(_CONTAINERD):
        if re.match(pattern, message.replace('\\"', "")):
            return name
    return ""


def _numbered(name: str, steps: list[Step]) -> str:
    """A step of the same name may come again, of the next container: ``name (2)``."""
    known = sum(step.name.partition(" (")[0] == name for step in steps)
    return f"{name} ({known + 1})" if known else name


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text[:26]).timestamp()
