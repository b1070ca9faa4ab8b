"""The network of a sandbox: what the sentry is told about its interfaces, and the sockets for it.

Owns the life of the helper process that reads the network namespace (``runtime/network/helper.py``)
and the order of the steps; what the sentry gets is decided in ``runtime/network/argument.py``.
Must not import pyroute2, which costs more than the rest of the shim: that is the helper's.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import sys
import threading
import time

from runtime.base.errors import DeadlineExceeded, Failed, InvalidRequest, reason
from runtime.base.record import Record
from runtime.base.signals import SIGKILL, pidfd_send_signal
from runtime.host import forkservers
from runtime.host.linux import CLONE_NEWNET
from runtime.host.pids import wait_exit
from runtime.host.spawn import spawn
from runtime.host.spawn_spec import SpawnSpec
from runtime.network.argument import NetworkOptions, loopback_argument, plan, read_options
from runtime.network.routes import Link, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeAlias

    from runtime.host.spawn import Child

    Helper: TypeAlias = "Child | Forked"

__all__ = ("NetworkSetup", "PendingScrape", "begin", "check", "loopback_argument", "scrape")

_NAMESPACE = "network namespace"
_NS_GET_NSTYPE = 0xB703
# How long a helper that is no longer needed may take to put things back and end.
_UNDO_TIME = 5.0
# -I and -S: neither the environment nor site files have a say in what runs here as root.
_START = "import sys; sys.path[:] = sys.argv[1:]; from runtime.network.helper import main; main()"


class NetworkSetup(Record):
    """The argument of the sentry's network call, and the descriptors that go with it.

    The owner closes ``fds`` once they are sent.  ``argument`` is JSON-able and is kept for a
    restore: the addresses that were taken off the host's link can't be read a second time.

    They are off for good once the owner calls ``keep``; ``put_back`` brings them back, and so does
    the end of this process.
    """

    argument: Mapping[str, Any]
    fds: tuple[int, ...] = ()
    taken: PendingScrape | None = None

    def hand_over(self, send: Callable[[Mapping[str, Any], tuple[int, ...]], object]) -> None:
        """Give it to the sentry, by ``send``; what that raises is raised, with all put back."""
        try:
            send(self.argument, self.fds)
        except BaseException:
            self.put_back()
            raise
        finally:
            for fd in self.fds:
                os.close(fd)

    def keep(self) -> None:
        """The sandbox has the addresses now.  Never raises, idempotent."""
        if self.taken is not None:
            self.taken.keep()

    def put_back(self) -> None:
        """The sandbox failed: the host's links get their addresses and routes again."""
        if self.taken is not None:
            self.taken.cancel()


def scrape(
    boot_pid: int,
    *,
    flags: Mapping[str, str],
    deadline: float,
    kept: Mapping[str, Any] | None = None,
    sorts: bool = False,
) -> NetworkSetup:
    """Take over what is configured in the network namespace of process ``boot_pid``.

    A namespace that has no more than a loopback needs no helper and answers at once.
    ``flags`` are runsc's global flags; ``deadline`` is a ``time.monotonic()`` value; ``kept`` and
    ``sorts`` are as for :func:`begin`.  Raises what that and :meth:`PendingScrape.result` raise.
    """
    if _has_only_loopback(boot_pid):
        options = read_options(flags)
        argument = loopback_argument(gro=options.gro, disconnect_ok=options.disconnect_ok)
        return NetworkSetup(argument=argument)
    return begin(boot_pid, flags=flags, kept=kept, sorts=sorts).result(deadline)


def check(path: str) -> None:
    """Raises InvalidRequest if ``path`` is no network namespace, or the host's: see `begin`."""
    os.close(_open_namespace(path))


