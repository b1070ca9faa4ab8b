"""What is written down about each container, for a clean-up after the shim's death.

Owns the record's file: its name, format and replacement.  Decides nothing: ``teardown`` does.

A record is ``<root>/<id>_sandbox:<sandbox id>.shim.json``, beside runsc's own state files of the
same stem (``state/lock.py``), so that the members of a sandbox are found by name alone.  The
bundle gets a file that says where ``root`` is.  Nothing is synced to disk: pids mean nothing
after a power cut, which is also why a record carries the id of the machine's boot.
"""

from __future__ import annotations

import os

from runtime.base import fastjson, files
from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest, reason
from runtime.base.record import Record
from runtime.state.lock import (
    LOCK,
    RECORD,
    SEPARATOR,
    STATE,
    StateLock,
    check_id,
    file_name,
    list_ids,
    names_in,
    split_name,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

SCHEMA = 1
MAX_RECORD = 1 << 20
#: In the bundle; ``delete`` is told nothing but the bundle and the id.
LOCATOR = "gvisor-shim.json"
_MAX_LOCATOR = 1 << 16
#: Seconds for somebody else to let go of the lock of a container that is to be forgotten.
_REMOVE_PATIENCE = 1.0


class Pinned(Record):
    """One process for the life of the machine: its pid and when it started (``runtime/pids``)."""

    pid: int
    start_time: int


class ContainerRecord(Record):
    """One container's record.  Defaults stand for "not yet" or "none"."""

    id: str
    sandbox_id: str
    #: Whether it is the sandbox's first container, whose end ends the sandbox.
    is_root: bool
    bundle: str
    namespace: str = ""
    #: Where its root file system is mounted; empty if nothing is.
    rootfs: str = ""
    #: Whether it was mounted by us, and not by whoever made the bundle.
    owns_rootfs: bool = True
    #: The sentry.  Kept in the root container's record.
    boot: Pinned | None = None
    gofers: tuple[Pinned, ...] = ()
    #: What ``Cgroup.to_json`` gave.
    cgroups: tuple[Mapping[str, Any], ...] = ()
    control_socket: str = ""
    filestores: tuple[str, ...] = ()
    shim_address: str = ""
    shim_pid: int = 0
    #: Filled in by :func:`save`.
    shim_start_time: int = 0
    boot_id: str = ""
    #: The task's pid as containerd knows it, where it isn't the sentry's.
    pid: int = 0
    exit_status: int | None = None
    #: Seconds since the epoch.
    exited_at: float | None = None
    #: With what it was made, for a process that starts it: the binary, and runsc's flags.
    binary: str = ""
    flags: Mapping[str, str] = {}
    #: What the sentry was told of a network that was taken over: it can't be read a second time.
    network: Mapping[str, Any] | None = None
    #: Its limits (``linux.resources``) as updates without a shim left them.
    resources: Mapping[str, Any] | None = None


def boot_id() -> str:
    """The id of this boot of the machine; empty if the kernel doesn't tell."""
    try:
        data = files.read_bounded("/proc/sys/kernel/random/boot_id", 64)
    except OSError:
        return ""
    return (data or b"").decode("ascii", "replace").strip()


# -- the format -----------------------------------------------------------------------------


def _encode(record: ContainerRecord) -> bytes:
    body: dict[str, object] = {"schema": SCHEMA}
    for name in ContainerRecord._fields:
        value = getattr(record, name)
        if isinstance(value, Pinned):
            value = [value.pid, value.start_time]
        elif name == "gofers":
            value = [[pin.pid, pin.start_time] for pin in record.gofers]
        elif isinstance(value, tuple):
            value = list(value)
        body[name] = value
    return fastjson.dumps(body).encode("ascii")


def _pinned(value: object) -> Pinned:
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value):
        return Pinned(pid=value[0], start_time=value[1])
    raise ValueError("a process is not a pid and a start time")


