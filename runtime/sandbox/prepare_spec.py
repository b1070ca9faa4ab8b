"""Rewrites a container's spec where gVisor leaves a part to its caller, or can't do it.

Owns the decisions: which of runsc's flags a spec switches on, how its mounts are rewritten so that
the sentry does what it would otherwise ignore, and what is refused.  Reads the root file system
where a decision depends on it; changes nothing on the host.
"""

from __future__ import annotations

import os

from runtime.base.errors import InvalidRequest, Unsupported
from runtime.base.golang import parse_bool
from runtime.base.json_fields import Fields
from runtime.base.record import Record
from runtime.bundle import mount_check
from runtime.bundle.capabilities import NAMES, NET_RAW
from runtime.bundle.masked_paths import restrict
from runtime.bundle.process_spec import CAPABILITY_SETS
from runtime.bundle.spec import with_mounts
from runtime.sandbox import accelerators

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.bundle.capabilities import Capabilities
    from runtime.bundle.spec import Spec
    from runtime.runsc.config import RunscConfig
    from runtime.runsc.flags import Settings
    from runtime.runsc.release import Generation

_OWN_NETNS = "/proc/self/ns/net"
_CRIO_HOST_NETWORK = "io.kubernetes.cri-o.HostNetwork"
_TRUE = "true"

# Options of recursive mounts (mount_setattr(2), AT_RECURSIVE).  To the sentry a bind mount and
# all that is mounted inside of it is one file system: its plain options are recursive.
_RECURSIVE = {
    "rro": "ro",
    "rrw": "rw",
    "rnoexec": "noexec",
    "rexec": "exec",
    "rnoatime": "noatime",
    "ratime": "atime",
    "rnosuid": "nosuid",
    "rsuid": "suid",
    "rnodev": "nodev",
    "rdev": "dev",
}
# Pairs of which the last one given counts.
_OPPOSITES = (("ro", "rw"), ("noexec", "exec"), ("noatime", "atime"))

# Sysctls that a caller sets for every pod without being asked, and that ask for nothing which
# the sentry refuses: containerd's enable_unprivileged_ports and _icmp, and Docker's the same.
_TOLERATED_SYSCTLS = frozenset(("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"))
_DOMAIN_NAME = "kernel.domainname"


#: Of other systems than Linux.
REFUSED_PARTS = ("solaris", "windows", "vm", "zos")
#: Fields of the OCI specification that nothing is made of; docs/spec.md has all of them.
UNKNOWN_FIELDS = (
    "process.ioPriority",
    "process.scheduler",
    "process.execCPUAffinity",
    "linux.intelRdt",
    "linux.memoryPolicy",
    "linux.mountLabel",
    "linux.netDevices",
    "linux.personality",
    "linux.timeOffsets",
)
#: What releases before 20260520 make nothing of.
NEWER_FIELDS = ("process.user.umask", "domainname")


class Prepared(Record):
    """A spec and a configuration to start a container's processes with."""

    spec: Spec
    config: RunscConfig
    #: What the spec asked for and does not get, in words; for the log.
    notes: tuple[str, ...] = ()
    #: Paths that should be read-only.  Callers ask for /proc/sys in every container.
    left_writable: tuple[str, ...] = ()


def _wants_raw_sockets(spec: Spec) -> bool:
    capabilities = spec.process.capabilities
    return capabilities is not None and bool(
        (capabilities.bounding | capabilities.permitted) & NET_RAW
    )


def exec_capabilities(
    given: Capabilities | None, spec: Spec, flags: Mapping[str, str]
) -> Capabilities | None:
    """What another process of the container may have that is to have ``given``.

    Without any, what the container has, raw sockets included, as runsc does.  Raw sockets are else
    for containers whose spec asks for them, or where ``flags``, runsc's, switch them on.
    """
    if given is None:
        return spec.process.capabilities
    raw = parse_bool(flags["net-raw"]) if "net-raw" in flags else _wants_raw_sockets(spec)
    return given if raw else given.without(NET_RAW)


