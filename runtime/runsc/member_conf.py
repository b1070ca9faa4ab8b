"""The part of runsc's configuration that the sentry reads for a subcontainer.

It is told in the call that starts one, while the root container's comes with the command line.
The names are those of gVisor's ``runsc/config`` Config; a sentry ignores those that it doesn't
know.  Pure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.runsc.flags import Settings

_HOST_UDS = {"open": 1, "create": 2, "all": 3}
_DEVICE_POLICIES = {"prefer-emulated": 1, "passthrough": 2}
_NETWORKS = {"sandbox": 0, "host": 1, "none": 2}
_CAPABILITIES = "nvproxy-allowed-driver-capabilities"


def of(settings: Settings, defaults: Mapping[str, str]) -> dict[str, Any]:
    """The members; ``defaults`` are the binary's own of its global flags.

    ``WatchdogAction`` changed its type between releases and must stay out.
    """
    flags = settings.effective
    return {
        "FileAccess": int(flags.get("file-access") == "shared"),
        "FileAccessMounts": int(flags.get("file-access-mounts", "shared") == "shared"),
        "DirectFS": settings.directfs,
        "HostUDS": _HOST_UDS.get(flags.get("host-uds", ""), 0),
        "FSGoferHostUDS": settings.boolean("fsgofer-host-uds"),
        "HostFifo": int(flags.get("host-fifo") == "open"),
        "CharacterDevicePolicy": _DEVICE_POLICIES.get(flags.get("character-device-policy", ""), 0),
        "DCache": _integer(flags.get("dcache"), -1),
        "FDLimit": _integer(flags.get("fdlimit"), -1),
        "EnableRaw": settings.net_raw,
        "OCISeccomp": settings.boolean("oci-seccomp"),
        "Network": _NETWORKS[settings.network],
        "Platform": settings.platform,
        "MountCgroupV2": settings.boolean("mount-cgroup-v2"),
        "GVisorMarkerFile": settings.boolean("gvisor-marker-file"),
        "OverrideProcs": flags.get("override-procs", ""),
        "NVProxy": settings.boolean("nvproxy"),
        "NVProxyAllowUnsupportedDriver": settings.boolean("nvproxy-allow-unsupported-driver"),
        "NVProxyAllowedDriverCapabilities": flags.get(
            _CAPABILITIES, defaults.get(_CAPABILITIES, "")
        ),
        "TPUProxy": settings.boolean("tpuproxy"),
    }


def _integer(text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        return default
