"""``doctor``: what works on this host and what doesn't, each with what to do about it.

Owns the checks.  Each is a pure judgement of facts that :func:`gather` collects, so that tests can
have any host they like.
"""

from __future__ import annotations

import os
import sys

from runtime.base.errors import RuntimeFault
from runtime.base.record import Record
from runtime.base.version import VERSION
from runtime.cli import output
from runtime.cli.insight import shims
from runtime.host import forkservers, open_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from runtime.runsc.release import Generation

OK, WARNING, FAILURE = "ok", "warning", "failure"
_MARKS = {OK: "ok", WARNING: "warn", FAILURE: "FAIL"}
#: What is said of a sandbox's shim.
_AGES = {
    shims.OLDER: f"older than {VERSION}",
    shims.NEWER: f"newer than {VERSION}",
    shims.ELSEWHERE: "from another folder than this gvctl",
}
_ASK_TIMEOUT = 10.0
_MAX_OUTPUT = 1 << 16
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Capabilities by number: what the runtime cannot do without, and what it can.
_NEEDED = {
    0: "CAP_CHOWN", 5: "CAP_KILL", 6: "CAP_SETGID", 7: "CAP_SETUID", 8: "CAP_SETPCAP",
    12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW", 18: "CAP_SYS_CHROOT", 19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN",
}  # fmt: skip
_SYS_RESOURCE = 24
_MIN_KERNEL = (5, 4)
#: Fewer descriptors than that are few for a pod of many containers.
_MIN_FILES = 4096
SHIM = "containerd-shim-gvisor-v2"


class Facts(Record):
    """A host as it was found.  Empty or None: there is none, or it doesn't tell."""

    system: str = "Linux"
    machine: str = "x86_64"
    kernel: str = ""
    uid: int = 0
    capabilities: int = 0
    runsc: str = ""
    runsc_version: str = ""
    runsc_fault: str = ""
    #: The sentry's own binary, where it has one or is to have one.
    sentry: str = ""
    sentry_version: str = ""
    sentry_fault: str = ""
    #: The folder above what boots sandboxes that only its owner may enter.
    closed_folder: str = ""
    default_platform: str = ""
    configured_platform: str = ""
    shim: str = ""
    #: Each fork server in words.
    fork_servers: tuple[str, ...] = ()
    #: What the shim of each sandbox that runs says.
    sandboxes: tuple[shims.Told, ...] = ()
    containerd: str = ""
    containerd_release: str = ""
    cgroup_mode: str = ""
    cgroup_controllers: tuple[str, ...] = ()
    cgroup_fault: str = ""
    systemd: bool = False
    kvm: bool | None = None
    ptrace_scope: int | None = None
    seccomp: bool = True
    user_namespaces: int | None = None
    open_files: int = 0
    options_file: str = ""
    options_fault: str = ""
    network_tools: bool = True
    #: Why connections to a pod's loopback can't be led into its sandbox.
    port_forward_fault: str = ""


class Finding(Record):
    """One check's outcome.  ``advice`` is what to do; empty where all is well."""

    check: str
    level: str
    text: str
    advice: str = ""


def examine(facts: Facts) -> list[Finding]:
    """All findings, in the order in which they matter.  Pure."""
    return [
        _kernel(facts),
        _caller(facts),
        _capabilities(facts),
        _oom(facts),
        _runsc(facts),
        _sentry(facts),
        _platform(facts),
        _shim(facts),
        _fork_servers(facts),
        _sandboxes(facts),
        _containerd(facts),
        _options(facts),
        _cgroups(facts),
        _driver(facts),
        _seccomp(facts),
        _user_namespaces(facts),
        _files(facts),
        _port_forward(facts),
    ]


