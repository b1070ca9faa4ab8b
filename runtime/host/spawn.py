"""The only way in which the runtime starts processes.

Describes the process for the C part (``runtime/native/spawn.c``) and does the caller's half: id
maps, limits, the release of the child, and the error that comes back.  ``spawn_spec.py`` says what
can be asked for.  No Python code runs between fork and exec, and this process's own cgroups and
namespaces never change.
"""

from __future__ import annotations

import _socket
import os
import select
import threading
import time

from runtime._native import ffi, lib
from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.host import children, open_files
from runtime.host.children import Child, owns, reap_orphans
from runtime.host.linux import CLONE_NEWUSER
from runtime.host.pids import start_time, wait_exit
from runtime.host.spawn_spec import NAMESPACES, IdMap, SpawnSpec, check, environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ("Child", "IdMap", "SpawnSpec", "owns", "reap_orphans", "spawn", "userns")

# From the fork to the exec, in seconds; after that the child is given up and killed.
TIMEOUT = 10.0
# How long a killed child may take to go.
_KILL_TIMEOUT = 2.0
_RLIMIT_NOFILE = 7

_STEPS = {
    lib.GV_STEP_RELEASE: "wait for the caller",
    lib.GV_STEP_GID: "set group id {gid}",
    lib.GV_STEP_UID: "set user id {uid}",
    lib.GV_STEP_CAPS: "set capabilities",
    lib.GV_STEP_AMBIENT: "raise ambient capability {index}",
    lib.GV_STEP_SETSID: "start a session",
    lib.GV_STEP_MOUNTS: "keep mounts private",
    lib.GV_STEP_FD: "place file descriptor {index}",
    lib.GV_STEP_TTY: "make file descriptor {index} the controlling terminal",
    lib.GV_STEP_PDEATHSIG: "set the parent death signal",
    lib.GV_STEP_EXEC: "execute",
}