def _tuple_of(kind: type, value: object, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ValueError(f"{name} is not a list of the right kind")
    return tuple(value)


def _decode(data: bytes) -> ContainerRecord:
    """Raises ValueError."""
    body = fastjson.loads(data)
    if not isinstance(body, dict):
        raise ValueError("not an object")
    # A later shim may add members, and takes another number only when it changes a meaning.
    if body.get("schema") != SCHEMA:
        raise ValueError(f"schema {body.get('schema')!r} is not {SCHEMA}")
    values: dict[str, Any] = {n: body[n] for n in ContainerRecord._fields if n in body}
    for name, value in values.items():
        if name == "boot":
            values[name] = None if value is None else _pinned(value)
        elif name == "gofers":
            values[name] = tuple(_pinned(v) for v in _tuple_of(list, value, name))
        elif name in ("cgroups", "filestores"):
            values[name] = _tuple_of(dict if name == "cgroups" else str, value, name)
        elif name == "flags":
            if not isinstance(value, dict) or not all(type(v) is str for v in value.values()):
                raise ValueError("flags are not texts")
        elif name in ("network", "resources"):
            if value is not None and not isinstance(value, dict):
                raise ValueError(f"{name} is not an object")
        elif name in ("shim_pid", "shim_start_time", "pid"):
            if type(value) is not int:
                raise ValueError(f"{name} is not an integer")
        elif name in ("exit_status", "exited_at"):
            allowed = (int,) if name == "exit_status" else (int, float)
            if value is not None and type(value) not in allowed:
                raise ValueError(f"{name} is not a number")
        elif type(value) is not (bool if name in ("is_root", "owns_rootfs") else str):
            raise ValueError(f"{name} is of the wrong type")
    try:
        return ContainerRecord(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


# -- files ----------------------------------------------------------------------------------


def _names(root: str) -> list[str]:
    return sorted(n for n in names_in(root) if split_name(n, RECORD) is not None)


def _read(root: str, name: str) -> ContainerRecord | None:
    """The record, or None if it vanished meanwhile.  Raises Failed if it is corrupt."""
    path = os.path.join(root, name)
    try:
        data = files.read_bounded(path, MAX_RECORD, ours=True)
        if data is None:
            return None
        record = _decode(data)
        if (record.id, record.sandbox_id) != split_name(name, RECORD):
            raise ValueError("it is another container's")
    except OSError as error:
        raise Failed(f"state file {path}: {reason(error)}") from None
    except (ValueError, InvalidRequest) as error:
        why = error.why if isinstance(error, InvalidRequest) else str(error)
        raise Failed(f"state file {path}: {why}") from None
    return record


def save(root: str, record: ContainerRecord, *, locator: bool = True) -> None:
    """Write ``record`` in place of the container's older one, and the bundle's locator.

    Without ``locator`` nothing is put into the bundle: it is for containerd's clean-up alone,
    which is told nothing else.  ``root`` is made if need be.  Fills in the identity of this boot
    and of the shim's process.  Raises InvalidRequest for an id that can't name a file, OSError.

    For ``state/writer.py`` alone.
    """
    name = file_name(record.id, record.sandbox_id, RECORD)
    if record.shim_pid and not record.shim_start_time:
        from runtime.host.pids import start_time

        record = record.replace(shim_start_time=start_time(record.shim_pid))
    if not record.boot_id:
        record = record.replace(boot_id=boot_id())
    os.makedirs(root, 0o711, exist_ok=True)
    if locator:
        write_locator(root, record.bundle)
    with files.DirectoryLock(root):
        files.replace_file(os.path.join(root, name), _encode(record))


def write_locator(root: str, bundle: str) -> None:
    """Have the bundle name ``root``, where a clean-up finds what there is.  Raises OSError."""
    if locate(bundle) != root:
        data = f'{{"schema":{SCHEMA},"root":{fastjson.quote(os.path.abspath(root))}}}'
        files.replace_file(os.path.join(bundle, LOCATOR), data.encode("ascii"))


def locate(bundle: str) -> str | None:
    """The root that the bundle's container was recorded in; None if it never was.  Never raises."""
    try:
        data = files.read_bounded(os.path.join(bundle, LOCATOR), _MAX_LOCATOR)
        root = fastjson.loads(data)["root"] if data is not None else None
    except (OSError, ValueError, KeyError, TypeError, InvalidRequest):
        return None
    return root if isinstance(root, str) and root.startswith("/") else None


def load(root: str, container_id: str) -> ContainerRecord | None:
    """The container's record; None if there is none.  Raises Failed if it is corrupt."""
    check_id(container_id)
    record = _read(root, file_name(container_id, container_id, RECORD))
    if record is not None:
        return record
    for name in _names(root):
        if name.startswith(container_id + SEPARATOR):
            return _read(root, name)
    return None


def load_exact(root: str, container_id: str, sandbox_id: str) -> ContainerRecord | None:
    """Like :func:`load`, for a container whose sandbox is known."""
    return _read(root, file_name(container_id, sandbox_id, RECORD))


def load_sandbox(root: str, sandbox_id: str) -> list[ContainerRecord]:
    """The records of the sandbox's containers, the root container's first.

    Corrupt ones are left out.
    """
    ending = SEPARATOR + check_id(sandbox_id) + RECORD
    found = [r for r, _ in _read_all(root, [n for n in _names(root) if n.endswith(ending)]) if r]
    return sorted(found, key=lambda r: not r.is_root)


def list_all(root: str) -> tuple[list[ContainerRecord], list[str]]:
    """All records below ``root``, and what is wrong with those that can't be read."""
    results = list(_read_all(root, _names(root)))
    return [r for r, _ in results if r is not None], [why for _, why in results if why]


def _read_all(root: str, names: list[str]) -> Iterator[tuple[ContainerRecord | None, str]]:
    for name in names:
        try:
            yield _read(root, name), ""
        except Failed as error:
            yield None, str(error)


def remove(root: str, container_id: str, lock: StateLock | None = None) -> None:
    """Forget the container: its record, runsc's state file and the lock.

    ``lock`` is its lock, if the caller holds that.  No error if nothing is there.  Raises OSError.
    """
    check_id(container_id)
    for ids in [ids for ids in list_ids(root) if ids[0] == container_id]:
        mine = lock if lock is not None and lock.held else _lock_shortly(root, ids)
        try:
            with files.DirectoryLock(root):
                for ending in (STATE, RECORD, LOCK):
                    name = file_name(*ids, ending)
                    files.remove_file(os.path.join(root, name))
        finally:
            mine.release()
    if lock is not None and lock.held:
        # Nothing but the id was taken yet.
        lock.remove()


def remove_remains(root: str, ident: str) -> None:
    """Remove what a shim that died left of ``ident``, or of containers of the sandbox ``ident``,
    beside any record: the lock that they were to be made under, and files half written.

    What has a state file or a record stays, and what somebody holds the lock of.  Raises OSError.
    """
    check_id(ident)
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return
    remains: dict[tuple[str, str], list[str]] = {}
    for name in names:
        ids = split_name(name, LOCK) or _split_temporary(name)
        if ids is not None and ident in ids:
            remains.setdefault(ids, []).append(name)
    for ids, found in remains.items():
        try:
            lock = StateLock(root, *ids).acquire(0)
        except DeadlineExceeded:
            continue
        with lock, files.DirectoryLock(root):
            kept = (os.path.join(root, file_name(*ids, ending)) for ending in (STATE, RECORD))
            if not any(os.path.lexists(path) for path in kept):
                for name in found:
                    files.remove_file(os.path.join(root, name))
                lock.remove()


def _split_temporary(name: str) -> tuple[str, str] | None:
    """The ids in the name of a file that was to become a state file or a record."""
    stem, _, number = name[1:].rpartition(".")
    if not name.startswith(".") or not number.isdigit():
        return None
    return split_name(stem, STATE) or split_name(stem, RECORD)


def _lock_shortly(root: str, ids: tuple[str, str]) -> StateLock:
    """The lock, or in vain: a process that hangs must not keep a dead container's files."""
    lock = StateLock(root, *ids)
    try:
        lock.acquire(_REMOVE_PATIENCE)
    except DeadlineExceeded:
        pass
    return lock