def prepare(
    spec: Spec, config: RunscConfig, generation: Generation, host: Settings | None = None
) -> Prepared:
    """Rewrite spec and configuration so that the container gets what its spec asks for.

    ``host`` are the flags of the sandbox which the container joins, None for a sandbox of its
    own.  A flag that the operator has set stays as it is.

    Raises Unsupported for what gVisor can't give, InvalidRequest naming the member.
    """
    linux = _linux(spec)
    if _DOMAIN_NAME in (settings := linux.text_mapping("sysctl")):
        spec = _with_domain_name(spec, dict(settings))
        linux = _linux(spec)
    notes = _check(spec, linux, generation) + mount_check.check(spec, generation.mounts_cgroup2)
    spec, unknown = _known_capabilities(spec, generation)
    notes += unknown
    flags = dict(config.flags)

    def switch_on(name: str, value: str = _TRUE) -> bool:
        """Set a flag; tells whether it is on."""
        if name not in config.flags and name in generation.global_flags:
            flags[name] = value
        return flags.get(name) == value

    if _wants_raw_sockets(spec):
        switch_on("net-raw")
    # A pod's sandbox is made before it is known what its containers ask for; a container that
    # must not gain privileges is kept from it by its own spec.
    if not spec.process.no_new_privileges or spec.container_type == "sandbox":
        switch_on("allow-suid")
    if host is not None:
        if config.flag("network", "sandbox") != host.network:
            flags["network"] = host.network
    elif on_host_network(spec) and not switch_on("network", "host"):
        _check_network(config)
    found = accelerators.prepare(spec, config.flags, generation, host)
    spec, notes = found.spec, notes + found.notes
    flags.update(found.flags)
    left_readonly: tuple[str, ...] = ()
    if any(mount.is_bind and mount.read_only for mount in spec.mounts):
        from runtime.bundle.submounts import separate

        spec, left_readonly = separate(spec)
    spec, left_writable = restrict(_plain_options(spec), generation.has_newer_proc_files)
    # Whatever this spec says: an exec is filtered only if the sandbox's own flag is set, and a
    # pod's pause container may have no profile.
    filtered = switch_on("oci-seccomp")
    profile = linux.fields("seccomp")
    if profile is not None:
        from runtime.bundle.seccomp import translate  # seldom needed, and memory counts

        translated = translate(profile)
        if filtered:
            spec = spec.replace(raw=_with_linux(spec, "seccomp", translated.profile))
            notes += translated.notes
            if not generation.filters_execs:
                notes += ("seccomp: no filter for execs: this runsc filters first processes only",)
        elif "oci-seccomp" not in generation.global_flags:
            notes += ("no seccomp profile: runsc has no flag oci-seccomp",)
        else:
            notes += ("no seccomp profile: runsc_config sets oci-seccomp = false",)
    return Prepared(
        spec=spec,
        config=config.replace(flags=flags),
        notes=(*notes, *left_readonly),
        left_writable=left_writable,
    )


def _linux(spec: Spec) -> Fields:
    return Fields(dict(spec.raw), "config.json").fields("linux") or Fields(
        {}, "config.json", "linux"
    )


def _with_domain_name(spec: Spec, settings: dict[str, str]) -> Spec:
    """The spec with its domain name in the field for it; Docker has it among the sysctls."""
    name = settings.pop(_DOMAIN_NAME)
    raw = _with_linux(spec, "sysctl", settings)
    return spec.replace(raw={**raw, "domainname": spec.raw.get("domainname") or name})


def on_host_network(spec: Spec) -> bool:
    """Whether the spec asks for the host's network.

    A spec that doesn't speak of namespaces at all asks for nothing.
    """
    if spec.annotations.get(_CRIO_HOST_NETWORK) == _TRUE:
        return True
    if not spec.namespaces:
        return False
    if "network" not in spec.namespaces:
        return True
    if not spec.netns_path:
        return False
    try:
        named, own = os.stat(spec.netns_path), os.stat(_OWN_NETNS)
    except OSError:
        return False  # whoever enters it reports it
    return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)


