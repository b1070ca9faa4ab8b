"""``delete``: cleans up after a container whose shim is gone, or says that nothing is left.

containerd runs it whenever a connection to a shim ends, also after an orderly delete, so mostly
there is nothing to do: that path loads next to nothing.  Owns the decision what may be destroyed;
``runtime/state/teardown.py`` destroys.  Works from the bundle and the records alone.
"""

from __future__ import annotations

import os
import time

from runtime.base import files
from runtime.base.errors import Failed, InvalidRequest, RuntimeFault
from runtime.state import shim_record
from shim.base import sockets
from shim.base.arguments import check_id
from shim.ttrpc import protobuf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.state.shim_record import ContainerRecord, Pinned
    from shim.base.arguments import Invocation

#: containerd kills us after 5 s (io.containerd.timeout.shim.cleanup).
_TIMEOUT = 4.0
_SHIM_TIMEOUT = 0.5
_LEAST_FOR_HOOKS = 0.5
#: As in ``runtime/bundle/hooks.py``, whose import costs more than the look-up does.
_OWED = "gvisor-poststop"
#: What a container that was killed reports, as after SIGKILL.
_KILLED = 128 + 9
_MAX_SMALL_FILE = 4096


def delete(call: Invocation) -> tuple[bytes, Sequence[str]]:
    """Clean up after ``call.id``; the DeleteResponse to print, and warnings.

    Safe to repeat.  Raises RuntimeFault or OSError if something runs or is mounted still: then
    containerd must keep the bundle.
    """
    check_id("-id", call.id)
    check_id("-namespace", call.namespace)
    bundle = os.path.abspath(call.bundle) if call.bundle else os.getcwd()
    warnings: list[str] = []
    deadline = time.monotonic() + _TIMEOUT
    root = shim_record.locate(bundle)
    if root is None:
        from runtime.runsc.options_file import default_root

        root = default_root(call.namespace)
    record = None
    try:
        record = shim_record.load(root, call.id)
    except (Failed, InvalidRequest) as error:
        warnings.append(str(error))
    if record is None:
        _remove_remains(bundle)
    gone = record is None or _clean_up(root, record, warnings)
    if gone and os.path.lexists(os.path.join(bundle, _OWED)):
        _run_poststop(bundle, call.id, deadline, warnings)
    if gone:
        try:
            shim_record.remove_remains(root, call.id)
        except OSError as error:
            warnings.append(f"remains in {root}: {error}")
    _remove_stale_socket(bundle, record, warnings)
    return _reply(bundle, record), warnings


def _remove_remains(bundle: str) -> None:
    """What a shim can leave that died before it recorded the container: a mount."""
    rootfs = os.path.join(bundle, "rootfs")
    # An empty directory on the bundle's own file system is no mount: spares reading the table,
    # which is long on a busy host.
    try:
        same = os.lstat(rootfs).st_dev == os.lstat(bundle).st_dev
        if same and not os.listdir(rootfs):
            return
    except (FileNotFoundError, NotADirectoryError):
        return
    from runtime.bundle import rootfs as mounts

    _native_ready()
    mounts.unmount_all(rootfs)


def _native_ready() -> None:
    from shim import paths

    paths.complete("_cffi_backend")


def _run_poststop(bundle: str, container_id: str, deadline: float, warnings: list[str]) -> None:
    """What the shim had still to do when it died."""
    _native_ready()
    from runtime.bundle.hooks import settle_poststop
    from runtime.bundle.spec import load_spec

    try:
        spec = load_spec(bundle)
    except InvalidRequest as error:
        warnings.append(f"poststop hooks: {error}")
        return
    left = max(deadline - time.monotonic(), _LEAST_FOR_HOOKS)
    warnings.extend(settle_poststop(spec, container_id, left))


def _clean_up(root: str, record: ContainerRecord, warnings: list[str]) -> bool:
    """Whether the container is gone, and not left to a shim that lives."""
    from runtime.state import teardown

    if record.is_root and not _serves_another(root, record):
        # containerd has given it up.  It goes first, as it may be starting something just now.
        teardown.stop_shim(record, _SHIM_TIMEOUT)
    family = shim_record.load_sandbox(root, record.sandbox_id)
    sentry: tuple[Pinned, ...] = ()
    if record.is_root:
        # The end of the first container is the end of the sandbox, whoever else is in it.
        doomed = family or [record]
    elif _shim_lives(record):
        # It only lost a connection.  The container is its to end, and the pod is alive.
        return False
    else:
        # Nothing can end one container of a sandbox but its shim.  The rest of the pod is lost
        # as well; its records are left for its own deletes.
        doomed = [record]
        sentry = tuple(r.boot for r in family if r.boot and r.boot_id == shim_record.boot_id())
    _native_ready()
    outcome = teardown.destroy(root, doomed, _TIMEOUT - _SHIM_TIMEOUT, sentry)
    warnings.extend(outcome.leftovers)
    if outcome.failures:
        raise Failed(f"clean up after {record.id}: " + "; ".join(outcome.failures))
    return True


def _serves_another(root: str, record: ContainerRecord) -> bool:
    """Whether the same shim runs a further sandbox, as a group by label may have several."""
    return any(
        other.shim_pid == record.shim_pid and other.sandbox_id != record.sandbox_id
        for other in shim_record.list_all(root)[0]
    )


def _shim_lives(record: ContainerRecord) -> bool:
    from runtime.state import teardown

    path = sockets.path_of(record.shim_address)
    if path and sockets.is_served(path):
        return True
    # It unlinks its socket some time before it ends.
    process = shim_record.Pinned(pid=record.shim_pid, start_time=record.shim_start_time)
    return record.boot_id == shim_record.boot_id() and teardown.is_running(process)


def _remove_stale_socket(bundle: str, record: ContainerRecord | None, warnings: list[str]) -> None:
    """The socket of a shim that can't have unlinked it itself.

    Only the shim's first container looks: a member's address is the living pod's.
    """
    address = record.shim_address if record is not None else ""
    if not address and os.path.exists(os.path.join(bundle, "shim.pid")):
        address = _small_file(bundle, "address")
    path = sockets.path_of(address)
    try:
        if path and sockets.remove_stale(path):
            sockets.remove_stale(path + sockets.DEBUG_ENDING)
    except (OSError, RuntimeFault) as error:
        warnings.append(f"socket {path}: {error}")


def _small_file(bundle: str, name: str) -> str:
    try:
        data = files.read_bounded(os.path.join(bundle, name), _MAX_SMALL_FILE)
    except (OSError, InvalidRequest):
        return ""
    return (data or b"").decode("utf-8", "replace").strip()


def _reply(bundle: str, record: ContainerRecord | None) -> bytes:
    """A DeleteResponse: pid=1, exit_status=2, exited_at=3 (containerd's api/runtime/task)."""
    status, exited_at = _KILLED, time.time_ns()
    pid = 0
    if record is not None:
        pid = record.pid or (record.boot.pid if record.boot is not None else 0)
        if record.exit_status is not None:
            status = record.exit_status
            if record.exited_at is not None:
                exited_at = round(record.exited_at * 1e6) * 1000
    if not pid:
        written = _small_file(bundle, "init.pid")
        pid = int(written) if written.isascii() and written.isdigit() else 0
    return (
        protobuf.number_field(1, pid & 0xFFFFFFFF)
        + protobuf.number_field(2, status & 0xFFFFFFFF)
        + protobuf.bytes_field(3, protobuf.timestamp(exited_at))
    )
