"""Makes a fork of the server like the launcher: like a process that containerd started itself.

The launcher tells what the kernel handed on to it from containerd (``add_properties`` in
``shim/native/launcher.c``).  What differs is set where a process can set it for itself.  Any other
difference refuses the call: then the launcher becomes the interpreter, and the server ends, as
its containerd has changed.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import os
import resource
import struct

from runtime.base.errors import InvalidRequest
from runtime.base.record import Record
from runtime.host import linux
from shim.forkserver import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_LIMIT = struct.Struct("=QQ")
_NUMBERS = struct.Struct("=5q")
#: Lines of /proc/self/status that must be the same (proc_pid_status(5)).
_SAME = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters", "Speculation_Store_Bypass"),
    *("SpeculationIndirectBranch", "THP_enabled"),
)
_TOLD = ("Umask", "SigBlk", "SigIgn", "Cpus_allowed_list", *_SAME)
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")
_RLIM_NLIMITS = 16
#: All but those that can't be caught, and two that are the C library's.
_SIGNALS = tuple(n for n in range(1, 65) if n not in (9, 19, 32, 33))
_SIGPIPE, _SIGXFSZ = 13, 25
_INFINITY = (1 << 64) - 1
_MAX_FILE = 1 << 14


class Unlike(Exception):
    """This process can't be made what the launcher is; the text says in what."""


class Given(Record):
    """What a process was given by the one that started it."""

    #: Lines of /proc/self/status, by name; /proc/self/cgroup, attr/current and oom_score_adj.
    status: Mapping[str, str]
    cgroups: bytes
    label: bytes
    oom_score_adj: bytes
    #: Namespaces, root directory and personality.
    where: bytes
    #: (soft, hard) of each resource limit, by number.
    limits: tuple[tuple[int, int], ...]
    nice: int
    policy: int
    priority: int
    io_priority: int
    timer_slack: int


def of_records(records: call.Records) -> Given:
    """What records tell.  Raises InvalidRequest, or ValueError (struct.error) for nonsense."""
    numbers = _NUMBERS.unpack(call.only(records, "n"))
    return Given(
        status=_status(call.only(records, "s")),
        cgroups=call.only(records, "c"),
        label=call.only(records, "t"),
        oom_score_adj=call.only(records, "o"),
        where=call.only(records, "w"),
        limits=tuple(_LIMIT.iter_unpack(call.only(records, "l"))),
        nice=numbers[0],
        policy=numbers[1],
        priority=numbers[2],
        io_priority=numbers[3],
        timer_slack=numbers[4],
    )


def own() -> call.Records:
    """What this process has, in the launcher's form, byte by byte."""
    lines = _read("status").splitlines(keepends=True)
    limits = (_limit(number) for number in range(_RLIM_NLIMITS))
    numbers = (
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0),
        os.sched_getparam(0).sched_priority,
        linux.io_priority(),
        linux.timer_slack(),
    )
    return {
        "s": [b"".join(each for each in lines if each.partition(b":")[0].decode() in _TOLD)],
        "c": [_read("cgroup")],
        "o": [_read("oom_score_adj")],
        "t": [_read("attr/current")],
        "l": [b"".join(_LIMIT.pack(soft, hard) for soft, hard in limits)],
        "n": [_NUMBERS.pack(*numbers)],
        "w": [_where()],
    }


def _read(name: str) -> bytes:
    try:
        fd = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MAX_FILE)
    except OSError:
        return b""  # no security module tells a label
    finally:
        os.close(fd)


def _status(data: bytes) -> dict[str, str]:
    found = {}
    for line in data.decode("ascii", "replace").splitlines():
        name, _, value = line.partition(":")
        found[name] = value.strip()
    return found


def _where() -> bytes:
    words = []
    for name in _NAMESPACES:
        try:
            words.append(os.readlink(f"/proc/self/ns/{name}"))
        except OSError:
            words.append("")
    root = os.stat("/")
    return f"{' '.join(words)} {root.st_dev}:{root.st_ino} {linux.personality()}".encode()


def _limit(number: int) -> tuple[int, int]:
    soft, hard = resource.getrlimit(number)
    return soft & _INFINITY, hard & _INFINITY


def refusal(theirs: Given, ours: Given) -> str:
    """What keeps a fork of a process like ``ours`` from being like ``theirs``; empty if nothing.

    Pure.
    """
    for name in _SAME:
        if theirs.status.get(name) != ours.status.get(name):
            return name
    for what, one, other in (
        ("namespaces", theirs.where, ours.where),
        ("cgroups", theirs.cgroups, ours.cgroups),
        ("security label", theirs.label, ours.label),
    ):
        if one != other:
            return what
    return ""


def become(records: call.Records, born_with: call.Records) -> None:
    """Make this process, whose server had ``born_with``, like the launcher.  Raises Unlike.

    Usually nothing has changed since, and there is nothing to do.
    """
    if all(records.get(tag) == value for tag, value in born_with.items()):
        return
    try:
        theirs, ours = of_records(records), of_records(own())
        reason = refusal(theirs, ours)
        if not reason:
            _set(theirs, ours)
    except (InvalidRequest, OSError, ValueError, KeyError, struct.error) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise Unlike(reason)


def _set(theirs: Given, ours: Given) -> None:
    os.umask(int(theirs.status["Umask"], 8))
    for number, (wanted, have) in enumerate(zip(theirs.limits, ours.limits, strict=True)):
        if wanted != have:
            resource.setrlimit(number, (_signed(wanted[0]), _signed(wanted[1])))
    if (theirs.policy, theirs.priority) != (ours.policy, ours.priority):
        os.sched_setscheduler(0, theirs.policy, os.sched_param(theirs.priority))
    if theirs.nice != ours.nice:
        os.setpriority(os.PRIO_PROCESS, 0, theirs.nice)
    if theirs.io_priority != ours.io_priority:
        linux.set_io_priority(theirs.io_priority)
    if theirs.timer_slack != ours.timer_slack:
        linux.set_timer_slack(theirs.timer_slack)
    cpus = "Cpus_allowed_list"
    if theirs.status[cpus] != ours.status[cpus]:
        os.sched_setaffinity(0, numbers_of(theirs.status[cpus]))
    if theirs.oom_score_adj != ours.oom_score_adj:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(theirs.oom_score_adj)
    ignored = int(theirs.status["SigIgn"], 16)
    for number in _SIGNALS:
        # As the interpreter has it, which ignores two itself.
        wanted_ignored = bool(ignored >> (number - 1) & 1) or number in (_SIGPIPE, _SIGXFSZ)
        found = _signal.getsignal(number)
        if wanted_ignored != (found == _signal.SIG_IGN) and found is not None:
            _signal.signal(number, _signal.SIG_IGN if wanted_ignored else _signal.SIG_DFL)
    blocked = int(theirs.status["SigBlk"], 16)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [n for n in _SIGNALS if blocked >> (n - 1) & 1])


def _signed(value: int) -> int:
    return -1 if value == _INFINITY else value


def numbers_of(text: str) -> set[int]:
    """``0-3,8`` as numbers."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
