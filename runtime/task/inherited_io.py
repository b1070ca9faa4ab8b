"""Stdio that the caller has open already, or a terminal whose other end goes to a socket.

Owns the descriptors of a terminal that it opens; what is given stays the caller's.  This is how
the OCI runtime command line gets its stdio: inherited, or ``--console-socket``.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
import termios

from runtime.base.errors import Failed, InvalidRequest, ResourceExhausted, reason
from runtime.runsc.urpc import SocketPath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds for whoever listens at the console socket to take the terminal.
_SEND_TIMEOUT = 10.0
#: What comes with the terminal, as runc sends it; readers want a byte at least.
_NAME = b"/dev/ptmx"


class GivenIO:
    """An :class:`runtime.task.process.IO` of descriptors that somebody else copies from and to."""

    on_signal: Callable[[int], None] | None = None

    def __init__(self, fds: tuple[int, int, int], terminal: bool) -> None:
        self.sentry_fds = fds
        self.terminal = terminal
        self._slave = -1

    @classmethod
    def with_console(cls, path: str, size: tuple[int, int] | None) -> GivenIO:
        """Open a terminal and send its master to the socket at ``path``.

        ``size`` is (height, width) in characters.  Raises Failed naming the socket,
        ResourceExhausted.
        """
        try:
            master, slave = os.openpty()
        except OSError as error:
            raise ResourceExhausted(f"open a terminal: {reason(error)}") from None
        try:
            if size is not None:
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            send_descriptor(path, master)
        except BaseException:
            os.close(slave)
            raise
        finally:
            os.close(master)
        io = cls((slave,) * 3, True)
        io._slave = slave
        return io

    def release_sentry_fds(self) -> None:
        """Close what was opened for the sentry, which has its own by now.  Idempotent."""
        slave, self._slave = self._slave, -1
        if slave >= 0:
            os.close(slave)

    def resize(self, width: int, height: int) -> None:
        """The holder of the master does that."""

    def close_stdin(self) -> None:
        """The holder of the other end does that."""

    def finish(self) -> None:
        """Whoever copies looks after the end."""

    def await_reading(self, patience: float, timeout: float) -> None:
        """The reader is the caller's."""

    def drain(self, timeout: float) -> bool:
        """Nothing is held here."""
        return True

    def close(self) -> None:
        """Idempotent."""
        self.release_sentry_fds()


def send_descriptor(path: str, fd: int) -> None:
    """Send ``fd``, which stays the caller's, to who listens at the socket ``path``.

    Raises Failed naming the socket.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_SEND_TIMEOUT)
        with SocketPath(path) as usable:
            sock.connect(usable)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=i", fd))
        sock.sendmsg([_NAME], [rights], _socket.MSG_NOSIGNAL)
    except TimeoutError:
        raise Failed(f"console socket {path}: nobody takes the terminal") from None
    except OSError as error:
        raise Failed(f"console socket {path}: {reason(error)}") from None
    finally:
        sock.close()


def check_terminal(terminal: bool, console_socket: str, stdio: tuple[int, int, int]) -> None:
    """Whether there is a terminal for a process that wants one, and none for one that doesn't.

    Raises InvalidRequest.
    """
    if console_socket and not terminal:
        raise InvalidRequest("console socket", "is given, but process.terminal is not set")
    if terminal and not console_socket and not os.isatty(stdio[0]):
        raise InvalidRequest(
            "process.terminal", "is set, but there is neither a console socket nor a terminal"
        )