def _kernel(f: Facts) -> Finding:
    text = f"{f.system} {f.kernel} on {f.machine}"
    if f.system != "Linux":
        return Finding(check="kernel", level=FAILURE, text=text, advice="gVisor runs on Linux only")
    if f.machine not in ("x86_64", "aarch64"):
        advice = "gVisor is built for x86_64 and aarch64 only"
        return Finding(check="kernel", level=FAILURE, text=text, advice=advice)
    numbers = [int("".join(filter(str.isdigit, w)) or 0) for w in f.kernel.split(".")[:2]]
    if tuple(numbers) < _MIN_KERNEL:
        advice = "pidfds and clone3 are wanted: use Linux 5.4 or later"
        return Finding(check="kernel", level=FAILURE, text=text, advice=advice)
    return Finding(check="kernel", level=OK, text=text)


def _caller(f: Facts) -> Finding:
    if f.uid == 0:
        return Finding(check="user", level=OK, text="root")
    return Finding(
        check="user",
        level=FAILURE,
        text=f"uid {f.uid}",
        advice="run it as root: namespaces, mounts and cgroups are made as root",
    )


def _capabilities(f: Facts) -> Finding:
    missing = [name for bit, name in _NEEDED.items() if not f.capabilities >> bit & 1]
    if not missing:
        return Finding(check="capabilities", level=OK, text="all that are needed")
    return Finding(
        check="capabilities",
        level=FAILURE,
        text="without " + ", ".join(missing),
        advice="give this container or service these capabilities",
    )


def _oom(f: Facts) -> Finding:
    if f.capabilities >> _SYS_RESOURCE & 1:
        return Finding(check="oom score", level=OK, text="can be raised and lowered")
    return Finding(
        check="oom score",
        level=WARNING,
        text="can be raised, not lowered",
        advice="CAP_SYS_RESOURCE lets pods of a higher class be spared by the OOM killer",
    )


def _runsc(f: Facts) -> Finding:
    if not f.runsc:
        return Finding(
            check="runsc",
            level=FAILURE,
            text="not found",
            advice="install runsc on PATH, or name it as binary_name in the options",
        )
    if f.runsc_fault:
        return Finding(
            check="runsc",
            level=FAILURE,
            text=f.runsc_fault,
            advice="install a release from 20221219 on",
        )
    return Finding(check="runsc", level=OK, text=f"{f.runsc}, {f.runsc_version}")


def _sentry(f: Facts) -> Finding:
    if not f.runsc_version:
        return Finding(check="sentry", level=WARNING, text="unknown without runsc")
    if f.sentry_fault:
        return Finding(
            check="sentry",
            level=FAILURE,
            text=f.sentry_fault,
            advice="install gVisor's release as a whole: runsc and gvisor-bin side by side",
        )
    if f.closed_folder:
        return Finding(
            check="sentry",
            level=WARNING,
            text=f"only its owner may enter {f.closed_folder}",
            advice=f"chmod a+x {f.closed_folder}: a sentry without directfs runs as nobody",
        )
    if not f.sentry:
        return Finding(check="sentry", level=OK, text="part of runsc")
    return Finding(check="sentry", level=OK, text=f"{f.sentry}, {f.sentry_version}")


def _platform(f: Facts) -> Finding:
    platform = f.configured_platform or f.default_platform
    if not platform:
        return Finding(check="platform", level=WARNING, text="unknown without runsc")
    if platform == "kvm" and not f.kvm:
        why = "/dev/kvm is missing" if f.kvm is None else "/dev/kvm may not be opened"
        return Finding(
            check="platform",
            level=FAILURE,
            text=f"kvm, but {why}",
            advice="take platform systrap, or a machine with (nested) virtualisation",
        )
    if platform in ("ptrace", "systrap") and f.ptrace_scope == 3:
        return Finding(
            check="platform",
            level=FAILURE,
            text=f"{platform}, but ptrace is switched off",
            advice="set kernel.yama.ptrace_scope to 2 or less",
        )
    hint = ""
    if platform == "ptrace":
        hint = "systrap is faster where runsc has it (from release-20230904 on)"
    level = WARNING if hint else OK
    return Finding(check="platform", level=level, text=platform, advice=hint)


def _shim(f: Facts) -> Finding:
    if f.shim:
        return Finding(check="shim", level=OK, text=f.shim)
    return Finding(
        check="shim",
        level=WARNING,
        text=f"no {SHIM} on PATH",
        advice="containerd looks for it on its own PATH: install it in /usr/local/bin",
    )


