"""A process that stands for a detached exec on the host, and ends with its status.

Callers such as podman's conmon wait for the pid in the pid file and take its exit status for the
container's process; but the host has no such process.  This one stays behind in its place.  The
exec's terminal is its controlling terminal, so that the kernel's signals for it (^C, a new size,
a hang-up) arrive and are passed on.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
from functools import partial

from runtime.base.errors import DeadlineExceeded, Failed
from runtime.cli import attached, stdio
from runtime.task.inherited_io import send_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runtime.bundle.process_spec import ProcessSpec
    from runtime.state.loaded import StoredContainer

#: Seconds in which the process must be up, or known not to be.
START_TIMEOUT = 60.0
_UP = b"+"


def leave(container: StoredContainer, process: ProcessSpec, args: argparse.Namespace) -> int:
    """Start the process with its stand-in behind, write the stand-in's pid, and return.

    Raises Failed with the reason if it can't be started.  Must be called while there is but one
    thread.
    """
    told, telling = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(told)
            status = _stay(container, process, args.console_socket, telling)
        finally:
            os._exit(status)
    os.close(telling)
    poller = select.poll()
    poller.register(told, select.POLLIN)
    words = b""
    try:
        while b"\n" not in words:
            if not poller.poll(START_TIMEOUT * 1000):
                os.kill(child, signal.SIGKILL)
                raise DeadlineExceeded("exec", START_TIMEOUT)
            chunk = os.read(told, 65536)
            if not chunk:
                break
            words += chunk
    finally:
        os.close(told)
    if not words.startswith(_UP):
        os.waitpid(child, 0)
        raise Failed(
            words.decode("utf-8", "replace").strip() or "exec: the process was not started"
        )
    stdio.write_pid(args.pid_file, child)
    if args.detach:
        return 0
    return _follow(child)


def _follow(child: int) -> int:
    """Wait for the stand-in, passing signals on."""

    def wait() -> int:
        _, raw = os.waitpid(child, 0)
        status = os.waitstatus_to_exitcode(raw)
        return status if status >= 0 else 128 - status

    return attached.run(wait, partial(os.kill, child))


def _stay(
    container: StoredContainer, process: ProcessSpec, console_socket: str, telling: int
) -> int:
    """Be the stand-in; the exit status of what it stands for."""
    try:
        os.setsid()
        if process.terminal:
            pid = _start_with_terminal(container, process, console_socket)
        else:
            with stdio.Reopened() as fds:
                pid = container.execute(process, fds, False)
    except BaseException as error:
        os.write(telling, stdio.message(error).encode("utf-8", "replace") + b"\n")
        return 1
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)

    def ready() -> None:
        os.write(telling, _UP + b"\n")
        os.close(telling)

    send = container.signal_foreground if process.terminal else container.signal_process
    forward = partial(attached.quietly, send, pid)
    return attached.run(partial(container.wait_pid, pid), forward, ready=ready)


def _start_with_terminal(
    container: StoredContainer, process: ProcessSpec, console_socket: str
) -> int:
    master, slave = stdio.open_terminal(process)
    # A description of its own: the sentry makes its one non-blocking.
    own = os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(own, termios.TIOCSCTTY, 0)
    try:
        send_descriptor(console_socket, master)
        return container.execute(process, (slave, slave, slave), True)
    finally:
        os.close(master)
        os.close(slave)
        os.close(own)
