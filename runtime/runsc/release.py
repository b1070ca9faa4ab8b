"""What a given runsc binary can do, learnt from its own help texts.

gVisor promises nothing about the interface between ``runsc create`` and its helper processes, and
its version strings don't tell what a build contains.  Its help does: it names every flag.
Owns asking the binary, the cache of the answers, and reading them.  ``driver.py`` decides what
follows for starting a sandbox.
"""

from __future__ import annotations

import os
import stat
import time

from runtime.base import fastjson
from runtime.base.cleanup_steps import Steps
from runtime.base.errors import DeadlineExceeded, Unsupported
from runtime.base.record import Record
from runtime.host.children import describe_status
from runtime.host.spawn_spec import SpawnSpec
from runtime.runsc.sidecars import find_sentry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.host.run import Run

#: Seconds in which a help text must be there.
PROBE_TIMEOUT = 10.0
_FORMAT = 3  # of the cache; raised when the meaning of a field changes
_MAX_OUTPUT = 1 << 20
_MAX_CACHE = 1 << 20

# Without these a binary isn't a runsc that can be driven at all.
_REQUIRED_BOOT = frozenset(
    (
        "apply-caps",
        "attached",
        "bundle",
        "controller-fd",
        "io-fds",
        "mounts-fd",
        "setup-root",
        "spec-fd",
        "start-sync-fd",
        "stdio-fds",
        "total-memory",
    )
)
_REQUIRED_GOFER = frozenset(("bundle", "io-fds", "mounts-fd", "spec-fd"))


