"""runsc's flags as its processes will understand them, with types.

Joins what the operator configured, what a container's annotations override and what the binary
takes as default.  runsc's own processes read the same annotations from the spec; where the shim
decides by a flag (namespaces, credentials, overlays) it must come to the same answer.  Pure.
"""

from __future__ import annotations

from runtime.config import parse_bool
from runtime.errors import InvalidRequest, Unsupported
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.config import RunscConfig
    from runtime.generation import Generation
    from runtime.spec import Spec

_OVERRIDE = "dev.gvisor.flag."
_BUNDLE = "dev.gvisor.bundle."
# Flags that a container may set for itself (gVisor runsc/config/flags.go, overrideAllowlist).
_OVERRIDABLE = frozenset(
    (
        "debug",
        "debug-to-user-log",
        "host-uds",
        "net-disconnect-ok",
        "oci-seccomp",
        "strace",
        "strace-log-size",
        "strace-syscalls",
    )
)
_NETWORKS = ("sandbox", "host", "none")
# What needs more than a gofer and a sentry, or another caller than root.
_UNSUPPORTED = ("rootless", "nvproxy", "nvproxy-docker", "tpuproxy", "TESTONLY-unsafe-nonroot")
# Descriptors are ours to number.
_RESERVED = frozenset(("log-fd", "debug-log-fd", "panic-log-fd", "coverage-fd", "version"))


class Settings(Record):
    """The flags that the shim itself acts by, and all of them for the command lines."""

    #: As configured; the command line of every runsc process.
    flags: Mapping[str, str]
    #: With the container's overrides.
    effective: Mapping[str, str]
    network: str
    directfs: bool
    #: Empty for the binary's own default.
    platform: str
    platform_device: str
    #: ``none``, ``memory``, ``self``, or a directory's absolute path.
    root_overlay: str
    mount_overlay: str
    net_raw: bool

    def boolean(self, name: str, default: bool = False) -> bool:
        """A boolean flag, overrides included."""
        value = parse_bool(self.effective.get(name, ""))
        return default if value is None else value


def check_flags(config: RunscConfig, generation: Generation) -> None:
    """Raise InvalidRequest for a flag that the binary doesn't know, Unsupported for one that
    the shim can't serve."""
    for name in config.flags:
        if name.startswith("-") or name not in generation.global_flags:
            raise InvalidRequest(
                "runsc_config",
                f"unknown runsc flag {name!r} ({generation.binary}, {generation.version})",
            )
        if name in _RESERVED:
            raise InvalidRequest("runsc_config", f"flag {name!r} is set by the shim")
        if "\0" in config.flags[name]:
            raise InvalidRequest("runsc_config", f"flag {name!r} contains a NUL character")
    for name in _UNSUPPORTED:
        if parse_bool(config.flags.get(name, "")):
            raise Unsupported(f"runsc flag {name!r} is not supported by the shim")


def read_settings(config: RunscConfig, generation: Generation, spec: Spec | None) -> Settings:
    """Join configuration, overrides and defaults.  ``spec`` may be None for the former alone.

    Raises InvalidRequest naming the flag or the annotation.
    """
    check_flags(config, generation)
    effective = dict(config.flags)
    if spec is not None:
        _override(effective, spec.annotations, generation)
    network = effective.get("network", "sandbox")
    if network not in _NETWORKS:
        raise InvalidRequest("runsc_config", f"network {network!r} is none of sandbox, host, none")
    root, mounts = _overlay(effective, generation)
    return Settings(
        flags=config.flags,
        effective=effective,
        network=network,
        directfs=generation.directfs and _boolean(effective, "directfs", True),
        platform=effective.get("platform", ""),
        platform_device=effective.get("platform_device_path", ""),
        root_overlay=root,
        mount_overlay=mounts,
        net_raw=_boolean(effective, "net-raw", False),
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
    anything = _boolean(flags, "allow-flag-override", False)
    for key, value in annotations.items():
        if key.startswith(_BUNDLE):
            raise Unsupported(f"annotation {key} is not supported by the shim")
        if not key.startswith(_OVERRIDE):
            continue
        name = key[len(_OVERRIDE) :]
        field = f"annotation {key[:100]}"
        if name not in generation.global_flags:
            raise InvalidRequest(field, "names no runsc flag")
        listed = generation.mount_confs and name in _OVERRIDABLE
        if not anything and (not listed or (name == "oci-seccomp" and not parse_bool(value))):
            raise InvalidRequest(field, "flag override disabled, allow-flag-override is not set")
        if name in _RESERVED or (name in _UNSUPPORTED and parse_bool(value)):
            raise Unsupported(f"{field} is not supported by the shim")
        flags[name] = value


def _overlay(flags: Mapping[str, str], generation: Generation) -> tuple[str, str]:
    """The media of the root's and of the mounts' overlays.

    The syntax is ``none`` or ``{root|all}:{memory|self|dir=/path}``; old ones take the plain path
    of a directory (gVisor runsc/config/config.go, Overlay2).
    """
    if _boolean(flags, "overlay", False):
        return "memory", "memory"
    value = flags.get("overlay2") or generation.global_flags.get("overlay2") or "none"
    if value == "none":
        return "none", "none"
    scope, colon, medium = value.partition(":")
    if medium.startswith("dir="):
        medium = medium[4:]
        known = medium.startswith("/")
    else:
        known = medium in ("memory", "self") or (
            medium.startswith("/") and not generation.mount_confs
        )
    if not colon or scope not in ("root", "all") or not known:
        raise InvalidRequest("runsc_config", f"overlay2 {value!r} is malformed")
    return medium, medium if scope == "all" else "none"