class Birth:
    """One start under way: the shared page, the socket to the child, what to undo."""

    def __init__(self, spec: SpawnSpec, env: tuple[str, ...], what: str = "") -> None:
        self.spec = spec
        self.what = what or f"spawn {spec.path}"
        self.deadline = time.monotonic() + TIMEOUT
        self._alive: list[Any] = []  # memory that the C part reads
        self._fds: list[int] = []
        self._pidfd = -1
        # What may fail without resources held comes first.
        argv = self._strings("argv", spec.argv)
        envp = self._strings("env", env)
        cgroups = self._strings("cgroup_procs", spec.cgroup_procs)
        path = self._string("path", spec.path)
        cwd = ffi.NULL if spec.cwd is None else self._string("cwd", spec.cwd)
        self.slot = lib.gv_slot_new()
        if self.slot == ffi.NULL:
            raise self.failed("share memory", ffi.errno)
        try:
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
            self._sock, self._theirs = ours.detach(), theirs.detach()
            self._fds += (self._sock, self._theirs)
            fds = dict(spec.fds)
            if not {0, 1, 2} <= fds.keys():
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                self._fds.append(null)
                fds = {0: null, 1: null, 2: null, **fds}
        except OSError as error:
            self._close_fds()
            lib.gv_slot_free(self.slot)
            raise self.failed("open descriptors", error.errno) from None
        keep = {*fds.values(), self._theirs, *spec.keep, *(fd for fd, _ in spec.join)}
        if spec.cgroup_fd is not None:
            keep.add(spec.cgroup_fd)
        self.native = ffi.new("struct gv_spec *")
        native = self.native
        native.path, native.cwd = path, cwd
        native.argv, native.envp, native.cgroup_files = argv, envp, cgroups
        native.n_cgroup_files = len(spec.cgroup_procs)
        native.fd_child = self._numbers(sorted(fds))
        native.fd_ours = self._numbers([fds[number] for number in sorted(fds)])
        native.n_fds = len(fds)
        native.keep, native.n_keep = self._numbers(sorted(keep)), len(keep)
        native.join_fds = self._numbers([fd for fd, _ in spec.join])
        native.join_types = self._numbers([kind for _, kind in spec.join])
        native.n_join = len(spec.join)
        native.cgroup_fd = -1 if spec.cgroup_fd is None else spec.cgroup_fd
        native.namespaces = spec.namespaces
        # What was raised for ourselves is not the child's.
        self._rlimits = dict(spec.rlimits)
        if open_files.inherited is not None:
            self._rlimits.setdefault(_RLIMIT_NOFILE, open_files.inherited)
        native.hold = bool(
            spec.namespaces & CLONE_NEWUSER or self._rlimits or spec.oom_score_adj is not None
        )
        native.sock = self._theirs
        native.wait_ms = int(TIMEOUT * 1500)
        native.uid = -1 if spec.uid is None else spec.uid
        native.gid = -1 if spec.gid is None else spec.gid
        native.ambient = spec.ambient_caps
        native.setsid = spec.setsid
        native.private_mounts = spec.private_mounts
        native.ctty = -1 if spec.controlling_tty is None else spec.controlling_tty
        native.pdeathsig = spec.pdeathsig
        native.drop_groups = spec.drop_groups
        native.fd_room = spec.fd_room
        native.no_membarrier = spec.no_membarrier

    # --- memory for C ---

    def _string(self, field: str, value: str) -> Any:
        raw = os.fsencode(value)
        if b"\0" in raw:
            raise InvalidRequest(field, f"has a NUL byte, to {self.what}")
        self._alive.append(ffi.new("char[]", raw))
        return self._alive[-1]

    def _strings(self, field: str, values: tuple[str, ...]) -> Any:
        pointers = [self._string(field, value) for value in values]
        self._alive.append(ffi.new("char *[]", [*pointers, ffi.NULL]))
        return self._alive[-1]

    def _numbers(self, values: list[int]) -> Any:
        self._alive.append(ffi.new("int[]", values or 1))
        return self._alive[-1]

    # --- the steps ---

    def pids(self) -> tuple[int, int]:
        """The child and the intermediate process, 0 where there's none."""
        return self.slot.pid, self.slot.helper

    def failed(self, step: str, code: int | None) -> Failed:
        """The exception for a step that failed with an errno value."""
        return Failed(f"{self.what}: {step}: {reason(code)}")

    def clone(self) -> None:
        """Make the child; it stops at its first wait.  Afterwards its pid and pidfd are known."""
        if self.spec.pdeathsig:
            # The signal comes when the thread that forked ends, even if the process goes on
            # (prctl(2)), so the fork is left to a thread that lives as long as the process.
            code = _forker.run(lambda: int(lib.gv_clone(self.native, self.slot)))
        else:
            code = lib.gv_clone(self.native, self.slot)
        self._close_fd(self._theirs)
        if code:
            self.slot.error = code
            raise self._native_error()
        if self.slot.helper:
            self._wait_helper()
        try:
            # Not reaped yet, so the number can't mean anybody else.
            self._pidfd = os.pidfd_open(self.slot.pid)
        except OSError as error:
            raise self.failed("open a pidfd", error.errno) from None

    def _wait_helper(self) -> None:
        helper = self.slot.helper
        try:
            pidfd = os.pidfd_open(helper)
        except OSError as error:
            raise self.failed("open a pidfd", error.errno) from None
        try:
            ended = wait_exit(pidfd, self._left())
        finally:
            os.close(pidfd)
        if not ended:
            raise self._timed_out()
        _, status = os.waitpid(helper, children.WAIT_ALL)
        self.slot.helper = 0
        # A child exists as soon as its number does, whatever became of the intermediate process.
        if not self.slot.pid:
            raise self._native_error() if self.slot.error else self._died(status)

    def raise_up(self) -> Child:
        """Take the child from its first wait to its exec."""
        spec, slot = self.spec, self.slot
        try:
            began = start_time(slot.pid)
        except (OSError, ValueError) as error:
            raise Failed(f"{self.what}: read the start time: {error}") from None
        if self.native.hold:
            self.write_maps()
            self._set_limits()
            self._answer()
        if spec.pdeathsig and self._receive():
            self._answer()
        self._receive()  # the end of the stream: executed, or failed
        if slot.error:
            raise self._native_error()
        if slot.step != lib.GV_STEP_EXEC:
            raise self._died(None)
        pidfd, self._pidfd = self._pidfd, -1
        return Child(slot.pid, pidfd, began, os.path.basename(spec.path))

    def write_maps(self) -> None:
        """Write the maps of the child's new user namespace."""
        if not self.spec.namespaces & CLONE_NEWUSER:
            return
        # gid_map may only be written without CAP_SETGID once setgroups is denied; Go's runtime,
        # and so runsc, denies it always.
        self._write("setgroups", b"deny")
        for name, maps in (("gid_map", self.spec.gid_maps), ("uid_map", self.spec.uid_maps)):
            if maps:
                lines = (f"{m.container_id} {m.host_id} {m.size}\n" for m in maps)
                self._write(name, "".join(lines).encode())

    def _set_limits(self) -> None:
        adjustment = self.spec.oom_score_adj
        if adjustment is not None:
            self._write("oom_score_adj", b"%d" % adjustment, optional=True)
        if not self._rlimits:
            return
        import resource

        for number, wanted in self._rlimits.items():
            try:
                try:
                    resource.prlimit(self.slot.pid, number, wanted)
                except PermissionError:
                    # runsc, too, goes on with less than it wanted (sandbox.go, RLIMIT_MEMLOCK).
                    _, hard = resource.prlimit(self.slot.pid, number)
                    clipped = (_least(wanted[0], hard), _least(wanted[1], hard))
                    resource.prlimit(self.slot.pid, number, clipped)
            except (OSError, ValueError) as error:
                raise Failed(f"{self.what}: set resource limit {number}: {error}") from None

    def _write(self, name: str, data: bytes, *, optional: bool = False) -> None:
        try:
            fd = os.open(f"/proc/{self.slot.pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except PermissionError as error:
            if not optional:
                raise self.failed(f"write {name}", error.errno) from None
        except OSError as error:
            raise self.failed(f"write {name}", error.errno) from None

    # --- the conversation with the child ---

    def _left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _answer(self) -> None:
        try:
            os.write(self._sock, b"g")
        except BrokenPipeError:
            return  # it's gone; the next read finds out why

    def _receive(self) -> bool:
        """Wait for the child's byte (True), or for the end of the stream (False)."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        if not poller.poll(int(self._left() * 1000)):
            raise self._timed_out()
        try:
            return bool(os.read(self._sock, 1))
        except ConnectionResetError:
            return False

    # --- errors ---

    def _timed_out(self) -> Failed:
        return Failed(f"{self.what}: {self._step()}: no progress within {TIMEOUT:g} s")

    def _died(self, status: int | None) -> Failed:
        how = "" if status is None else f" (wait status {status:#x})"
        return Failed(
            f"{self.what}: {self._step()}: the process ended before it could execute{how}"
        )

    def _native_error(self) -> Failed:
        return self.failed(self._step(), self.slot.error)

    def _step(self) -> str:
        spec, step, index = self.spec, self.slot.step, self.slot.index
        if step == lib.GV_STEP_CGROUP:
            name = "of the given descriptor" if index < 0 else spec.cgroup_procs[index]
            return f"join cgroup {name}"
        if step == lib.GV_STEP_JOIN:
            kind = spec.join[index][1]
            return f"enter {NAMESPACES.get(kind, hex(kind))} namespace"
        if step == lib.GV_STEP_CLONE:
            names = [name for bit, name in NAMESPACES.items() if spec.namespaces & bit]
            return f"clone with new namespaces {', '.join(names)}" if names else "clone"
        if step == lib.GV_STEP_CHDIR:
            return f"change directory to {spec.cwd}"
        return _STEPS.get(step, "clone").format(index=index, uid=spec.uid, gid=spec.gid)

    # --- the end ---

    def close(self, *, failed: bool) -> None:
        """Let go of all but the shared page; after a failure kill and reap what was made."""
        if failed:
            if self.slot.helper:
                children.destroy(self.slot.helper, _KILL_TIMEOUT)
            # Only now is it sure whether the intermediate process made a child.
            if self.slot.pid:
                children.destroy(self.slot.pid, _KILL_TIMEOUT)
        if self._pidfd >= 0:
            self._fds.append(self._pidfd)
            self._pidfd = -1
        self._close_fds()

    def free(self) -> None:
        """Give the shared page back; nobody may ask for :meth:`pids` any more."""
        lib.gv_slot_free(self.slot)

    def _close_fd(self, fd: int) -> None:
        self._fds.remove(fd)
        os.close(fd)

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _least(limit: int, hard: int) -> int:
    return limit if hard < 0 else hard if limit < 0 else min(limit, hard)


class Forker:
    """A thread that runs functions for others, one at a time, and never ends."""

    def __init__(self) -> None:
        self._caller = threading.Lock()
        self._turn = threading.Condition()
        self._job: Callable[[], int] | None = None  # guarded by _turn
        self._result: int | None = None  # guarded by _turn
        self._thread: threading.Thread | None = None  # guarded by _caller

    def run(self, job: Callable[[], int]) -> int:
        """The result of ``job``, which must not raise, nor block for long."""
        with self._caller:
            # A thread doesn't survive a fork of the interpreter.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="forker", daemon=True)
                self._thread.start()
            with self._turn:
                self._job, self._result = job, None
                self._turn.notify_all()
                while self._result is None:
                    self._turn.wait()
                return self._result

    def _serve(self) -> None:
        while True:
            with self._turn:
                while self._job is None:
                    self._turn.wait()
                job, self._job = self._job, None
            result = job()
            with self._turn:
                self._result = result
                self._turn.notify_all()


_forker = Forker()


def spawn(spec: SpawnSpec) -> Child:
    """Start a process; returns once it executes ``spec.path``.  Any thread may call this.

    Raises InvalidRequest for what can't be expressed, Failed with the step and the system's error
    otherwise; then nothing of the process is left.  Ends within about ``TIMEOUT`` seconds.
    """
    check(spec)
    birth = Birth(spec, environment(spec.env))
    child: Child | None = None
    children.begin(birth)
    try:
        birth.clone()
        child = birth.raise_up()
        return child
    finally:
        birth.close(failed=child is None)
        children.end(birth, child)
        birth.free()


def userns(uid_maps: tuple[IdMap, ...], gid_maps: tuple[IdMap, ...]) -> int:
    """A descriptor of a new user namespace with these maps, which no process is in.

    For id-mapped mounts (mount_setattr(2)).  Raises Failed.
    """
    birth = Birth(
        SpawnSpec(
            path="/", argv=("",), namespaces=CLONE_NEWUSER, uid_maps=uid_maps, gid_maps=gid_maps
        ),
        (),
        "make a user namespace",
    )
    children.begin(birth)
    try:
        birth.clone()
        birth.write_maps()
        try:
            return os.open(f"/proc/{birth.slot.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise birth.failed("open it", error.errno) from None
    finally:
        birth.close(failed=True)
        children.end(birth, None)
        birth.free()