def _fork_servers(f: Facts) -> Finding:
    text = "; ".join(f.fork_servers) or "none runs, each shim starts an interpreter"
    return Finding(check="fork server", level=OK, text=text)


def _sandboxes(f: Facts) -> Finding:
    count: dict[str, int] = {}
    for each in f.sandboxes:
        name = each.version or "unknown version"
        count[name] = count.get(name, 0) + 1
    text = ", ".join(f"{n} by shims of {name}" for name, n in sorted(count.items()))
    ages = {each.age for each in f.sandboxes}
    advice = ""
    if ages & {shims.OLDER, shims.ELSEWHERE}:
        advice = f"`gvctl upgrade --running` has their shims become {VERSION} while they run"
    elif shims.NEWER in ages:
        advice = f"this gvctl is {VERSION}: take the one that was installed with the newest shim"
    elif shims.UNKNOWN in ages:
        advice = "their shims hang, have died or are of an early version: `gvctl debug ID`"
    return Finding(
        check="sandboxes",
        level=WARNING if advice else OK,
        text=text or "none runs with a shim",
        advice=advice,
    )


def _containerd(f: Facts) -> Finding:
    if not f.containerd:
        return Finding(
            check="containerd",
            level=WARNING,
            text="not found",
            advice="none is needed for gvctl, podman and docker; for Kubernetes take 1.6 or later",
        )
    words = f.containerd_release.split(".")
    try:
        release = (int(words[0]), int(words[1]))
    except (IndexError, ValueError):
        text = f"{f.containerd} doesn't tell its version"
        return Finding(check="containerd", level=WARNING, text=text)
    text = f"{f.containerd}, {f.containerd_release}"
    if release < (1, 6):
        advice = "take containerd 1.6 or later"
        return Finding(check="containerd", level=FAILURE, text=text, advice=advice)
    return Finding(check="containerd", level=OK, text=text)


def _options(f: Facts) -> Finding:
    if f.options_fault:
        advice = "a container with these options is refused: correct the file"
        return Finding(check="options", level=FAILURE, text=f.options_fault, advice=advice)
    return Finding(check="options", level=OK, text=f.options_file or "none: defaults")


def _cgroups(f: Facts) -> Finding:
    if f.cgroup_fault or not f.cgroup_mode:
        return Finding(
            check="cgroups",
            level=FAILURE,
            text=f.cgroup_fault or "none mounted",
            advice="mount the cgroup hierarchies in /sys/fs/cgroup, writable",
        )
    wanted = {"cpu", "memory", "pids"}
    missing = sorted(wanted.difference(f.cgroup_controllers))
    if missing:
        return Finding(
            check="cgroups",
            level=WARNING,
            text=f"{f.cgroup_mode}, without {', '.join(missing)}",
            advice="limits of these kinds are refused: enable the controllers",
        )
    return Finding(check="cgroups", level=OK, text=f.cgroup_mode)


def _driver(f: Facts) -> Finding:
    if not f.systemd:
        return Finding(check="cgroup driver", level=OK, text="cgroupfs; no systemd runs here")
    return Finding(
        check="cgroup driver",
        level=OK,
        text="systemd runs; use it for kubelet and containerd alike",
    )


def _seccomp(f: Facts) -> Finding:
    if f.seccomp:
        return Finding(check="seccomp", level=OK, text="available")
    advice = "the sentry locks itself in with seccomp: use a kernel with CONFIG_SECCOMP_FILTER"
    return Finding(check="seccomp", level=FAILURE, text="not available", advice=advice)


def _user_namespaces(f: Facts) -> Finding:
    if f.user_namespaces is None or f.user_namespaces > 0:
        return Finding(check="user namespaces", level=OK, text="available")
    return Finding(
        check="user namespaces",
        level=WARNING,
        text="switched off",
        advice="set user.max_user_namespaces above 0: gofers and sentries are shut off by them",
    )


