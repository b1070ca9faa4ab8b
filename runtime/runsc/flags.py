"""runsc's flags as its processes will understand them, with types.

Joins three sources: the operator's configuration, a container's annotations, and the defaults of
the binary.  runsc's own processes read the same annotations from the spec, so where the shim
decides by a flag (namespaces, credentials, overlays) it must reach the same result.  Pure.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.base.golang import parse_bool
from runtime.base.record import Record
from runtime.runsc import donated_files, flag_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.bundle.spec import Spec
    from runtime.runsc.config import RunscConfig
    from runtime.runsc.release import Generation

_OVERRIDE = "dev.gvisor.flag."
_BUNDLE = "dev.gvisor.bundle."
# Flags that a container may set for itself (gVisor runsc/config/flags.go, overrideAllowlist), and
# those that it may since gofers have mount configurations, and since they take an id.
_OVERRIDABLE = frozenset(("debug", "oci-seccomp", "strace", "strace-log-size", "strace-syscalls"))
_OVERRIDABLE_2024 = frozenset(("debug-to-user-log", "host-uds", "net-disconnect-ok"))
_OVERRIDABLE_2026 = frozenset(
    (
        "allow-connected-on-save",
        "debug-command",
        "mount-cgroup-v2",
        "overlay2",
        "pause-external-networking",
        "qdisc",
        "qdisc-tbf-burst",
        "qdisc-tbf-rate",
        "reproduce-nftables",
    )
)
# What is decided before a container's spec is read, or outside of its sandbox.
_OF_ALL = frozenset(
    (
        "allow-flag-override",
        "root",
        "sidecar-release-enforcement-policy",
        "sidecar-usage-policy",
        "systemd-cgroup",
    )
)
_NETWORKS = ("sandbox", "host", "none")


class Settings(Record):
    """The flags that the shim itself acts by, and all of them for the command lines."""

    #: As configured.
    flags: Mapping[str, str]
    #: With the container's overrides; what it runs by.
    effective: Mapping[str, str]
    network: str
    directfs: bool
    #: Empty for the binary's own default.
    platform: str
    platform_device: str
    #: ``none``, ``memory``, ``self``, or a directory's absolute path.
    root_overlay: str
    mount_overlay: str
    #: What each of them may hold, as tmpfs's option has it; empty for no bound.
    overlay_size: str = ""
    net_raw: bool
    #: The address of the ``runsc metric-server`` that is to see the sandbox; empty for none.
    metric_server: str = ""

    def boolean(self, name: str, default: bool = False) -> bool:
        """A boolean flag, overrides included."""
        value = parse_bool(self.effective.get(name, ""))
        return default if value is None else value


def check_flags(config: RunscConfig, generation: Generation) -> None:
    """Raise InvalidRequest for a flag that the binary doesn't know, Unsupported for one that
    the shim can't serve: see ``flag_table.py``."""
    for name in config.flags:
        if name.startswith("-") or name not in generation.global_flags:
            raise InvalidRequest(
                "runsc_config",
                f"unknown runsc flag {name!r} ({generation.binary}, {generation.version})",
            )
        if name in flag_table.RESERVED:
            raise InvalidRequest("runsc_config", f"flag {name!r} is set by the shim")
        if "\0" in config.flags[name]:
            raise InvalidRequest("runsc_config", f"flag {name!r} contains a NUL character")
        refused = _why_refused(name, config.flags[name], generation)
        if refused:
            raise Unsupported(f"runsc flag {name!r} is not supported by the shim: {refused}")
    donated_files.check(config.flags, generation)


def unknown_flags(config: RunscConfig) -> tuple[str, ...]:
    """Flags of a newer release than the shim knows of: they are passed on as they are."""
    return tuple(sorted(set(config.flags) - flag_table.ALL))


def _why_refused(name: str, value: str, generation: Generation) -> str:
    return flag_table.why_refused(name, value, generation.global_flags.get(name, ""))


def read_settings(config: RunscConfig, generation: Generation, spec: Spec | None) -> Settings:
    """Join configuration, overrides and defaults.  ``spec`` may be None for the former alone.

    Raises InvalidRequest naming the flag or the annotation.
    """
    check_flags(config, generation)
    effective = dict(config.flags)
    if spec is not None:
        _override(effective, spec.annotations, generation)
        donated_files.check(effective, generation)
    network = effective.get("network", "sandbox")
    if network not in _NETWORKS:
        raise InvalidRequest("runsc_config", f"network {network!r} is none of sandbox, host, none")
    root, mounts, size = _overlay(effective, generation)
    return Settings(
        flags=config.flags,
        effective=effective,
        network=network,
        directfs=generation.directfs and _boolean(effective, "directfs", True),
        platform=effective.get("platform", ""),
        platform_device=effective.get("platform_device_path", ""),
        root_overlay=root,
        mount_overlay=mounts,
        overlay_size=size,
        net_raw=_boolean(effective, "net-raw", False),
        metric_server=effective.get("metric-server", ""),
    )


