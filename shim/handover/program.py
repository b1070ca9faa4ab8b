"""The program that is to take over: whether it may be run, whether it can, and its execution."""

from __future__ import annotations

import fcntl
import os
import stat
import time

from runtime.base import fastjson, signals
from runtime.base.errors import DeadlineExceeded, Failed, reason
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec
from shim.handover.names import NotHandedOver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

#: The launcher.
NAME: Final = "containerd-shim-gvisor-v2"
#: The action of the command line, and the flags that say where what was handed over is.
ACTION: Final = "take-over"
STATE_FLAG, CHECK_FLAG = "-state", "-check"
#: Seconds for the other version to say whether it can take over.
CHECK_TIMEOUT: Final = 30.0
_MOST_ANSWER: Final = 64 << 10
_MOST_LINKS: Final = 40
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: Where the dry run finds the state.
_CHECKED_FD: Final = 3


def check_path(path: str) -> str:
    """``path`` without links, if nobody but root can change what it leads to.

    Every folder and link on the way must be root's (or this process's user's) and writable by
    nobody else.  Raises NotHandedOver.
    """
    if not path.startswith("/"):
        raise NotHandedOver(f"program {path!r} is not an absolute path")
    todo = [part for part in path.split("/") if part]
    at, links = "/", 0
    _check_owner(at)
    while todo:
        part = todo.pop(0)
        if part in (".", ".."):
            at = os.path.dirname(at) if part == ".." else at
            continue
        here = os.path.join(at, part)
        if _check_owner(here):
            links += 1
            if links > _MOST_LINKS:
                raise NotHandedOver(f"program {path}: too many links")
            target = os.readlink(here)
            todo = [each for each in target.split("/") if each] + todo
            at = "/" if target.startswith("/") else at
        else:
            at = here
    if not os.access(at, os.X_OK) or not os.path.isfile(at):
        raise NotHandedOver(f"program {path}: not an executable file")
    return at


def _check_owner(path: str) -> bool:
    """Whether it is a link.  Raises NotHandedOver if others could put something in its place."""
    try:
        found = os.lstat(path)
    except OSError as error:
        raise NotHandedOver(f"program {path}: {reason(error)}") from None
    if found.st_uid not in (0, os.geteuid()):
        raise NotHandedOver(f"program {path}: belongs to user {found.st_uid}, and not to root")
    if stat.S_ISLNK(found.st_mode):
        return True
    if found.st_mode & 0o022:
        raise NotHandedOver(f"program {path}: others than root may write to it")
    return False


def own() -> str:
    """The launcher of this very version; empty if it isn't where it is usually."""
    package = os.path.realpath(__file__).rsplit("/shim/handover/", 1)[0]
    path = f"{package.rpartition('/lib')[0]}/bin/{NAME}"
    return path if os.access(path, os.X_OK) else ""


def keep(data: bytes) -> int:
    """A descriptor of a sealed file in memory with ``data``.  Raises Failed."""
    try:
        fd = os.memfd_create("shim-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            os.lseek(fd, 0, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise Failed(f"keep what is handed over: {reason(error)}") from None
    return fd


def read(fd: int) -> bytes:
    """What :func:`keep` has kept.  Raises Failed unless it is sealed."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise Failed("what was handed over isn't sealed")
        size = os.fstat(fd).st_size
        data = os.pread(fd, size, 0)
        while len(data) < size:
            more = os.pread(fd, size - len(data), len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise Failed(f"read what was handed over: {reason(error)}") from None
    return data


def ask(program: str, arguments: Sequence[str], state: int) -> str:
    """Have ``program`` say whether it can take over what ``state`` keeps; its version.

    It runs as a process of its own, which touches nothing.  Raises NotHandedOver in its words.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            argv = (program, *arguments, STATE_FLAG, str(_CHECKED_FD), CHECK_FLAG, ACTION)
            child = spawn(
                SpawnSpec(
                    path=program,
                    argv=argv,
                    env=dict(os.environ),
                    fds={1: writer, 2: writer, _CHECKED_FD: state},
                )
            )
        finally:
            os.close(writer)
        with child:
            try:
                answer = _answer(reader)
                child.wait(CHECK_TIMEOUT)
            except DeadlineExceeded:
                child.kill(9)
                child.wait(CHECK_TIMEOUT)
                raise NotHandedOver(f"{program} did not answer in {CHECK_TIMEOUT:g} s") from None
    finally:
        os.close(reader)
    try:
        found = fastjson.loads(answer)
        refused, version = str(found["refused"]), str(found["version"])
    except (ValueError, KeyError, TypeError):
        words = " ".join(answer.decode("utf-8", "replace").split())[:300]
        raise NotHandedOver(f"{program} can't take over: {words or 'it says nothing'}") from None
    if refused:
        raise NotHandedOver(refused[:2000])
    return version


def _answer(fd: int) -> bytes:
    import select

    data = b""
    deadline = time.monotonic() + CHECK_TIMEOUT
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(data) < _MOST_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise DeadlineExceeded("an answer", CHECK_TIMEOUT)
        chunk = os.read(fd, 4096)
        if not chunk:
            break
        data += chunk
    return data


def open_descriptors() -> list[int]:
    """Those that this process would lose by executing something."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and not os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            continue  # the listing's own
    return found


def execute(program: str, arguments: Sequence[str], state: int) -> str:
    """Become ``program``, with all descriptors.  Returns only why it can't be.

    No other thread may open one meanwhile.
    """
    kept = open_descriptors()
    # They wait until the other version has handlers: what they do without would end it.
    signals.pthread_sigmask(signals.SIG_BLOCK, signals.HANDLED)
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        os.execve(program, (program, *arguments, STATE_FLAG, str(state), ACTION), dict(os.environ))
    except OSError as error:
        why = f"{program}: {reason(error)}"
    for fd in kept:
        os.set_inheritable(fd, False)
    signals.pthread_sigmask(signals.SIG_UNBLOCK, signals.HANDLED)
    return why


def keep_to_ourselves() -> None:
    """Have no descriptor but stdio go to what is executed from now on."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2:
                os.set_inheritable(fd, False)
        except OSError:
            continue  # the listing's own