class Generation(Record):
    """A release's abilities.  Flags are named without dashes."""

    #: The runsc, which is also every gofer's program.
    binary: str
    version: str
    #: What boots a sandbox, and its version: a sentry of its own beside runsc, or runsc itself.
    boot_binary: str
    boot_version: str
    boot_flags: frozenset[str]
    gofer_flags: frozenset[str]
    #: Global flags with their defaults as printed; empty where help shows none.
    global_flags: Mapping[str, str]
    #: Whether ``gofer`` takes the container's id (since release-20260520).
    gofer_takes_id: bool

    # What the help shows by itself.

    @property
    def mount_confs(self) -> bool:
        """Whether each gofer mount is described by a flag (since release-20231016)."""
        return "gofer-mount-confs" in self.gofer_flags

    @property
    def gofer_rpc(self) -> bool:
        """Whether the gofer insists on a socket to ask for mounts (since release-20241118)."""
        return "rpc-fd" in self.gofer_flags

    @property
    def directfs(self) -> bool:
        """Whether the sentry can open the container's files by itself (since release-20230306)."""
        return "directfs" in self.global_flags

    @property
    def saves_files(self) -> bool:
        """Whether file systems can be saved alone, and put into fresh containers (2026)."""
        return {"fs-restore-fds", "fs-save-fds"} <= self.boot_flags

    @property
    def pid_namespace_flag(self) -> bool:
        """Whether boot must be told of a PID namespace of its own (until release-20240916)."""
        return "pidns" in self.boot_flags

    @property
    def pins_files(self) -> bool:
        """Whether the sentry puts what it is slow to let go of in a ring (since August 2026)."""
        return "pin-ring-fd" in self.boot_flags

    @property
    def sorts_routes(self) -> bool:
        """Whether netstack looks for the longest prefix (since release-20240715).

        The help tells of a flag that came with the same release, a day later.
        """
        return "app-huge-pages" in self.global_flags

    # What the help doesn't show: told from the nearest mark that it does.  First what is told
    # from mount configurations (release-20231016).

    @property
    def event_takes_id(self) -> bool:
        """Whether the Event call wants a container's id (since release-20230731)."""
        return self.mount_confs

    @property
    def path_sockets(self) -> bool:
        """Whether runsc looks for control sockets in the file system (since release-20230920).

        The nearest that the help tells of is four weeks younger.  Builds between are taken for
        old ones, whose sandboxes only their own commands don't find.
        """
        return self.mount_confs

    @property
    def pauses_by_container_manager(self) -> bool:
        """Whether Pause and Resume are the container manager's, no longer Lifecycle's."""
        return self.mount_confs

    @property
    def names_gofer_filestores(self) -> bool:
        """Whether boot's flag for filestores is named after gofers, not after the overlay."""
        return self.mount_confs

    @property
    def saves_by_options(self) -> bool:
        """Whether Checkpoint and Restore take options: compression, pages files, a program."""
        return self.mount_confs

    @property
    def restores_under_new_id(self) -> bool:
        """Whether a restored sentry knows its processes by the new id, not by the saved one."""
        return self.mount_confs

    @property
    def mounts_cgroups(self) -> bool:
        """Whether the sentry mounts a spec's cgroup file systems, and counts by them."""
        return self.mount_confs

    @property
    def has_newer_proc_files(self) -> bool:
        """Whether the sentry has the files of /proc and /sys that masked_paths.py calls newer."""
        return self.mount_confs

    @property
    def knows_volume_options(self) -> bool:
        """Whether a volume's annotations may be a tmpfs's with options (size, owner)."""
        return self.mount_confs

    @property
    def knows_newer_capabilities(self) -> bool:
        """Whether capabilities from CAP_PERFMON on are known."""
        return self.mount_confs

    @property
    def knows_nr_open(self) -> bool:
        """Whether the sysctl fs.nr_open is there."""
        return self.mount_confs

    @property
    def overlay_in_plain_path(self) -> bool:
        """Whether overlay2's medium may be a directory's plain path, not only ``dir=/path``."""
        return not self.mount_confs

    @property
    def lets_override_2024(self) -> bool:
        """Whether a container may override the flags that came with mount configurations."""
        return self.mount_confs

    # What is told from the gofer's taking an id (release-20260520).

    @property
    def network_by_container_manager(self) -> bool:
        """Whether the network is told by the container manager's SetNetworkArgs."""
        return self.gofer_takes_id

    @property
    def filters_execs(self) -> bool:
        """Whether an exec gets its container's system call filter (since release-20260330).

        The nearest that the help tells of is seven weeks younger; builds between do, unasked.
        """
        return self.gofer_takes_id

    @property
    def reads_overrides(self) -> bool:
        """Whether gofer and sentry read the flags that a spec's annotations set by themselves.

        Until release-20260520's generation, of which the help tells.
        """
        return not self.gofer_takes_id

    @property
    def makes_no_cwd_in_readonly_root(self) -> bool:
        """Whether a working directory that isn't there makes a read-only container fail.

        The sentry makes it itself, and fails at it, in the generation whose gofer takes an id.
        """
        return self.gofer_takes_id

    @property
    def saves_without_execs(self) -> bool:
        """Whether a checkpoint while execs run leaves them out of the image."""
        return self.gofer_takes_id

    @property
    def mounts_cgroup2(self) -> bool:
        """Whether the sentry mounts file systems of type cgroup2."""
        return self.gofer_takes_id

    @property
    def knows_newer_fields(self) -> bool:
        """Whether a spec's umask and domain name have an effect."""
        return self.gofer_takes_id

    @property
    def bounds_overlays(self) -> bool:
        """Whether an overlay may have a size (since release-20250611).

        The nearest that the help tells of is a year younger; for builds between it is refused.
        """
        return self.gofer_takes_id

    @property
    def lets_override_2026(self) -> bool:
        """Whether a container may override the flags of release-20260520's list."""
        return self.gofer_takes_id

    @property
    def default_platform(self) -> str:
        """The platform that is used if the operator names none."""
        return self.global_flags.get("platform", "")


