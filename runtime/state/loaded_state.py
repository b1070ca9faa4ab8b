"""What a container is, from its state on disk alone, whoever made it: the shim, gvctl or runsc.

Owns finding a container, joining runsc's state file with our own record, and judging its status
by what lives and not only by what is written.  What can be done with it is in ``state/loaded.py``.
"""

from __future__ import annotations

import os

from runtime.base.errors import (
    DeadlineExceeded,
    InvalidState,
    NotFound,
    RuntimeFault,
    SandboxGone,
    Unreachable,
)
from runtime.base.version import OCI_VERSION
from runtime.bundle.spec import load_spec, read_spec
from runtime.host.pids import Foreign, find_helper
from runtime.runsc.control import ContainerState, Control
from runtime.runsc.driver import DirectDriver
from runtime.runsc.release import Generation
from runtime.state import runsc_state, shim_record
from runtime.state.lock import StateLock, find_id, list_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from builtins import list as Listed
    from collections.abc import Callable, Mapping
    from typing import Any, Self

    from runtime.bundle.spec import Spec
    from runtime.state.runsc_state import RunscState
    from runtime.state.shim_record import ContainerRecord

CREATING, CREATED, RUNNING, PAUSED, STOPPED = runsc_state.STATUSES
#: Seconds for the sentry's word on what runs; it answers in less than a millisecond.
_STATUS_TIMEOUT = 2.0
#: Seconds for a sentry that has closed a connection to have ended.
_AUTOPSY_TIMEOUT = 0.5