def _check_network(config: RunscConfig) -> None:
    """The operator's flag forbids the host's network: ``none`` is an answer, a sandbox isn't."""
    if config.flag("network") == "sandbox":
        raise InvalidRequest(
            "config.json: linux.namespaces",
            "asks for the host's network, and runsc_config sets network = sandbox",
        )


def _check(spec: Spec, linux: Fields, generation: Generation) -> tuple[str, ...]:
    """Refuse what can't be given; returns what may be left out."""
    notes = []
    if spec.namespaces:
        if "ipc" not in spec.namespaces:
            raise Unsupported("the host's IPC namespace can't be given to a gVisor sandbox")
        if "pid" not in spec.namespaces and spec.container_type != "container":
            notes.append("no processes of the host: a sandbox has a PID namespace of its own")
    process = Fields(spec.raw["process"], "config.json", "process")
    if process.text("selinuxLabel"):
        raise Unsupported("process.selinuxLabel: gVisor has no SELinux")
    if process.text("apparmorProfile"):
        notes.append("no AppArmor profile: gVisor has none")
    for part in REFUSED_PARTS:
        if spec.raw.get(part):
            raise Unsupported(f"config.json: {part}: not for a Linux container")
    parts = {"process": process.value, "process.user": process.value.get("user"), "": spec.raw}
    parts["linux"] = linux.value
    for name in UNKNOWN_FIELDS + (() if generation.knows_newer_fields else NEWER_FIELDS):
        part, _, field = name.rpartition(".")
        if (parts[part] or {}).get(field) is not None:
            notes.append(f"{name} has no effect: gVisor doesn't know it")
    for name in linux.text_mapping("sysctl"):
        if name in _TOLERATED_SYSCTLS or (name == "fs.nr_open" and generation.knows_nr_open):
            continue
        raise Unsupported(f"sysctl {name[:200]!r} can't be set in a gVisor sandbox")
    return tuple(notes)


def _known_capabilities(spec: Spec, generation: Generation) -> tuple[Spec, tuple[str, ...]]:
    """The spec without capabilities that the binary doesn't know, and a note for each of them."""
    process = spec.raw["process"]
    sets = process.get("capabilities")
    if not sets:
        return spec, ()
    names = NAMES if generation.knows_newer_capabilities else NAMES[: NAMES.index("CAP_PERFMON")]
    unknown: list[str] = []
    kept = dict(sets)
    for kind in CAPABILITY_SETS:
        unknown += [name for name in sets.get(kind) or () if name not in names]
        if sets.get(kind):
            kept[kind] = [name for name in sets[kind] if name in names]
    if not unknown:
        return spec, ()
    raw = {**spec.raw, "process": {**process, "capabilities": kept}}
    return spec.replace(raw=raw), tuple(
        f"no capability {name[:100]!r}: not known" for name in dict.fromkeys(unknown)
    )


def _plain_options(spec: Spec) -> Spec:
    """Recursive mount options in the words that the sentry knows."""
    if not any(option in _RECURSIVE for mount in spec.mounts for option in mount.options):
        return spec
    raws = []
    for mount, raw in zip(spec.mounts, spec.raw["mounts"], strict=True):
        if any(option in _RECURSIVE for option in mount.options):
            raw = {**raw, "options": _translated(mount.options)}
        raws.append(raw)
    return with_mounts(spec, raws)


def _translated(options: tuple[str, ...]) -> list[str]:
    result = [_RECURSIVE.get(option, option) for option in options]
    # A recursive option goes for the whole tree whatever the plain ones say of its top.
    for pair in _OPPOSITES:
        recursive = [_RECURSIVE[o] for o in options if _RECURSIVE.get(o) in pair]
        if recursive:
            result = [o for o in result if o not in pair] + [recursive[-1]]
    return result


def _with_linux(spec: Spec, name: str, value: object) -> dict[str, object]:
    return {**spec.raw, "linux": {**spec.raw["linux"], name: value}}
