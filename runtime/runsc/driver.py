"""How the gofer and the sentry of a given release are started and spoken to.

All that differs between releases of runsc and concerns their start is behind :class:`Driver`:
command lines, namespaces, credentials, and the names and arguments of calls.  Everything here is
a pure decision; ``gofer.py``, ``sentry.py`` and ``control.py`` act on it.  The rules are those of
gVisor's ``runsc/sandbox/sandbox.go`` and ``runsc/container/container.go`` at each release.
"""

from __future__ import annotations

import os

from runtime.base.errors import Failed, Unsupported
from runtime.base.log import get_logger
from runtime.base.record import Record
from runtime.bundle.capabilities import SETPCAP, SYS_ADMIN, SYS_CHROOT, SYS_PTRACE
from runtime.runsc import member_conf, sidecars
from runtime.runsc.command_line import Command, CommandLine
from runtime.runsc.config import find_binary
from runtime.runsc.donated_files import Donated
from runtime.runsc.flags import check_flags, read_settings, unknown_flags
from runtime.runsc.program import Program, is_program_of, probe_program, program_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    from runtime.bundle.process_spec import ProcessSpec
    from runtime.bundle.spec import Spec
    from runtime.runsc.config import RunscConfig
    from runtime.runsc.flags import Settings
    from runtime.runsc.release import Generation

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

_log = get_logger("driver")

_NOBODY = 65534
_ALL_IDS = 0xFFFF_FFFF
_EXEC_TIMEOUT_NS = 600_000_000_000
_LEAST_CPUS = 2

#: What a mount or root file system is served by, and what is laid over it, in Go's numbers.
_LOWER = {"none": 0, "lisafs": 1, "erofs": 2}
_UPPER = {"none": 0, "memory": 1, "self": 2, "anon": 3}


class MountConf(Record):
    """How one gofer mount is made up: ``lower`` serves it, ``upper`` takes its changes."""

    lower: str = "lisafs"
    upper: str = "none"
    #: What ``upper`` may hold, as tmpfs's option has it; empty for no bound.
    size: str = ""

    def __str__(self) -> str:
        size = f":size={self.size}" if self.size else ""
        return f"{self.lower}:{self.upper}{size}"

    def to_json(self) -> dict[str, Any]:
        """In runsc's form."""
        size = {"size": self.size} if self.size else {}
        return {"lower": self.lower_number, "upper": self.upper_number, **size}

    @property
    def lower_number(self) -> int:
        """Go's number of ``lower``."""
        return _LOWER[self.lower]

    @property
    def upper_number(self) -> int:
        """Go's number of ``upper``."""
        return _UPPER[self.upper]


class Credentials(Record):
    """As whom a gofer or a sentry runs, and in which user namespace."""

    #: ``""`` for the shim's own, ``spec`` for the spec's, or a new one: ``identity``, ``nobody``.
    user_namespace: str = ""
    uid: int | None = None
    gid: int | None = None
    ambient: int = 0
    #: Whether the sentry narrows its capabilities by the spec, as it does unless it is nobody.
    apply_caps: bool = False

    @property
    def owner(self) -> tuple[int, int]:
        """The user and group that stdio must belong to."""
        return self.uid or 0, self.gid or 0


class GoferCommand(Record):
    """What a gofer's command line is made of; descriptors are the shim's."""

    container_id: str
    bundle: str
    spec_fd: int
    mounts_fd: int
    io_fds: tuple[int, ...]
    confs: tuple[MountConf, ...]
    rpc_fd: int = -1
    device_io_fd: int = -1
    files: Donated = Donated()


class BootCommand(Record):
    """What a sentry's command line is made of; descriptors are the shim's."""

    sandbox_id: str
    bundle: str
    credentials: Credentials
    spec_fd: int
    mounts_fd: int
    controller_fd: int
    start_sync_fd: int
    io_fds: tuple[int, ...]
    filestore_fds: tuple[int, ...]
    stdio: tuple[int, int, int]
    confs: tuple[MountConf, ...]
    total_memory: int
    host_memory: int
    device_fd: int = -1
    #: A ring for what the sentry would be slow to let go of.
    pin_ring_fd: int = -1
    device_io_fd: int = -1
    nvidia_driver: str = ""
    cpu_count: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    attached: bool = False
    user_log_fd: int = -1
    #: What file systems are restored from, and what a program may save them to.
    restored_files: tuple[int, ...] = ()
    saved_files: tuple[int, ...] = ()
    #: Files for the container's init: its number to ours.
    pass_fds: Mapping[int, int] = {}
    files: Donated = Donated()