def begin(
    netns: int | str,
    *,
    flags: Mapping[str, str],
    kept: Mapping[str, Any] | None = None,
    sorts: bool = False,
) -> PendingScrape:
    """Start to read a network namespace, given as a path or as the pid of a process in it.

    Nothing is changed before :meth:`PendingScrape.result`, so that this can be called while the
    sentry boots.  The caller must call ``result`` or ``cancel``.  ``kept`` is what a sandbox that
    is to be restored was told of its network: a link whose addresses that one took gets them.
    ``sorts`` tells of the sandbox's netstack, as for :func:`runtime.network.routes.decide`.

    Raises InvalidRequest if it is not a network namespace, or the host's own, whose addresses
    must not be taken; InvalidRequest or Unsupported for the flags; Failed.
    """
    options = read_options(flags)
    path = netns if isinstance(netns, str) else f"/proc/{netns}/ns/net"
    fd = _open_namespace(path)
    try:
        return PendingScrape(fd, options, kept, sorts)
    finally:
        os.close(fd)


class PendingScrape:
    """A helper at work.  ``cancel`` may be called from any thread, at any time."""

    def __init__(
        self,
        namespace: int,
        options: NetworkOptions,
        kept: Mapping[str, Any] | None = None,
        sorts: bool = False,
    ) -> None:
        """For :func:`begin`: start the helper in the namespace that ``namespace`` is open on."""
        self._options = options
        self._kept = kept
        self._sorts = sorts
        self._lock = threading.Lock()
        self._child: Helper | None = None  # guarded by _lock
        self._said = ""  # guarded by _lock until the helper has ended
        self._channel, theirs = _socket.socketpair()
        self._errors = os.memfd_create("network-helper-stderr", os.MFD_CLOEXEC)
        try:
            self._child = _start_helper(namespace, theirs.fileno(), self._errors)
        except BaseException:
            self._channel.close()
            os.close(self._errors)
            raise
        finally:
            theirs.close()

    def result(self, deadline: float) -> NetworkSetup:
        """Take the addresses off the host's links and return what the sentry needs.

        If it raises they are where they were, and until :meth:`keep` they can get back there.  Can
        be called once.  Raises InvalidRequest or
        Unsupported if the sentry can't have such a network, DeadlineExceeded, Failed.
        """
        started = time.monotonic()
        fds: list[int] = []
        try:
            setup = self._converse(deadline, fds)
        except BaseException as error:
            self.cancel()
            for fd in fds:
                os.close(fd)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("network helper", deadline - started) from None
            if isinstance(error, (EOFError, OSError, ValueError)):
                raise Failed(f"network helper: {self._said or repr(error)}") from error
            raise
        if setup.taken is None:
            self.cancel()
        return setup

    def keep(self) -> None:
        """The sandbox has the addresses now; ends the helper.  Never raises, idempotent."""
        from runtime.network.channel import send

        try:
            self._channel.settimeout(_UNDO_TIME)
            send(self._channel, {"kept": True})
        except OSError:
            pass  # it is gone, and leaves things as they are
        self.cancel()

    def cancel(self) -> None:
        """End the helper, which leaves the namespace as it was; idempotent.

        Once it has returned, everything is back that was to be put back.
        """
        with self._lock:
            child, self._child = self._child, None
            if child is None:
                return
            self._said = self._last_words()
            # To the helper this is the sign to put back what isn't acknowledged.  shutdown()
            # wakes a thread that waits in result().
            _hang_up(self._channel)
            os.close(self._errors)
        try:
            child.wait(_UNDO_TIME)
        except DeadlineExceeded:
            child.kill(SIGKILL)
        child.close()

    def _converse(self, deadline: float, fds: list[int]) -> NetworkSetup:
        from runtime.network.channel import receive, receive_with_fds, send

        channel = self._channel
        _limit(channel, deadline)
        found = _answer(receive(channel))
        links = tuple(_link(each) for each in found["links"])
        if self._kept is not None:
            from runtime.network.restored import give_back

            links = give_back(links, self._kept)
        refused = tuple(Route(**each) for each in found["refused"])
        planned = plan(links, self._options, refused=refused, sorts=self._sorts)
        if not planned.sockets:
            return NetworkSetup(argument=planned.argument)
        order = [
            {"index": each.index, "count": each.count, "vnet_hdr": each.vnet_hdr}
            for each in planned.sockets
        ]
        _limit(channel, deadline)
        send(channel, {"sockets": order})
        _limit(channel, deadline)
        _answer(receive_with_fds(channel, fds))
        expected = sum(each.count for each in planned.sockets)
        if len(fds) != expected:
            raise Failed(f"network helper: {len(fds)} sockets instead of {expected}")
        if planned.argument["PCAP"]:
            fds.append(_open_packet_log(self._options.pcap))
        return NetworkSetup(argument=planned.argument, fds=tuple(fds), taken=self)

    def _last_words(self) -> str:
        """The end of what the helper wrote to stderr: the message of an unexpected error."""
        size = os.fstat(self._errors).st_size
        text = os.pread(self._errors, 1000, max(size - 1000, 0)).decode("utf-8", "replace")
        lines = text.strip().splitlines()
        return lines[-1] if lines else ""


