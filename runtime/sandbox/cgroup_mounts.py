"""Memory and CPU of each container of a pod, counted by the sentry.

Pure.  The sentry counts per container only for those that have its cgroups mounted, as CRI's have
(runsc/boot/vfs.go, ``cgroupsMounted``); for others it tells shares of the sandbox's sum.
"""

from __future__ import annotations

from runtime.bundle.spec import with_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from runtime.bundle.spec import Spec
    from runtime.runsc.release import Generation

_TARGET: Final = "/sys/fs/cgroup"
_TYPES: Final = ("cgroup", "cgroup2")
_MOUNT: Final[dict[str, Any]] = {
    "destination": _TARGET,
    "type": "cgroup",
    "source": "cgroup",
    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
}


def counts(spec: Spec, generation: Generation) -> bool:
    """Whether the sentry counts a container with this spec by itself."""
    return generation.mounts_cgroups and any(m.type in _TYPES for m in spec.mounts)


def prepare(spec: Spec, generation: Generation) -> Spec:
    """The spec with cgroups mounted, read-only, in a container of a pod that has none.

    As it is: a container that has /sys/fs/cgroup already, or no sysfs to mount it in; one that is
    not in a pod; and any with a runsc that drops such mounts.
    """
    if spec.container_type != "container" or not generation.mounts_cgroups:
        return spec
    if not any(m.destination == "/sys" and m.type == "sysfs" for m in spec.mounts):
        return spec
    if any(m.type in _TYPES or m.destination.rstrip("/") == _TARGET for m in spec.mounts):
        return spec
    return with_mounts(spec, [*spec.raw.get("mounts", []), _MOUNT])