if TYPE_CHECKING:

    class Driver(Protocol):
        """What depends on runsc's generation.  All methods are pure and thread-safe."""

        generation: Generation

        def credentials(self, spec: Spec, config: RunscConfig) -> tuple[int, int]:
            """The user and group of the sandbox, to whom stdio is to belong."""

        def settings(self, config: RunscConfig, spec: Spec | None) -> Settings:
            """The flags by which the shim acts."""

        def sandbox_credentials(self, settings: Settings, spec: Spec) -> Credentials: ...
        def gofer_credentials(self, settings: Settings, spec: Spec) -> Credentials: ...
        def sandbox_namespaces(self, settings: Settings, spec: Spec) -> int:
            """CLONE_NEW* of the namespaces that are always new, without the user namespace."""

        def gofer_namespaces(self) -> int: ...
        @property
        def gofer_program(self) -> tuple[str, tuple[int, ...]]:
            """``path`` and ``keep`` of a gofer's SpawnSpec: the file that the driver is for."""

        @property
        def gofer_session(self) -> bool:
            """Whether the gofer leads a session of its own."""

        def boot_environment(self, flags: Mapping[str, str]) -> dict[str, str]:
            """The sentry's environment; ``flags`` are the operator's."""

        def gofer_command(self, root: str, settings: Settings, wanted: GoferCommand) -> Command: ...
        def boot_command(self, root: str, settings: Settings, wanted: BootCommand) -> Command: ...
        @property
        def abstract_sockets(self) -> bool:
            """Whether runsc's commands look for control sockets under abstract names."""

        @property
        def network_methods(self) -> Sequence[str]:
            """The network call's names, to be tried in this order."""

        @property
        def pause_methods(self) -> Sequence[str]: ...
        @property
        def resume_methods(self) -> Sequence[str]: ...
        def event_argument(self, container_id: str) -> object: ...
        def execute_argument(
            self, container_id: str, process: ProcessSpec, terminal: bool
        ) -> dict[str, Any]: ...
        def start_subcontainer_argument(
            self,
            container_id: str,
            spec: Mapping[str, Any],
            settings: Settings,
            confs: Sequence[MountConf],
            filestores: int,
            devices: bool = False,
        ) -> dict[str, Any]: ...
        def checkpoint_argument(
            self, sandbox_id: str, compression: str, *, paged: bool, leave_running: bool
        ) -> dict[str, Any]: ...
        def restore_argument(
            self, sandbox_id: str, *, paged: bool, device: bool
        ) -> dict[str, Any]: ...


def find_driver(config: RunscConfig, cache_dir: str, running: int = 0) -> Driver:
    """The driver for the configured binary; asks an unknown binary what it can.

    ``running`` is the pid of a gofer of the sandbox that is to be driven: its program is taken
    where the configured file is another by now.

    Raises Failed (no such binary, or a sentry of another release), Unsupported (not a runsc that
    can be driven), InvalidRequest (a configured flag that it doesn't know).
    """
    binary = path = find_binary(config.binary)
    if running and not is_program_of(running, binary):
        path = program_of(running)
    generation, program = probe_program(path, cache_dir)
    if path != binary:
        named = binary if generation.boot_binary == path else generation.boot_binary
        generation = generation.replace(binary=binary, boot_binary=named)
    check_flags(config, generation)
    unknown = unknown_flags(config)
    if unknown:
        _log.warning("flags.passed_on_unknown", flags=unknown, runsc=generation.version)
    driver = DirectDriver(generation, os.environ.get(sidecars.RELEASE_VARIABLE, ""), program)
    _check_sentry(config, driver)
    return driver


