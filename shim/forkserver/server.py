"""The fork server: one process for each containerd, which forks shims in place of new interpreters.

It imports all that shims need, and then waits: for a connection, which a fork of it serves, for the
end of its containerd, or for its own time to end.  It has one thread and knows of no pod, so it may
be killed at any moment; the fork reads all that comes on a connection, and does what the launcher
was called for (``shim/forkserver/child.py``).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import _socket
import fcntl
import gc
import os
import select
import sys

from runtime.base.errors import RuntimeFault
from runtime.host import forkservers, linux
from runtime.host.pids import start_time
from shim.forkserver import child, layout, likeness, preload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Seconds without a call after which a server ends, unless there are shims.
IDLE = 600.0
#: The name of the process, and of shims.
COMM, SHIM_COMM = b"gvisor-forksrv", "containerd-shim"
_BACKLOG = 64


class ForkServer:
    """A server at work.  One thread."""

    def __init__(
        self,
        program: child.Program,
        path: str,
        containerd: int,
        package: str,
        pidfd: int,
        lock: int,
    ) -> None:
        self._path = path
        self._pidfd = pidfd
        self._lock = lock
        self.facts = child.ServerFacts(program, path, containerd, package, _identity(package))
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._ending = False
        #: Whether it ends since it can't be what its callers are.
        self.unlike = False

    def listen(self) -> None:
        """Be there for callers, at once and not before."""
        new = self._path + ".new"
        _unlink(new)
        self._listener.bind(os.fsencode(new))
        os.chmod(new, 0o600)
        self._listener.listen(_BACKLOG)
        os.rename(new, self._path)

    def serve(self) -> None:
        """Until there is a reason to end; then no new caller finds it any more."""
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.signal(_signal.SIGTERM, lambda *_: None)
        _signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for fd in (self._listener.fileno(), self._pidfd, self._wake[0]):
            self._epoll.register(fd, select.EPOLLIN)
        while not self._ending:
            found = dict(self._epoll.poll(IDLE))
            if not found and not _has_shims():
                break
            if self._pidfd in found or _identity(self.facts.package) != self.facts.identity:
                break
            if self._wake[0] in found:
                self._signalled()
            if self._listener.fileno() in found:
                self._accept()
        _unlink(self._path)
        self._listener.close()
        self._reap()

    def _signalled(self) -> None:
        try:
            numbers = os.read(self._wake[0], 256)
        except BlockingIOError:
            return
        self._ending |= _signal.SIGTERM in numbers
        self._reap()

    def _reap(self) -> None:
        """Forks that have ended; one that found no likeness to its caller ends us as well."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.unlike |= status == child.UNLIKE << 8
            self._ending |= self.unlike or status == child.END_SERVER << 8

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return  # it went away, or descriptors are short for the moment
        channel = _socket.socket(fileno=fd)
        try:
            pid, uid = forkservers.peer(channel)
            if uid != os.geteuid():
                return
            self.facts.forks += 1
            try:
                born = os.fork()
            except OSError:
                return  # the caller does without
            if not born:
                self._be(channel, pid)
        finally:
            channel.close()

    def _be(self, channel: _socket.socket, peer: int) -> NoReturn:
        """The fork: nothing of the server's but its memory, then what the caller wants."""
        status = 1
        try:
            _signal.set_wakeup_fd(-1)
            for number in (_signal.SIGCHLD, _signal.SIGTERM):
                _signal.signal(number, _signal.SIG_DFL)
            self._epoll.close()
            self._listener.close()
            for fd in (*self._wake, self._pidfd, self._lock):
                os.close(fd)
            status = child.serve(channel, peer, self.facts)
        finally:
            os._exit(status)


def _identity(package: str) -> tuple[int, ...]:
    """What changes when another version is installed in that place, or none is there."""
    try:
        found = [os.stat(os.path.join(package, name)) for name in ("shim", "shim/forkserver")]
    except OSError:
        return ()
    return tuple(n for info in found for n in (info.st_dev, info.st_ino, info.st_mtime_ns))


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _has_shims(proc: str = "/proc") -> bool:
    """Whether any shim of this interpreter lives."""
    try:
        ours = os.readlink(f"{proc}/self/exe")
    except OSError:
        return True
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                with open(f"{proc}/{name}/comm", encoding="ascii", errors="replace") as file:
                    if file.read().strip() != SHIM_COMM:
                        continue
                if os.readlink(f"{proc}/{name}/exe") == ours:
                    return True
            except OSError:
                continue
    return False


def _sweep(path: str) -> None:
    """End this containerd's servers of other versions, and remove what dead ones have left."""
    folder, name = os.path.split(path)
    of_ours = "-".join(name.split("-")[:2]) + "-"
    for other in forkservers.sockets(folder):
        if other != path and os.path.basename(other).startswith(of_ours):
            try:
                forkservers.end(other)
            except OSError:
                pass
    for entry in os.listdir(folder):
        stem = entry.partition(".")[0]
        lock = os.path.join(folder, stem + ".lock")
        if stem == name:
            continue
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            _unlink(os.path.join(folder, entry))
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for ending in ("", ".new", ".lock", forkservers.UNLIKE):
                _unlink(os.path.join(folder, stem + ending))
        except OSError:
            pass  # one that lives
        finally:
            os.close(fd)


def _dress(containerd: int) -> None:
    """What ps shows of it."""
    try:
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(COMM)
        words = [b"containerd-shim-gvisor-v2", b"fork-server", b"-containerd", b"%d" % containerd]
        linux.show_arguments(words, ())
    except OSError:
        pass  # it is called otherwise, then


def main(program: child.Program, path: str, containerd: int, started: int, lock: int) -> None:
    """Be the server of the process ``containerd`` that started at ``started``.

    ``lock`` is open on the locked file beside ``path``: of several that were left behind at once,
    one has it.  Returns when it is to end.
    """
    os.set_inheritable(lock, False)
    try:
        pidfd = os.pidfd_open(containerd)
        if start_time(containerd) != started:
            return
    except OSError:
        return  # gone already
    _dress(containerd)
    gc.disable()
    preload.everything(others=True)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    server = ForkServer(program, path, containerd, package, pidfd, lock)
    server.facts.born_with = likeness.own()
    _sweep(path)
    try:
        if has_ended(pidfd):
            return  # while we imported
        _kept = layout.settle()
        server.listen()
        server.serve()
    finally:
        if not server.unlike:
            _unlink(path + forkservers.UNLIKE)
        _unlink(path + ".lock")


def run(program: child.Program) -> NoReturn:
    """The process; see ``shim/forkserver/behind.py``, which starts it.

    Its forks do for a launcher what ``program`` does by the launcher's arguments.
    """
    status = 1
    try:
        path, containerd, started, lock = sys.argv[1:]
        main(program, path, int(containerd), int(started), int(lock))
        status = 0
    except RuntimeFault:
        pass
    finally:
        os._exit(status)
