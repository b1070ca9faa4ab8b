"""Takes a sandbox apart by its records alone, when the shim that ran it is dead.

Owns the order: processes end first, then what they held is freed.  Every step is taken even if
others fail.  Imports no native code unless there is something to unmount.
"""

from __future__ import annotations

import _thread
import os
import time

from runtime.base import files
from runtime.base.cleanup_steps import Steps
from runtime.base.errors import InvalidRequest
from runtime.base.record import Record
from runtime.base.signals import SIGKILL
from runtime.bundle import rootfs
from runtime.cgroups import remove
from runtime.host.pids import Foreign, start_time
from runtime.state import shim_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runtime.state.lock import StateLock
    from runtime.state.shim_record import ContainerRecord, Pinned

#: Of the time there is, the part that processes may take to die; the rest is for cgroups.
_KILL_SHARE = 0.7
#: Seconds for those that are found by a second look.
_LAST_KILL = 0.3
_OUR_NAMES = (b"runsc-sandbox", b"runsc-gofer")
_MAX_COMMAND = 1 << 17
#: Seconds for all command lines to be read, and after which one that doesn't come is left alone.
_READ_TIMEOUT = 1.5
_STALL = 0.01
#: The only files that are unlinked by a recorded path outside our own directories.
_FILESTORE_PREFIX = ".gvisor.filestore."


class Outcome(Record):
    """How it went.  Both empty: nothing is left."""

    #: What still runs or is still mounted: the bundle must stay, and a retry makes sense.
    failures: tuple[str, ...] = ()
    #: What could not be tidied up, and hurts nobody.
    leftovers: tuple[str, ...] = ()


def is_running(process: Pinned | None) -> bool:
    """Whether that very process runs still; a zombie doesn't."""
    if process is None:
        return False
    handle = Foreign.open(process.pid, process.start_time)
    if handle is None:
        return False
    with handle:
        return not handle.wait_gone(0)