def parse_help(text: str) -> tuple[str, dict[str, str]]:
    """The usage line and the flags with their defaults, from a help text of Go's ``flag``.

    The first flag of a subcommand stands on the usage line itself, for want of a line break.
    """
    usage = ""
    flags: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        start = line.find("  -")
        if start >= 0 and not line.startswith("    "):
            if start:
                usage = usage or line[:start]
            name = line[start + 3 :].split(None, 1)[0] if line[start + 3 :].strip() else ""
            if name:
                flags[name] = ""
        elif not line.startswith((" ", "\t")):
            usage = usage or line
            name = ""
        if name and line.endswith(")"):
            at = line.rfind("(default ")
            if at >= 0:
                flags[name] = line[at + 9 : -1].strip('"')
    return usage, flags


def probe(binary: str, cache_dir: str) -> Generation:
    """The generation of the runsc at ``binary``, an absolute path.

    Asked once and then remembered in ``cache_dir`` for as long as the identity (device, inode,
    size, time of change) of the file, and of the sentry beside it, stays.  A cache that can't be
    read or written costs time only.  Blocks for up to PROBE_TIMEOUT.  Raises Unsupported if the
    binary isn't a usable runsc or lacks its sentry, Failed if it can't be run, DeadlineExceeded.
    """
    sentry = find_sentry(binary)
    boot_binary = binary if sentry.fault else sentry.path
    identity = _identity(binary)
    if boot_binary != binary:
        identity += _identity(boot_binary)
    path = os.path.join(cache_dir, "runsc-" + "-".join(map(str, identity)) + ".json")
    known = _load(path, binary, boot_binary, identity)
    if known is not None:
        return known
    try:
        generation = _ask(binary, boot_binary)
    except _NoBoot:
        raise Unsupported(
            f"{binary} doesn't boot sandboxes itself, and the sentry that belongs to it,"
            f" {sentry.path}, is of no use: {sentry.fault}"
        ) from None
    _store(path, cache_dir, generation, identity)
    return generation


def _identity(path: str) -> list[int]:
    info = os.stat(path)
    return [info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size]


def supported_drivers(binary: str) -> tuple[str, ...]:
    """The versions of NVIDIA's driver that a runsc knows; none where it supports no GPUs.

    Asked anew each time, as few containers have a GPU.  Blocks for up to PROBE_TIMEOUT.  Raises
    Failed if it can't be run, DeadlineExceeded.
    """
    from runtime.host.run import Run

    words = ("nvproxy", "list-supported-drivers")
    run = Run(SpawnSpec(path=binary, argv=("runsc", *words), env={}), _MAX_OUTPUT)
    try:
        text = _answer(run, f"{binary} {' '.join(words)}", time.monotonic() + PROBE_TIMEOUT)
        return tuple(text.split())
    except Unsupported:
        return ()
    finally:
        run.close()


# -- asking ------------------------------------------------------------------------------------


class _NoBoot(Exception):
    """A runsc that knows no ``boot``, as its sentry is a binary of its own."""