class StoredState:
    """A container as its files tell of it.  A snapshot: ``reload`` reads them again."""

    def __init__(
        self, root: str, stored: RunscState | None, record: ContainerRecord | None
    ) -> None:
        assert stored is not None or record is not None
        self.root = root
        self.stored = stored
        #: What only our own processes write down; None for a container that runsc made.
        self.record = record
        if stored is not None:
            self.id, self.sandbox_id, self.bundle = stored.id, stored.sandbox_id, stored.bundle
        elif record is not None:
            self.id, self.sandbox_id, self.bundle = record.id, record.sandbox_id, record.bundle
        self.created_at = stored.created_at if stored is not None else ""
        self.owner = stored.owner if stored is not None else ""
        self._spec: Spec | None = None
        #: Its lock while we hold it ourselves.
        self._lock: StateLock | None = None

    # -- finding ---------------------------------------------------------------------------

    @classmethod
    def load(cls, root: str, ident: str) -> Self:
        """The container that is called ``ident``, or is the only one whose id begins so.

        Raises NotFound, InvalidRequest (ambiguous), Failed naming a corrupt file,
        DeadlineExceeded if its lock is held for long.
        """
        container_id, sandbox_id = find_id(root, ident)
        found = cls._read(root, container_id, sandbox_id)
        if found is None:
            raise NotFound("container", ident, f'container "{ident}" does not exist')
        return found

    @classmethod
    def load_exact(cls, root: str, container_id: str, sandbox_id: str) -> Self:
        """The container of exactly those ids.  Raises as ``load`` does."""
        found = cls._read(root, container_id, sandbox_id)
        if found is None:
            raise NotFound("container", container_id, f'container "{container_id}" does not exist')
        return found

    @classmethod
    def list(cls, root: str) -> tuple[Listed[Self], Listed[str]]:
        """All containers below ``root``, and what is wrong with those that can't be read."""
        return cls._read_all(root, "")

    @classmethod
    def load_sandbox(cls, root: str, sandbox_id: str) -> tuple[Listed[Self], Listed[str]]:
        """Like ``list``, for the containers of one sandbox."""
        return cls._read_all(root, sandbox_id)

    @classmethod
    def _read_all(cls, root: str, only: str) -> tuple[Listed[Self], Listed[str]]:
        found: Listed[Self] = []
        problems: Listed[str] = []
        try:
            listed = list_ids(root)
        except RuntimeFault as fault:
            return [], [str(fault)]
        for container_id, sandbox_id in listed:
            if only and sandbox_id != only:
                continue
            try:
                each = cls._read(root, container_id, sandbox_id)
            except RuntimeFault as fault:
                problems.append(str(fault))
            else:
                if each is not None:
                    found.append(each)
        return found, problems

    @classmethod
    def _read(cls, root: str, container_id: str, sandbox_id: str) -> Self | None:
        stored = runsc_state.load(root, container_id, sandbox_id)
        record = shim_record.load_exact(root, container_id, sandbox_id)
        if stored is None and record is None:
            return None
        return cls(root, stored, record)

    def reload(self) -> Self:
        """The same, read again.  Raises NotFound if it is gone."""
        found = self._read(self.root, self.id, self.sandbox_id)
        if found is None:
            raise NotFound("container", self.id, f'container "{self.id}" does not exist')
        return found

    def under(self, lock: StateLock) -> Self:
        """The same, read again under ``lock``, which the caller holds.  Raises as ``reload``."""
        found = self.reload()
        found._lock = lock
        return found

    def is_stored(self) -> bool:
        """Whether there are files of it still."""
        return (self.id, self.sandbox_id) in list_ids(self.root)

    # -- what it is --------------------------------------------------------------------------

    @property
    def is_root(self) -> bool:
        """Whether it is its sandbox's first container, whose end ends the sandbox."""
        return self.id == self.sandbox_id

    @property
    def subject(self) -> str:
        """How errors call it."""
        return f'container "{self.id}"'

    @property
    def spec(self) -> Spec:
        """Its spec, as it was run.  Raises InvalidRequest or Failed if it can't be read."""
        if self._spec is None:
            if self.stored is not None:
                where = f'spec of container "{self.id}"'
                self._spec = read_spec(dict(self.stored.spec), self.bundle, where)
            else:
                self._spec = load_spec(self.bundle)
        return self._spec

    @property
    def annotations(self) -> Mapping[str, str]:
        return self.spec.annotations

    @property
    def rootfs(self) -> str:
        """Where its root file system is on the host."""
        return self.spec.root_path

    @property
    def control_socket(self) -> str:
        """The sentry's: a path, or an abstract name that begins with NUL; empty if unknown."""
        if self.stored is not None:
            return self.stored.control_socket
        assert self.record is not None
        return self.record.control_socket

    def sandbox_process(self) -> Foreign | None:
        """A handle on the sentry, to be closed; None if it doesn't live."""
        record = self.record
        if record is not None and record.boot_id != shim_record.boot_id():
            return None
        if record is not None and record.boot is not None:
            return Foreign.open(record.boot.pid, record.boot.start_time)
        pid = self.stored.sandbox_pid if self.stored is not None else 0
        if not pid and record is not None:
            pid = record.pid
        # Nothing but a number is known of it, which may be another process's today.
        return find_helper(pid, b"runsc-sandbox", lambda words: words[-1:] == [self._sandbox_word])

    @property
    def _sandbox_word(self) -> bytes:
        return os.fsencode(self.sandbox_id)

    def gofer_process(self) -> Foreign | None:
        """A handle on its gofer, to be closed; None if it doesn't live."""
        record = self.record
        if record is not None and record.boot_id != shim_record.boot_id():
            return None
        # That of one whose start another process made is in the state file alone.
        if record is not None and record.gofers:
            return Foreign.open(record.gofers[0].pid, record.gofers[0].start_time)
        bundle = os.fsencode(self.bundle)

        def serves(words: Listed[bytes]) -> bool:
            return b"--bundle=" + bundle in words or bundle in words

        pid = self.stored.gofer_pid if self.stored is not None else 0
        return find_helper(pid, b"runsc-gofer", serves)

    @property
    def sandbox_pid(self) -> int:
        """The sentry's pid; -1 if it doesn't live, or the container has stopped."""
        return -1 if self.status() in (CREATING, STOPPED) else self._live_pid(self.sandbox_process)

    @property
    def gofer_pid(self) -> int:
        """Its gofer's pid; -1 if it doesn't live."""
        return self._live_pid(self.gofer_process)

    @staticmethod
    def _live_pid(find: Callable[[], Foreign | None]) -> int:
        process = find()
        if process is None:
            return -1
        with process:
            return -1 if process.wait_gone(0) else process.pid

    @property
    def cgroup_paths(self) -> Mapping[str, str]:
        """The host's directories of the sandbox's cgroup, by controller; empty once it is gone."""
        pid = self._live_pid(self.sandbox_process)
        if pid < 0:
            return {}
        from runtime.cgroups import factory

        return factory.directories_of(pid)

    def status(self) -> str:
        """``creating``, ``created``, ``running``, ``paused`` or ``stopped``."""
        written = self.stored.status if self.stored is not None else CREATING
        if written == CREATING and self._is_being_created():
            return CREATING
        if written == STOPPED or self._live_pid(self.sandbox_process) < 0:
            return STOPPED
        try:
            found = self.control().state(self.id, _STATUS_TIMEOUT).known(self._is_started(written))
        except SandboxGone:
            return STOPPED
        except RuntimeFault:
            return RUNNING if written == CREATING else written
        if found is ContainerState.CREATING:
            return CREATED
        if found is ContainerState.RUNNING:
            return PAUSED if written == PAUSED else RUNNING
        return STOPPED

    def _is_started(self, written: str) -> bool:
        """Whether a start was tried, or the sentry says so itself."""
        return written != CREATED or self.stored is None or not self.stored.is_old

    def _is_being_created(self) -> bool:
        """Whether somebody else holds its lock, before there is a state to write down."""
        if self._lock is not None and self._lock.held:
            return False
        lock = StateLock(self.root, self.id, self.sandbox_id)
        if not os.path.lexists(lock.path):
            return False
        try:
            lock.acquire(0.0)
        except DeadlineExceeded:
            return True
        lock.release()
        return False

    def require(self, operation: str, *allowed: str) -> str:
        """The status, if it is one of those.  Raises InvalidState."""
        status = self.status()
        if status not in allowed:
            raise InvalidState(operation, self.subject, status)
        return status

    def oci_state(self) -> dict[str, Any]:
        """The state as the OCI runtime specification has it; the pid is 0 where none lives."""
        status = self.status()
        live = status not in (CREATING, STOPPED)
        return {
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": status,
            "pid": max(self._live_pid(self.sandbox_process), 0) if live else 0,
            "bundle": self.bundle,
            "annotations": dict(self.annotations),
        }

    # -- the sentry --------------------------------------------------------------------------

    def control(self) -> Control:
        """The sentry's calls.  Raises SandboxGone if it has no address."""
        address = self.control_socket
        if not address:
            raise self._gone()
        pid = 0
        if address.startswith("\0"):
            # Anybody may listen there once it has died.
            pid = self._live_pid(self.sandbox_process)
            if pid < 0:
                raise self._gone()
        return Control(address, DirectDriver(self._generation()), self._autopsy, pid)

    def _autopsy(self) -> SandboxGone | Unreachable:
        """Why a connection broke: the sentry has ended, or it lives."""
        process = self.sandbox_process()
        if process is not None:
            with process:
                if not process.wait_gone(_AUTOPSY_TIMEOUT):
                    return Unreachable(f'sandbox "{self.sandbox_id}" lives, but doesn\'t answer')
        return self._gone()

    def _generation(self) -> Generation:
        """The release, as far as the calls differ by it and the state file shows it."""
        old = self.stored is not None and self.stored.is_old
        return Generation(
            binary="",
            version="",
            boot_binary="",
            boot_version="",
            boot_flags=frozenset(),
            gofer_flags=frozenset() if old else frozenset({"gofer-mount-confs"}),
            global_flags={},
            gofer_takes_id=False,
        )

    def _gone(self) -> SandboxGone:
        return SandboxGone(0, None, f'sandbox "{self.sandbox_id}" is not running')
