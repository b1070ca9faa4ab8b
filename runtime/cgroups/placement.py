"""Where in the cgroup hierarchy a sandbox belongs, and with which limits.  Pure.

Knows the annotations of CRI and gVisor about a pod's cgroup; making it is ``cgroups/factory.py``'s
part.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record
from runtime.cgroups.paths import derive_parent, expand_slice, locate
from runtime.cgroups.settings import DEFAULT_PERIOD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    from runtime.bundle.spec import Spec

#: The sandbox's cgroup, where somebody names it (gVisor runsc/container/container.go).
CGROUP_PARENT: Final = "dev.gvisor.spec.cgroup-parent"

#: containerd's internal/cri/annotations: the sums over the pod's containers.
_POD_LIMITS: Final = (
    ("io.kubernetes.cri.sandbox-cpu-period", "cpu", "period"),
    ("io.kubernetes.cri.sandbox-cpu-quota", "cpu", "quota"),
    ("io.kubernetes.cri.sandbox-cpu-shares", "cpu", "shares"),
    ("io.kubernetes.cri.sandbox-memory", "memory", "limit"),
)


class Placement(Record):
    """``path`` is the cgroup of the sentry and all gofers; ``resources`` are its limits.

    ``own`` is the cgroup that stands for the sandbox's container alone and stays empty, so that
    cAdvisor finds the container by it; empty where ``path`` does that itself.  ``named`` tells
    that an annotation placed it, ``refused`` is what such an annotation says in vain.
    """

    path: str
    resources: Mapping[str, Any]
    own: str = ""
    named: bool = False
    refused: str = ""


def place(
    spec: Spec,
    container_id: str,
    mode: str,
    hands_down: Callable[[str], bool] = lambda _: False,
    *,
    anywhere: bool = False,
    limits_of: Callable[[str], Mapping[str, Mapping[str, int]]] = lambda _: {},
) -> Placement:
    """The placement of a sandbox whose first container has this spec; ``mode`` is v1 or v2.

    A pod's sandbox goes into the pod's cgroup, so that the pod's limits bind all of it.  On v2 a
    cgroup with controllers enabled for its children can't have processes of its own: there the
    sandbox goes into its own container's cgroup, a leaf below the pod's.

    An annotation may name the pod's cgroup, as a path or as a slice.  Of a pod that CRI marks it
    is its author's, who must not get out of the pod's limits, or into others' cgroups: there it
    counts inside of the pod's own cgroup only, unless the operator lets it count ``anywhere``.
    ``hands_down`` tells of a path on v2 whether that cgroup has controllers enabled for its
    children, ``limits_of`` of the limits that stand in it.

    Raises InvalidRequest for paths and limits that are none.
    """
    own = spec.cgroups_path or f"/{container_id}"
    resources = _resources(spec)
    if spec.container_type == "sandbox" and mode == "v2" and (pod := derive_parent(own)):
        # On v1 that is the cgroup of the sandbox itself.
        resources = _with_overhead(resources, limits_of(locate(pod).directory))
    named = spec.annotations.get(CGROUP_PARENT)
    if named and (anywhere or not spec.container_type or _is_inside(named, own)):
        found = _place_in(named, spec.cgroups_path, container_id, mode, resources, hands_down)
        return found.replace(named=True)
    placement = _place(spec, own, mode, resources)
    return placement.replace(refused=named) if named else placement


def _place(spec: Spec, own: str, mode: str, resources: Mapping[str, Any]) -> Placement:
    if spec.container_type != "sandbox" or mode != "v1":
        return Placement(path=own, resources=resources)
    parent = derive_parent(own)
    if parent is None:
        return Placement(path=own, resources=resources)
    return Placement(path=parent, resources=resources, own=own)


def _is_inside(named: str, own: str) -> bool:
    """Whether the cgroup that is named is the pod's, or below it; ``own`` is its sandbox's path.

    Raises InvalidRequest for a path that is none.
    """
    pod = locate(derive_parent(own) or own).directory
    directory = expand_slice(named) if _is_slice(named) else locate(named).directory
    return directory == pod or directory.startswith(pod + "/")


def _is_slice(named: str) -> bool:
    return named.endswith(".slice") and "/" not in named and ":" not in named


def _place_in(
    named: str,
    own: str,
    container_id: str,
    mode: str,
    resources: Mapping[str, Any],
    hands_down: Callable[[str], bool],
) -> Placement:
    slice_name = named if _is_slice(named) else ""
    parent = expand_slice(slice_name) if slice_name else named
    if mode == "v1" or ":" in named:
        return Placement(path=parent, resources=resources, own=own)
    if own and locate(own).directory.startswith(locate(parent).directory + "/"):
        # Making it would enable controllers in its parent.
        return Placement(path=own, resources=resources)
    if slice_name:
        return Placement(path=f"{slice_name}:gvisor:{container_id}", resources=resources, own=own)
    if hands_down(locate(parent).directory):
        return Placement(path=f"{parent}/{container_id}", resources=resources, own=own)
    return Placement(path=parent, resources=resources, own=own)


def _with_overhead(
    sums: Mapping[str, Any], limits: Mapping[str, Mapping[str, int]]
) -> Mapping[str, Any]:
    """A sandbox's limits, where those of its pod's cgroup leave more room.

    The kubelet tells CRI the sums over the containers, and gives the pod's cgroup what the
    RuntimeClass says of a sandbox besides: that is for the sandbox, which has it nowhere else.
    """
    result = dict(sums)
    memory = result.get("memory", {})
    extra = limits.get("memory", {}).get("limit", 0) - memory.get("limit", 0)
    if memory.get("limit", 0) > 0 and extra > 0:
        grown = {key: memory[key] + extra for key in ("limit", "swap") if memory.get(key, 0) > 0}
        result["memory"] = {**memory, **grown}
    cpu, theirs = result.get("cpu", {}), limits.get("cpu", {})
    quota, period = cpu.get("quota", 0), cpu.get("period", DEFAULT_PERIOD)
    if quota > 0 and theirs and theirs["quota"] * period > quota * theirs["period"]:
        result["cpu"] = {**cpu, **theirs}
    return result


def _resources(spec: Spec) -> Mapping[str, Any]:
    """The limits in the spec; for a pod, its sums in place of the pause container's own.

    The pause container gets the least of CPU shares, which must not hold for the whole pod.
    """
    if spec.container_type != "sandbox":
        return spec.resources
    result = {name: value for name, value in spec.resources.items() if name != "cpu"}
    cpu = spec.resources.get("cpu")
    if isinstance(cpu, dict):
        result["cpu"] = {k: v for k, v in cpu.items() if k in ("cpus", "mems")}
    for annotation, section, key in _POD_LIMITS:
        text = spec.annotations.get(annotation, "")
        if not text:
            continue
        try:
            value = int(text)
        except ValueError:
            raise InvalidRequest(f"annotation {annotation}", f"{text!r} is no number") from None
        if value > 0:
            result[section] = {**result.get(section, {}), key: value}
    if "quota" not in result.get("cpu", {}):
        result.get("cpu", {}).pop("period", None)
    return result