def _ask(binary: str, boot_binary: str) -> Generation:
    from runtime.host.run import Run

    apart = boot_binary != binary
    asked: list[tuple[str, tuple[str, ...]]] = [(boot_binary, ("help", "boot"))]
    asked += [(binary, words) for words in (("help", "gofer"), *_QUESTIONS)]
    if apart:
        asked += [(boot_binary, words) for words in _QUESTIONS]
    deadline = time.monotonic() + PROBE_TIMEOUT
    refused = None
    questions: list[tuple[Run, str]] = []
    try:
        for program, words in asked:
            run = Run(SpawnSpec(path=program, argv=("runsc", *words), env={}), _MAX_OUTPUT)
            questions.append((run, f"{program} {' '.join(words)}"))
        try:
            boot = _answer(*questions[0], deadline)
        except Unsupported as fault:
            boot, refused = "", fault
        gofer, flags, version, *others = (_answer(*each, deadline) for each in questions[1:])
    finally:
        ends = Steps()
        for run, what in questions:
            ends.run(what, run.close)
        ends.finish()
    _, boot_flags = parse_help(boot)
    gofer_usage, gofer_flags = parse_help(gofer)
    _, global_flags = parse_help(flags)
    boot_version = version
    if apart:
        # Each flag is given to both, and what the sentry takes for a default is what counts.
        defaults, boot_version = parse_help(others[0])[1], others[1]
        global_flags = {name: defaults[name] for name in global_flags if name in defaults}
    elif not (_REQUIRED_GOFER.difference(gofer_flags) or _REQUIRED_BOOT.intersection(boot_flags)):
        raise _NoBoot
    if refused is not None:
        raise refused
    missing = sorted(_REQUIRED_BOOT.difference(boot_flags)) + sorted(
        _REQUIRED_GOFER.difference(gofer_flags)
    )
    if missing or "network" not in global_flags:
        raise Unsupported(
            f"runsc binary {binary} is of an unknown generation: its help doesn't name "
            + ", ".join(f"--{name}" for name in missing or ["network"])
        )
    return Generation(
        binary=binary,
        version=_version(version),
        boot_binary=boot_binary,
        boot_version=_version(boot_version),
        boot_flags=frozenset(boot_flags),
        gofer_flags=frozenset(gofer_flags),
        global_flags=global_flags,
        gofer_takes_id="<" in gofer_usage,
    )


_QUESTIONS = (("flags",), ("--version",))


def _version(text: str) -> str:
    first = text.strip().partition("\n")[0]
    return first.removeprefix("runsc version ").strip()[:100]


def _answer(run: Run, what: str, deadline: float) -> str:
    """What it prints (``flags`` to stderr).  Raises Unsupported if it fails, DeadlineExceeded."""
    try:
        raw, text = run.result(max(deadline - time.monotonic(), 0.0))
    except DeadlineExceeded:
        raise DeadlineExceeded(what, PROBE_TIMEOUT) from None
    if raw:
        said = text.strip().partition("\n")[0][:300]
        raise Unsupported(f"{what} failed ({describe_status(raw)}): {said or 'no output'}")
    return text


# -- the cache ---------------------------------------------------------------------------------


def _load(path: str, binary: str, boot_binary: str, identity: list[int]) -> Generation | None:
    """The cached answer, if it is ours, intact and about these very files."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        # What others may write decides what we run: don't believe it.
        if info.st_uid != os.geteuid() or info.st_mode & 0o022 or not stat.S_ISREG(info.st_mode):
            return None
        data = os.read(fd, _MAX_CACHE)
    finally:
        os.close(fd)
    try:
        return _decode(fastjson.loads(data), binary, boot_binary, identity)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _decode(
    value: dict[str, Any], binary: str, boot_binary: str, identity: list[int]
) -> Generation | None:
    if value["format"] != _FORMAT or value["identity"] != identity:
        return None
    flags = {str(name): str(default) for name, default in value["global_flags"].items()}
    generation = Generation(
        binary=binary,
        version=str(value["version"]),
        boot_binary=boot_binary,
        boot_version=str(value["boot_version"]),
        boot_flags=frozenset(map(str, value["boot_flags"])),
        gofer_flags=frozenset(map(str, value["gofer_flags"])),
        global_flags=flags,
        gofer_takes_id=value["gofer_takes_id"] is True,
    )
    intact = not (
        _REQUIRED_BOOT - generation.boot_flags or _REQUIRED_GOFER - generation.gofer_flags
    )
    return generation if intact else None


def _store(path: str, cache_dir: str, generation: Generation, identity: list[int]) -> None:
    value = {
        "format": _FORMAT,
        "identity": identity,
        "version": generation.version,
        "boot_version": generation.boot_version,
        "boot_flags": sorted(generation.boot_flags),
        "gofer_flags": sorted(generation.gofer_flags),
        "global_flags": dict(generation.global_flags),
        "gofer_takes_id": generation.gofer_takes_id,
    }
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(cache_dir, mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(fastjson.dumps(value))
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        return  # the next start asks again
