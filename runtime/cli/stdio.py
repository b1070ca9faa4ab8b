"""The stdio that ``gvctl`` gives a process, and what it tells of it: terminals, pid files."""

from __future__ import annotations

import os

from runtime.base import files
from runtime.base.errors import Failed, RuntimeFault, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.bundle.process_spec import ProcessSpec


def open_terminal(process: ProcessSpec) -> tuple[int, int]:
    """A new terminal's master and slave, of the size that the process asks for."""
    import pty
    import termios

    master, slave = pty.openpty()
    if process.console_size is not None:
        termios.tcsetwinsize(master, process.console_size)
    return master, slave


class Reopened:
    """Our stdio as descriptions of their own, where that can be had; a context manager.

    The sentry makes what it gets non-blocking, which others who share it would not expect.
    """

    def __enter__(self) -> tuple[int, int, int]:
        self._fds = _reopened()
        return self._fds

    def __exit__(self, *_: object) -> None:
        close(self._fds)


def _reopened() -> tuple[int, int, int]:
    found: list[int] = []
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            append = os.O_APPEND if flags else 0
            found.append(
                os.open(f"/proc/self/fd/{number}", flags | append | os.O_CLOEXEC | os.O_NOCTTY)
            )
        except OSError:  # a socket, or closed
            try:
                found.append(os.dup(number))
            except OSError:
                found.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    return found[0], found[1], found[2]


def close(fds: tuple[int, ...]) -> None:
    for fd in set(fds):
        os.close(fd)


def write_pid(path: str, pid: int) -> None:
    """Write a pid file, as the last thing before success.  Raises Failed."""
    if not path:
        return
    try:
        files.replace_file(path, str(pid).encode(), 0o644)
    except OSError as error:
        raise Failed(f"pid file {path}: {reason(error)}") from None


def message(error: BaseException) -> str:
    """An error in the words that its user gets."""
    if isinstance(error, RuntimeFault):
        return str(error)
    return str(error) or type(error).__name__