def kill(processes: Iterable[Pinned], timeout: float, signo: int = SIGKILL) -> list[Pinned]:
    """Signal all of them, then wait for their end; those that remain after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    handles: list[tuple[Pinned, Foreign]] = []
    remaining: list[Pinned] = []
    for process in dict.fromkeys(processes):
        handle = Foreign.open(process.pid, process.start_time)
        if handle is None:
            continue
        handles.append((process, handle))
        try:
            handle.kill(signo)
        except PermissionError:
            pass  # then it won't end either, and is reported
    for process, handle in handles:
        with handle:
            if not handle.wait_gone(max(0.0, deadline - time.monotonic())):
                remaining.append(process)
    return remaining


def stop_shim(record: ContainerRecord, timeout: float) -> None:
    """End the shim of a sandbox that is to go: no one will ever ask it to shut down.

    At once and for good.  It would hold on to its containers if it were asked to end.
    """
    if not record.shim_pid or record.boot_id != shim_record.boot_id():
        return
    kill((shim_record.Pinned(pid=record.shim_pid, start_time=record.shim_start_time),), timeout)


def destroy(
    root: str,
    records: Sequence[ContainerRecord],
    timeout: float,
    also: Sequence[Pinned] = (),
    *,
    lock: StateLock | None = None,
    strays: bool = True,
) -> Outcome:
    """End the recorded containers' processes and free what they held, within ``timeout`` seconds.

    ``also`` are further processes to end, such as the sentry of a member whose shim is dead.
    ``lock`` is that of the only record's container, where the caller holds it.  Without
    ``strays`` only recorded processes are ended.
    A record stays only where there are failures.  Raises nothing on account of what it finds.
    """
    deadline = time.monotonic() + timeout
    failures, leftovers = Steps(), Steps()
    this_boot = shim_record.boot_id()
    processes = list(also)
    for record in records:
        # After a reboot the numbers are other processes'.
        if record.boot_id == this_boot:
            processes += [p for p in (record.boot, *record.gofers) if p is not None]
    bundles = {record.bundle for record in records if strays and record.boot_id == this_boot}
    processes += _strays(bundles)
    survivors = kill(processes, timeout * _KILL_SHARE)
    if survivors:
        survivors = _free_hanging(records, survivors)
    for process in survivors:
        failures.faults.append(f"process {process.pid} survived SIGKILL")
    # Once more: the command line of a process that is just being started can't be read.
    for process in kill(_strays(bundles), _LAST_KILL):
        failures.faults.append(f"process {process.pid} survived SIGKILL")
    # Members first: the root's cgroup may be the parent of theirs.
    for record in sorted(records, key=lambda r: r.is_root):
        _release(record, deadline, failures, leftovers)
    if not failures.faults:
        for record in records:
            what = f"record of {record.id}"
            leftovers.run(what, shim_record.remove, root, record.id, lock)
    return Outcome(failures=tuple(failures.faults), leftovers=tuple(leftovers.faults))


def _free_hanging(records: Sequence[ContainerRecord], survivors: list[Pinned]) -> list[Pinned]:
    """End what survivors of SIGKILL may wait for, and see who is left then."""
    from runtime.bundle import fuse

    if fuse.abort_hanging(fuse.read_specs(record.bundle for record in records)):
        return kill(survivors, _LAST_KILL)
    return survivors


def _strays(bundles: set[str]) -> list[Pinned]:
    """Sentries and gofers of these bundles that no record names.

    A shim that dies between a start and its record leaves such.  The names and the argument are
    those that the shim gives them; no container can start a process on the host.
    """
    if not bundles:
        return []
    wanted = {b"--bundle=" + os.fsencode(bundle) for bundle in bundles if bundle}
    found = []
    for pid, command in _commands([int(n) for n in os.listdir("/proc") if n.isdigit()]).items():
        arguments = command.split(b"\0")
        try:
            if arguments[0] in _OUR_NAMES and not wanted.isdisjoint(arguments):
                found.append(shim_record.Pinned(pid=pid, start_time=start_time(pid)))
        except OSError:
            continue  # it has ended
    return found


def _commands(pids: list[int], proc: str = "/proc") -> dict[int, bytes]:
    """The command lines of those that let us read them in time.

    They lie in the processes' own memory, which may be a file system of a stranger's that doesn't
    answer: where one reader gets no further, another goes on with the next.
    """
    found: dict[int, bytes] = {}
    todo, looked_at = list(pids), []
    complete = _thread.allocate_lock()
    complete.acquire()

    def read() -> None:
        while todo:
            try:
                pid = todo.pop()
            except IndexError:
                return  # another reader's
            try:
                found[pid] = files.read_bounded(f"{proc}/{pid}/cmdline", _MAX_COMMAND) or b""
            except (OSError, InvalidRequest):
                pass  # it has ended, or its command line is longer than any of ours
            looked_at.append(pid)
            if len(looked_at) == len(pids) and complete.locked():
                complete.release()

    deadline = time.monotonic() + _READ_TIMEOUT
    before = -1
    while pids and time.monotonic() < deadline:
        if before in (-1, len(todo)) and todo:
            _thread.start_new_thread(read, ())
        before = len(todo)
        if complete.acquire(timeout=_STALL):
            break
    return dict(found)


def _release(record: ContainerRecord, deadline: float, failures: Steps, leftovers: Steps) -> None:
    """Free what one container held besides its processes."""
    for path in record.filestores:
        if os.path.basename(path).startswith(_FILESTORE_PREFIX):
            leftovers.run(path, files.remove_file, path)
    # Not only the recorded path: the shim may have died between a mount and its record.
    for target in dict.fromkeys((record.rootfs, os.path.join(record.bundle, "rootfs"))):
        if target and record.owns_rootfs:
            failures.run(target, rootfs.unmount_all, target)
    for cgroup in record.cgroups:
        patience = max(0.2, deadline - time.monotonic())
        what = f"cgroup of {record.id}"
        leftovers.run(what, remove.remove_from_json, cgroup, patience)
    if record.is_root and record.control_socket.startswith("/"):
        leftovers.run(record.control_socket, files.remove_file, record.control_socket)
