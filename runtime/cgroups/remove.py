"""Removes cgroup directories.  Imports next to nothing, as a clean-up after a dead shim uses it.

Knows directories only, and removes none but those that it is told we made.
"""

from __future__ import annotations

import errno
import os
import select
import time

from runtime.base.errors import Failed, InvalidRequest, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

#: What the record of a cgroup names as its driver if systemd made it.
SYSTEMD = "systemd"
_MAX_READ = 1 << 20
_SIGKILL_BIT = 1 << 8  # proc(5): signal n is bit n - 1
_IN_USE = (errno.EBUSY, errno.ENOTEMPTY)
_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.05
#: Seconds after which a cgroup is left to living processes that nobody has killed.  Ours get
#: SIGKILL before, or with their parent's end.
STRANGERS_PATIENCE = 1.0


def remove_from_json(data: Mapping[str, Any], timeout: float = 5.0) -> None:
    """Remove what ``Cgroup.to_json()`` says that we made.

    Idempotent.  Raises Failed if a directory is still in use after ``timeout`` seconds, and
    InvalidRequest if ``data`` isn't what to_json gives.
    """
    own = owned_from_json(data)
    if data.get("driver") == SYSTEMD and any(own.values()):
        unit = data.get("unit")
        if not isinstance(unit, str) or not unit.endswith(".scope") or "/" in unit:
            raise InvalidRequest("cgroup.unit", f"{unit!r} is not a scope")
        stop_scope(unit, timeout)
    remove_owned(own.values(), timeout)


def stop_scope(unit: str, timeout: float) -> None:
    """End a scope of ours, and whatever processes are in it.  Raises Failed, DeadlineExceeded."""
    from runtime.base.signals import SIGKILL
    from runtime.host.systemd import Manager

    with Manager.connect(max(timeout, 1.0)) as manager:
        # It would let them end in their own time.
        manager.kill(unit, SIGKILL)
        manager.stop(unit)


def owned_from_json(data: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The directories that we made, by controller, topmost first.  Raises InvalidRequest."""
    own = data.get("own")
    if not isinstance(own, dict):
        raise InvalidRequest("cgroup.own", "not an object")
    return {
        str(name): check_directories(f"cgroup.own.{name}", paths) for name, paths in own.items()
    }


def check_directories(field: str, paths: Any) -> tuple[str, ...]:
    """A list of absolute paths without ``..``.  Raises InvalidRequest."""
    if not isinstance(paths, (list, tuple)):
        raise InvalidRequest(field, "not a list")
    for path in paths:
        if (
            not isinstance(path, str)
            or not path.startswith("/")
            or "\0" in path
            or ".." in path.split("/")
        ):
            raise InvalidRequest(field, f"{path!r} is not an absolute path")
    return tuple(paths)


def remove_owned(chains: Iterable[tuple[str, ...]], timeout: float) -> None:
    """Remove each chain of directories, given topmost first.

    The last of a chain is the cgroup itself: its processes may still be on their way out, so
    EBUSY is retried until ``timeout``.  It is removed with what is below it, as runc does, once
    no process is left anywhere in it.  The others are parents that we had to make; they are
    removed if nobody else uses them.  A cgroup in which somebody else's processes live (a container
    that was restored has its original's) is left to them, which is logged.  Raises Failed naming
    the cgroup that stayed, after having tried all.
    """
    began = time.monotonic()
    deadline = began + timeout
    chains = [chain for chain in chains if chain]
    busy = list(dict.fromkeys(chain[-1] for chain in chains))
    fault: OSError | None = None
    wait = _FIRST_WAIT
    while busy:
        left = []
        for path in busy:
            error = _rmdir(path)
            if error is not None and error.errno in _IN_USE and _is_idle(path):
                _remove_below(path)
                error = _rmdir(path)
            if error is not None and error.errno in _IN_USE:
                if time.monotonic() - began >= STRANGERS_PATIENCE and _is_strangers(path):
                    _tell_left(path)
                else:
                    left.append(path)
            elif error is not None:
                fault = fault or error
        busy = left
        if not busy:
            break
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise Failed(f"remove cgroup {busy[0]}: still in use after {timeout:g} s")
        # Strangers never leave it: look for them every now and then.
        longest = min(remaining, STRANGERS_PATIENCE)
        _wait_until_empty(busy[0], min(wait, remaining), longest)
        wait = min(wait * 2, _LONGEST_WAIT)
    parents = {path for chain in chains for path in chain[:-1]}
    for path in sorted(parents, key=lambda path: path.count("/"), reverse=True):
        _rmdir(path)
    if fault is not None:
        raise Failed(f"remove cgroup {fault.filename}: {reason(fault)}")


def _rmdir(path: str) -> OSError | None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


def _is_idle(path: str) -> bool:
    """Whether no process is in the cgroup or below it, so that nobody can be using it."""
    for directory, _, _ in os.walk(path, onerror=None):
        try:
            descriptor = os.open(f"{directory}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # it is gone
        except OSError:
            return False
        try:
            if os.read(descriptor, 1):
                return False
        except OSError:
            return False  # a threaded one, whose processes can't be told
        finally:
            os.close(descriptor)
    return True


def _is_strangers(path: str) -> bool:
    """Whether the processes in the cgroup and below it live, and are not about to end."""
    pids: list[str] = []
    for directory, _, _ in os.walk(path, onerror=None):
        try:
            pids += _read(f"{directory}/cgroup.procs").split()
        except OSError:
            return False
    return bool(pids) and all(_lives(pid) for pid in pids)


def _lives(pid: str) -> bool:
    """Whether a process runs and has no SIGKILL to take; not of one that can't be seen (0)."""
    try:
        text = _read(f"/proc/{pid}/status")
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
        return fields["State"].split()[0] not in ("Z", "X", "x") and not pending & _SIGKILL_BIT
    except (KeyError, ValueError, IndexError):
        return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_READ)


def _tell_left(path: str) -> None:
    from runtime.base.log import get_logger

    get_logger("cgroup").warning("cgroup.left", path=path, why="processes of others are in it")


def _remove_below(path: str) -> None:
    """Remove the cgroups below ``path``, deepest first, as far as that is possible."""
    for directory, _, _ in os.walk(path, topdown=False):
        if directory != path:
            _rmdir(directory)


def _wait_until_empty(path: str, pause: float, longest: float) -> None:
    """Wait for the last process to leave.

    v2 tells through cgroup.events, which becomes urgent-readable at each change.  v1 tells
    nobody, so there a short ``pause`` it is; also for a cgroup that is busy for another reason.
    """
    try:
        descriptor = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        time.sleep(pause)
        return
    try:
        if b"populated 1" not in os.read(descriptor, 4096):
            time.sleep(pause)
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLPRI)
        poll.poll(longest * 1000)
    except OSError:
        time.sleep(pause)
    finally:
        os.close(descriptor)