def _boolean(flags: Mapping[str, str], name: str, default: bool) -> bool:
    if name not in flags:
        return default
    value = parse_bool(flags[name])
    if value is None:
        raise InvalidRequest("runsc_config", f"flag {name!r} is not a boolean: {flags[name]!r}")
    return value


def _override(
    flags: dict[str, str], annotations: Mapping[str, str], generation: Generation
) -> None:
    anything, configured = _boolean(flags, "allow-flag-override", False), dict(flags)
    for key, value in annotations.items():
        if key.startswith(_BUNDLE):
            raise Unsupported(f"annotation {key} is not supported by the shim")
        if not key.startswith(_OVERRIDE):
            continue
        name = key[len(_OVERRIDE) :]
        field = f"annotation {key[:100]}"
        if name not in generation.global_flags:
            raise InvalidRequest(field, "names no runsc flag")
        if not anything and not _is_listed(name, value, configured, generation):
            raise InvalidRequest(field, "flag override disabled, allow-flag-override is not set")
        if name in flag_table.RESERVED:
            raise Unsupported(f"{field} is not supported by the shim: it sets the flag itself")
        if name in _OF_ALL:
            raise Unsupported(f"{field} is not supported by the shim: it is for all containers")
        refused = _why_refused(name, value, generation)
        if refused:
            raise Unsupported(f"{field} is not supported by the shim: {refused}")
        flags[name] = value


def _is_listed(
    name: str, value: str, configured: Mapping[str, str], generation: Generation
) -> bool:
    """Whether runsc lets any container override the flag, with that value."""
    if not (
        name in _OVERRIDABLE
        or (generation.lets_override_2024 and name in _OVERRIDABLE_2024)
        or (generation.lets_override_2026 and name in _OVERRIDABLE_2026)
    ):
        return False
    if name == "oci-seccomp":
        return bool(parse_bool(value))
    if name == "overlay2":
        return value == "none" or value.partition(",")[0].partition(":")[2] in ("memory", "self")
    if name == "qdisc":
        return value == "tbf"
    if name.startswith("qdisc-tbf-"):
        # A container may narrow its network, but not widen it.
        limit = configured.get(name, "0")
        return not (limit.isdecimal() and int(limit)) or (
            value.isdecimal() and len(value) <= 20 and int(value) <= int(limit)
        )
    return True


def _overlay(flags: Mapping[str, str], generation: Generation) -> tuple[str, str, str]:
    """The media of the root's and of the mounts' overlays, and the size of each.

    The syntax is ``none`` or ``{root|all}:{memory|self|dir=/path}[,size=SIZE]``; old ones take the
    plain path of a directory (gVisor runsc/config/config.go, Overlay2).
    """
    if _boolean(flags, "overlay", False):
        return "memory", "memory", ""
    value = flags.get("overlay2") or generation.global_flags.get("overlay2") or "none"
    if value == "none":
        return "none", "none", ""
    kind, comma, size = value.partition(",")
    if comma and not generation.bounds_overlays:
        raise Unsupported(f"overlay2 with a size is not supported by runsc {generation.version}")
    scope, colon, medium = kind.partition(":")
    sized = not comma or (size.startswith("size=") and _is_size(size[5:]))
    if medium.startswith("dir="):
        medium = medium[4:]
        known = medium.startswith("/")
    else:
        known = medium in ("memory", "self") or (
            medium.startswith("/") and generation.overlay_in_plain_path
        )
    if not colon or scope not in ("root", "all") or not known or not sized:
        raise InvalidRequest("runsc_config", f"overlay2 {value[:200]!r} is malformed")
    return medium, medium if scope == "all" else "none", size[5:]


def _is_size(text: str) -> bool:
    """Whether it is a tmpfs's size in bytes or with a unit."""
    number = text[:-1] if text[-1:].lower() in tuple("kmgtpe%") else text
    return number.isascii() and number.isdecimal() and 0 < len(number) < 20 and int(number) > 0