def _files(f: Facts) -> Finding:
    if f.open_files >= _MIN_FILES:
        return Finding(check="open files", level=OK, text=f"limit {f.open_files}")
    return Finding(
        check="open files",
        level=WARNING,
        text=f"limit {f.open_files}",
        advice=f"raise the limit (LimitNOFILE) to {_MIN_FILES} at least",
    )


def _port_forward(f: Facts) -> Finding:
    name = "port forwarding"
    if f.port_forward_fault:
        return Finding(
            check=name,
            level=WARNING,
            text=f.port_forward_fault,
            advice="kubectl port-forward needs Linux 5.9 with BPF, CAP_BPF and CAP_NET_ADMIN",
        )
    return Finding(check=name, level=OK, text="available")


# -- collecting ---------------------------------------------------------------------------------


def which(name: str, search: str = "") -> str:
    """The program's path; empty if PATH and the usual places have none."""
    for folder in f"{search or os.environ.get('PATH', '')}:{_SEARCH}".split(":"):
        path = os.path.join(folder, name)
        if folder.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def ask(path: str, *words: str) -> str:
    """What a program prints; empty if it can't be run, or doesn't end.  Bounded."""
    from runtime.host.run import Run
    from runtime.host.spawn_spec import SpawnSpec

    try:
        with Run(SpawnSpec(path=path, argv=(path, *words), env={}), _MAX_OUTPUT) as run:
            return run.result(_ASK_TIMEOUT)[1]
    except RuntimeFault:
        return ""


def containerd_version(text: str) -> str:
    """The release in what ``containerd --version`` prints; empty if there is none."""
    words = text.split()
    for word in words[2:3]:
        bare = word.removeprefix("v").partition("~")[0].partition("+")[0].partition("-")[0]
        if bare[:1].isdigit():
            return bare
    return ""


def found_shim() -> str:
    """The shim that was installed with this Python, or else the one on PATH; empty without one."""
    return which(SHIM, os.path.dirname(sys.executable) + ":" + os.environ.get("PATH", ""))


def gather(args: argparse.Namespace) -> Facts:
    """The facts of this host.  Raises nothing on account of what it finds."""
    from runtime.cli import settings

    system = os.uname()
    facts: dict[str, object] = {
        "system": system.sysname,
        "machine": system.machine,
        "kernel": system.release,
        "uid": os.geteuid(),
        "capabilities": _effective(),
        "shim": found_shim(),
        "fork_servers": (
            *map(forkservers.describe, forkservers.every()),
            *forkservers.given_up(),
        ),
        "sandboxes": tuple(shims.versions(args)),
        "systemd": os.path.isdir("/run/systemd/system"),
        "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK) if os.path.exists("/dev/kvm") else None,
        "ptrace_scope": _number("/proc/sys/kernel/yama/ptrace_scope"),
        "seccomp": os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        "user_namespaces": _number("/proc/sys/user/max_user_namespaces"),
        "open_files": _open_files(),
        "port_forward_fault": _port_forward_fault(),
    }
    binary = args.runsc or "runsc"
    flags: dict[str, str] = {}
    try:
        facts["options_file"], document = settings.document(args)
        binary = args.runsc or document.get("binary_name", "") or "runsc"
        flags = {**document.get("runsc_config", {}), **dict(args.flag)}
        facts["configured_platform"] = flags.get("platform", "")
    except RuntimeFault as fault:
        facts["options_fault"] = str(fault)
    facts.update(_runsc_facts(binary, flags))
    containerd = which("containerd")
    facts["containerd"] = containerd
    if containerd:
        facts["containerd_release"] = containerd_version(ask(containerd, "--version"))
    facts.update(_cgroup_facts())
    return Facts(**facts)  # type: ignore[arg-type]