def _check_sentry(config: RunscConfig, driver: DirectDriver) -> None:
    """Refuse a sentry that wouldn't run, and log one that is less than what a release holds."""
    found = driver.generation
    if found.boot_binary != found.binary:
        matches = sidecars.require_match(
            found.binary,
            found.version,
            found.boot_binary,
            found.boot_version,
            driver.boot_environment(config.flags)[sidecars.RELEASE_VARIABLE],
        )
        if not matches:
            _log.warning(
                "sidecar.mismatched",
                path=found.boot_binary,
                version=found.boot_version,
                runsc=found.version,
            )
        return
    sentry = sidecars.find_sentry(found.binary)
    if sidecars.is_required(config.flags, found.global_flags):
        raise Failed(f"{sentry.path}, which is to boot sandboxes, is of no use: {sentry.fault}")
    if os.path.lexists(sentry.path):
        _log.warning("sidecar.passed_over", path=sentry.path, why=sentry.fault)


class DirectDriver:
    """Starts ``runsc gofer`` and ``runsc boot`` itself and speaks with the sentry itself."""

    def __init__(
        self,
        generation: Generation,
        release_override: str = "",
        program: Program | None = None,
    ) -> None:
        """``release_override`` is the operator's own word on the check of the sentry's release.

        ``program`` is the file of the generation's binary, which may be replaced meanwhile.
        """
        self.generation = generation
        self._release_override = release_override
        self._program = program

    @property
    def gofer_program(self) -> tuple[str, tuple[int, ...]]:
        program, named = self._program, self.generation.binary
        return program.to_execute(named) if program is not None else (named, ())

    def settings(self, config: RunscConfig, spec: Spec | None) -> Settings:
        return read_settings(config, self.generation, spec)

    # -- credentials and namespaces --------------------------------------------------------

    def credentials(self, spec: Spec, config: RunscConfig) -> tuple[int, int]:
        return self.sandbox_credentials(self.settings(config, spec), spec).owner

    def sandbox_credentials(self, settings: Settings, spec: Spec) -> Credentials:
        if settings.network == "host" or settings.directfs:
            # It opens files, or sockets, itself: root, in a user namespace where possible.
            kind = _own_user_namespace(settings, spec)
            root = 0 if kind else None
            return Credentials(user_namespace=kind, uid=root, gid=root, apply_caps=True)
        ambient = SYS_ADMIN | SYS_CHROOT
        if self.generation.directfs:
            ambient |= SETPCAP
        if self.generation.gofer_rpc and (
            settings.platform or self.generation.default_platform
        ) in ("ptrace", "systrap"):
            ambient |= SYS_PTRACE
        return Credentials(user_namespace="nobody", uid=_NOBODY, gid=_NOBODY, ambient=ambient)

    def gofer_credentials(self, settings: Settings, spec: Spec) -> Credentials:
        kind = _own_user_namespace(settings, spec)
        root = 0 if kind else None
        return Credentials(user_namespace=kind, uid=root, gid=root)

    def sandbox_namespaces(self, settings: Settings, spec: Spec) -> int:
        # Always a PID namespace, although old releases make one for KVM only: when the sentry
        # is gone, so is every process that it made.
        flags = CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID
        if settings.network == "none":
            return flags | CLONE_NEWNET
        if settings.network == "sandbox" and not spec.netns_path:
            return flags | CLONE_NEWNET
        if "network" in spec.namespaces and not spec.netns_path:
            return flags | CLONE_NEWNET
        return flags

    def gofer_namespaces(self) -> int:
        return CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWUTS

    @property
    def gofer_session(self) -> bool:
        return self.generation.directfs

    # -- command lines ---------------------------------------------------------------------

    def boot_environment(self, flags: Mapping[str, str]) -> dict[str, str]:
        # Old releases inherit the environment; nothing of the shim's is the sandbox's business.
        found = self.generation
        env = {}
        if flags.get("platform") == "kvm":
            env["GODEBUG"] = "asyncpreemptoff=1"
        if found.boot_binary != found.binary:
            env[sidecars.RELEASE_VARIABLE] = sidecars.release_value(
                found.version, flags, found.global_flags, self._release_override
            )
        return env

    def _flags(self, settings: Settings) -> Mapping[str, str]:
        """The flags for a command line: with the container's overrides, which older ones add."""
        return settings.flags if self.generation.reads_overrides else settings.effective

    def gofer_command(self, root: str, settings: Settings, wanted: GoferCommand) -> Command:
        line = CommandLine("runsc-gofer", root, self._flags(settings))
        line.give_all(wanted.files.everywhere)
        line.add("gofer", f"--bundle={wanted.bundle}")
        if self.generation.mount_confs:
            line.add("--gofer-mount-confs=" + ",".join(map(str, wanted.confs)))
        line.give("spec-fd", wanted.spec_fd)
        line.give("mounts-fd", wanted.mounts_fd)
        line.give_all(wanted.files.of_command)
        if self.generation.gofer_rpc:
            line.give("rpc-fd", wanted.rpc_fd)
        for fd in wanted.io_fds:
            line.give("io-fds", fd)
        if wanted.device_io_fd >= 0:
            line.give("dev-io-fd", wanted.device_io_fd)
        if self.generation.gofer_takes_id:
            # Never to older ones: flags that they add behind it for themselves aren't parsed.
            line.add(wanted.container_id)
        return line.command()

    def boot_command(self, root: str, settings: Settings, wanted: BootCommand) -> Command:
        line = CommandLine("runsc-sandbox", root, self._flags(settings))
        line.give_all(wanted.files.everywhere)
        line.add("boot", f"--bundle={wanted.bundle}")
        for fd in wanted.io_fds:
            line.give("io-fds", fd)
        if wanted.device_io_fd >= 0:
            line.give("dev-io-fd", wanted.device_io_fd)
        if wanted.nvidia_driver:
            line.add(f"--nvidia-driver-version={wanted.nvidia_driver}")
        for fd in wanted.filestore_fds:
            name = (
                "gofer-filestore-fds"
                if self.generation.names_gofer_filestores
                else "overlay-filestore-fd"
            )
            line.give(name, fd)
        if wanted.mounts_fd >= 0:  # a gofer resolves their destinations
            line.give("mounts-fd", wanted.mounts_fd)
        line.give("start-sync-fd", wanted.start_sync_fd)
        if self.generation.mount_confs:
            line.add("--gofer-mount-confs=" + ",".join(map(str, wanted.confs)))
        line.give("controller-fd", wanted.controller_fd)
        line.give("spec-fd", wanted.spec_fd)
        if wanted.device_fd >= 0:
            line.give("device-fd", wanted.device_fd)
        if wanted.pin_ring_fd >= 0:
            line.give("pin-ring-fd", wanted.pin_ring_fd)
        if self.generation.pid_namespace_flag:
            line.add("--pidns=true")
        if wanted.credentials.apply_caps:
            line.add("--apply-caps=true")
        line.add("--setup-root")
        for fd in wanted.stdio:
            line.give("stdio-fds", fd)
        if "total-host-memory" in self.generation.boot_flags:
            line.add(f"--total-host-memory={wanted.host_memory}")
        cpus = self._cpu_count(settings, wanted)
        if cpus:
            line.add(f"--cpu-num={cpus}")
        if "cpu-quota" in self.generation.boot_flags and wanted.cpu_quota and wanted.cpu_period:
            line.add(f"--cpu-quota={wanted.cpu_quota}", f"--cpu-period={wanted.cpu_period}")
        line.add(f"--total-memory={wanted.total_memory}")
        if wanted.attached:
            line.add("--attached")
        if wanted.user_log_fd >= 0:
            line.give("user-log-fd", wanted.user_log_fd)
        for fd in wanted.restored_files:
            line.give("fs-restore-fds", fd)
        for fd in wanted.saved_files:
            line.give("fs-save-fds", fd)
        line.give_all(wanted.files.of_command)
        if wanted.files.samples_to_stdout:
            line.give("profiling-metrics-fd", wanted.stdio[1])
            line.add("--profiling-metrics-fd-lossy=true")
        if wanted.pass_fds and "pass-fd" not in self.generation.boot_flags:
            raise Unsupported(f"runsc {self.generation.version} can't pass files on to a container")
        for guest, fd in sorted(wanted.pass_fds.items()):
            line.give_as("pass-fd", fd, str(guest))
        line.add(wanted.sandbox_id)
        return line.command()

    def _cpu_count(self, settings: Settings, wanted: BootCommand) -> int | None:
        """How many CPUs the sandbox shows: the cpuset's, or as few as the quota pays for.

        Never fewer than two by the quota, as gVisor has it: programs leave locks out for one.
        """
        count, quota, period = wanted.cpu_count, wanted.cpu_quota, wanted.cpu_period
        default = self.generation.global_flags.get("cpu-num-from-quota") == "true"
        if not (count and quota and period and settings.boolean("cpu-num-from-quota", default)):
            return count
        return min(count, max(-(-quota // period), _LEAST_CPUS))

    # -- calls -----------------------------------------------------------------------------

    @property
    def abstract_sockets(self) -> bool:
        return not self.generation.path_sockets

    @property
    def network_methods(self) -> Sequence[str]:
        # A call that isn't registered costs one exchange and changes nothing.
        new, old = "containerManager.SetNetworkArgs", "Network.CreateLinksAndRoutes"
        return (new, old) if self.generation.network_by_container_manager else (old, new)

    @property
    def pause_methods(self) -> Sequence[str]:
        new, old = "containerManager.Pause", "Lifecycle.Pause"
        return (new, old) if self.generation.pauses_by_container_manager else (old, new)

    @property
    def resume_methods(self) -> Sequence[str]:
        new, old = "containerManager.Resume", "Lifecycle.Resume"
        return (new, old) if self.generation.pauses_by_container_manager else (old, new)

    def event_argument(self, container_id: str) -> object:
        return container_id if self.generation.event_takes_id else None

    def execute_argument(
        self, container_id: str, process: ProcessSpec, terminal: bool
    ) -> dict[str, Any]:
        # Fields that a release doesn't know are ignored by it.
        caps = process.capabilities
        return {
            "filename": process.executable,
            "argv": list(process.args),
            "envv": list(process.env),
            "wd": process.cwd,
            "KUID": process.uid,
            "KGID": process.gid,
            "ExtraKGIDs": list(process.additional_gids),
            "Capabilities": None
            if caps is None
            else {
                "PermittedCaps": caps.permitted,
                "InheritableCaps": caps.inheritable,
                "EffectiveCaps": caps.effective,
                "BoundingCaps": caps.bounding,
                "AmbientCaps": caps.ambient,
            },
            "NoNewPrivileges": process.no_new_privileges,
            "StdioIsPty": terminal,
            "SupportTTYs": True,
            "GuestFDs": [0, 1, 2],
            "ContainerID": container_id,
        }

    def start_subcontainer_argument(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        settings: Settings,
        confs: Sequence[MountConf],
        filestores: int,
        devices: bool = False,
    ) -> dict[str, Any]:
        argument: dict[str, Any] = {
            "Spec": spec,
            "Conf": member_conf.of(settings, self.generation.global_flags),
            "CID": container_id,
        }
        if self.generation.mount_confs:
            argument["NumGoferFilestoreFDs"] = filestores
            argument["IsDevIoFilePresent"] = devices
            argument["IsRootfsUpperTarFilePresent"] = False
            argument["GoferMountConfs"] = [conf.to_json() for conf in confs]
        return argument

    def checkpoint_argument(
        self, sandbox_id: str, compression: str, *, paged: bool, leave_running: bool
    ) -> dict[str, Any]:
        if not self.generation.saves_by_options:
            return {"key": None, "metadata": None}
        return {
            "key": None,
            "metadata": {"compression": compression},
            "have_pages_file": paged,
            "Resume": leave_running,
            # The time that a program of the container's would get, which none is asked for.
            "ExecOpts": {"Argv": "", "Timeout": _EXEC_TIMEOUT_NS, "ContainerID": sandbox_id},
            # From release-20260817's generation on; the sentry puts it in the image.
            "runsc_version": self.generation.version,
        }

    def restore_argument(self, sandbox_id: str, *, paged: bool, device: bool) -> dict[str, Any]:
        if not self.generation.saves_by_options:
            return {"SandboxID": sandbox_id}
        return {
            "SandboxID": sandbox_id,
            "HavePagesFile": paged,
            "HaveDeviceFile": device,
            "Background": False,
        }


def _own_user_namespace(settings: Settings, spec: Spec) -> str:
    if "user" in spec.namespaces:
        return "spec"
    return "identity" if settings.directfs and settings.network != "host" else ""


def user_maps(kind: str, spec: Spec) -> tuple[Sequence[tuple[int, int, int]], ...]:
    """The uid and gid maps of a new user namespace, as (inside, outside, count)."""
    if kind == "nobody":
        one = ((_NOBODY, _NOBODY, 1),)
        return one, one
    if kind == "identity":
        everyone = ((0, 0, _ALL_IDS),)
        return everyone, everyone
    return tuple(
        tuple((m.container_id, m.host_id, m.size) for m in maps)
        for maps in (spec.uid_mappings, spec.gid_mappings)
    )