class Forked:
    """A helper that the fork server has forked: no child of ours, so there is no status."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    def wait(self, timeout: float) -> None:
        """Wait for its end.  Raises DeadlineExceeded after ``timeout`` seconds."""
        if not wait_exit(self._pidfd, timeout):
            raise DeadlineExceeded("network helper", timeout)

    def kill(self, signo: int) -> None:
        """Send a signal.  No error if it has ended."""
        try:
            pidfd_send_signal(self._pidfd, signo)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Give up the handle.  Once."""
        os.close(self._pidfd)


def _start_helper(namespace: int, channel: int, errors: int) -> Helper:
    """A helper in the namespace: of the fork server, which has its library, or on our own."""
    if forkservers.ours:
        try:
            return Forked(forkservers.fork_in_network(forkservers.ours, namespace, channel, errors))
        except (OSError, Failed):
            pass  # it has ended, as it may at any time
    return spawn(
        SpawnSpec(
            path=sys.executable,
            argv=(sys.executable, "-I", "-S", "-c", _START, *_module_paths()),
            env={},
            cwd="/",
            fds={2: errors, 3: channel},
            join=((namespace, CLONE_NEWNET),),
        )
    )


def _hang_up(channel: _socket.socket) -> None:
    try:
        channel.shutdown(_socket.SHUT_RDWR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
    finally:
        channel.close()


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    if "error" in message:
        raise Failed(f"network helper: {message['error']}")
    return message


def _link(found: Mapping[str, Any]) -> Link:
    return Link(
        **{
            **found,
            "addresses": tuple(tuple(each) for each in found["addresses"]),
            "routes": tuple(Route(**each) for each in found["routes"]),
            "neighbors": tuple(tuple(each) for each in found["neighbors"]),
        }
    )


def _limit(channel: _socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    channel.settimeout(left)


def _module_paths() -> list[str]:
    """Where this process finds its modules; relative entries would depend on the bundle.

    Our own come first: an editable install has them in a place that the path doesn't name.
    """
    ours = __file__
    for _ in range(3):
        ours = os.path.dirname(os.path.abspath(ours))
    return [ours, *(path for path in sys.path if path.startswith("/") and path != ours)]


def _has_only_loopback(pid: int) -> bool:
    """Has the process's network namespace no other link?  (proc_pid_net(5), two lines of heads)"""
    try:
        with open(f"/proc/{pid}/net/dev", "rb") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return False  # the helper will tell why
    return all(line.partition(b":")[0].strip() == b"lo" for line in lines)


def _open_namespace(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InvalidRequest(_NAMESPACE, f"{path}: {why.lower()}") from error
    try:
        try:
            kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            raise InvalidRequest(_NAMESPACE, f"{path}: is not a network namespace")
        if _is_host_namespace(fd):
            raise InvalidRequest(
                _NAMESPACE,
                f"{path}: is the host's, whose addresses cannot be given to a sandbox; "
                "such a pod needs the runsc flag network=host",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_host_namespace(fd: int) -> bool:
    status = os.fstat(fd)
    for owner in ("1", "self"):
        try:
            other = os.stat(f"/proc/{owner}/ns/net")
        except OSError:
            continue  # not ours to see
        if (status.st_dev, status.st_ino) == (other.st_dev, other.st_ino):
            return True
    return False


def _open_packet_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o664)
    except (OSError, ValueError) as error:
        raise Failed(f"packet log {path}: {error}") from error