def _runsc_facts(binary: str, flags: Mapping[str, str]) -> Mapping[str, object]:
    path = binary if "/" in binary else which(binary)
    if not path:
        return {}
    if not os.path.exists(path):
        return {"runsc": path, "runsc_fault": f"{path}: no such file or directory"}
    from runtime.runsc.config import CACHE_DIR
    from runtime.runsc.release import probe

    try:
        found = probe(path, CACHE_DIR)
    except (RuntimeFault, OSError) as fault:
        return {"runsc": path, "runsc_fault": str(fault)}
    return {
        "runsc": path,
        "runsc_version": found.version,
        "default_platform": found.default_platform,
        **_sentry_facts(found, flags),
    }


def _sentry_facts(found: Generation, flags: Mapping[str, str]) -> Mapping[str, object]:
    from runtime.runsc import sidecars

    closed = {"closed_folder": sidecars.closed_folder(found.boot_binary)}
    if found.boot_binary == found.binary:
        sentry = sidecars.find_sentry(found.binary)
        required = sidecars.is_required(flags, found.global_flags)
        if not required and not os.path.lexists(sentry.path):
            return closed
        return {"sentry": sentry.path, "sentry_fault": f"{sentry.path}: {sentry.fault}"}
    value = sidecars.release_value(
        found.version, flags, found.global_flags, os.environ.get(sidecars.RELEASE_VARIABLE, "")
    )
    fault = ""
    try:
        sidecars.require_match(
            found.binary, found.version, found.boot_binary, found.boot_version, value
        )
    except RuntimeFault as refused:
        fault = str(refused)
    return {
        "sentry": found.boot_binary,
        "sentry_version": found.boot_version,
        "sentry_fault": fault,
        **closed,
    }


def _cgroup_facts() -> Mapping[str, object]:
    from runtime.cgroups.factory import CgroupRoot

    try:
        root = CgroupRoot()
        mode, mounts = root.mode, root.mounts()
        if mode == "v2":
            names = tuple(root.read(f"{mounts['']}/cgroup.controllers").split())
        else:
            names = tuple(mounts)
    except (RuntimeFault, OSError, KeyError) as fault:
        return {"cgroup_fault": str(fault)}
    place = next(iter(mounts.values()), "")
    if not os.access(place, os.W_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        return {"cgroup_mode": mode, "cgroup_fault": f"{place} can't be written to"}
    return {"cgroup_mode": mode, "cgroup_controllers": names}


def _effective() -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            line = next(line for line in file if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1], 16)


def _port_forward_fault() -> str:
    from runtime.network import loopback

    try:
        loopback.check()
    except RuntimeFault as fault:
        return str(fault)
    return ""


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _open_files() -> int:
    """What a shim may have: up to the hard limit of containerd, which starts it, if that runs."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/comm", encoding="ascii", errors="replace") as file:
                if file.read().strip() != "containerd":
                    continue
            if os.stat(f"/proc/{name}").st_uid:
                continue  # anybody may call a process so
        except OSError:
            continue
        found = open_files.hard_limit(name)
        if found is not None:
            return found
    return open_files.hard_limit() or 0


def doctor_verb(args: argparse.Namespace) -> int:
    """``doctor``: ends with 1 if something doesn't work."""
    facts = gather(args)
    findings = examine(facts)
    failed = any(each.level == FAILURE for each in findings)
    if args.format == "json":
        checks = [{name: getattr(f, name) for name in f._fields} for f in findings]
        told = [{**{n: getattr(s, n) for n in s._fields}, "age": s.age} for s in facts.sandboxes]
        document = {"ok": not failed, "checks": checks, "sandboxes": told}
        output.write(output.dumps(document, indent=2))
        return int(failed)
    text = output.table(
        ("CHECK", "", "FOUND"), [(f.check, _MARKS[f.level], f.text) for f in findings]
    )
    if facts.sandboxes:
        rows = [
            (s.sandbox, s.namespace, s.version or "unknown", s.fault or _AGES.get(s.age, ""))
            for s in facts.sandboxes
        ]
        text += "\n" + output.table(("SANDBOX", "NAMESPACE", "SHIM", ""), rows)
    advice = [f"  {f.check}: {f.advice}\n" for f in findings if f.advice]
    if advice:
        text += "\nWhat to do:\n" + "".join(advice)
    output.write(text)
    return int(failed)
