"""Opening the FIFOs and files that containerd names as a process's stdio.

Owns the order in which a FIFO's ends are opened.  Knows nothing of terminals, of URIs, or of who
gets the descriptors.

Nothing here blocks, whoever else has the FIFO open.  A path is resolved once, to an ``O_PATH``
descriptor whose type is checked, and is opened through that, so that it can't be swapped between
the check and the opening.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import time

from runtime.base.errors import Failed, InvalidRequest, ResourceExhausted, RuntimeFault, reason
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_NULL_DEVICE = os.makedev(1, 3)
#: ``termios.FIONREAD``, without the import.
_FIONREAD = 0x541B
#: Seconds between two looks for a reader.
READER_INTERVAL = 0.002
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)


class Located(Record):
    """A path that was looked up; ``fd`` is ``O_PATH`` and is closed at the end of a ``with``."""

    field: str
    path: str
    fd: int
    is_fifo: bool
    identity: tuple[int, int]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class Input(Record):
    """``fd`` is to be read; ``writer`` (-1: none) holds back EOF for as long as it is open."""

    fd: int
    writer: int = -1


class Output(Record):
    """``fd`` is to be written; ``keeper`` (-1: none) keeps the FIFO's contents, and the writer
    from EPIPE, for as long as it is open."""

    fd: int
    keeper: int = -1


def fault(field: str, path: str, error: OSError) -> RuntimeFault:
    """The exception for an ``OSError`` about ``path``, which the request's ``field`` named."""
    if error.errno in _EXHAUSTED:
        return failed(f"{field}: {path}", error)
    return InvalidRequest(field, f"{path}: {reason(error)}")


def failed(what: str, error: OSError) -> RuntimeFault:
    """The exception for an ``OSError`` that isn't about a path of the request."""
    why = f"{what}: {reason(error)}"
    return ResourceExhausted(why) if error.errno in _EXHAUSTED else Failed(why)


def locate(field: str, path: str) -> Located:
    """Look up ``path``; the result is to be used in a ``with`` statement.

    Raises InvalidRequest, naming ``field`` and the path, if it is missing or can't be reached, is
    not absolute, or is neither a FIFO, a regular file nor the null device.
    """
    check_path(field, path)
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise fault(field, path, error) from error
    try:
        status = os.fstat(fd)
        kind = status.st_mode
        is_null = stat.S_ISCHR(kind) and status.st_rdev == _NULL_DEVICE
        if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or is_null):
            raise InvalidRequest(field, f"{path}: is neither a FIFO nor a regular file")
    except BaseException:
        os.close(fd)
        raise
    return Located(
        field=field,
        path=path,
        fd=fd,
        is_fifo=stat.S_ISFIFO(kind),
        identity=(status.st_dev, status.st_ino),
    )


def check_path(field: str, path: str) -> None:
    """Raises InvalidRequest unless ``path`` is absolute and can be handed to the kernel."""
    if not path.startswith("/"):
        raise InvalidRequest(field, f"{path!r}: is not an absolute path")
    if "\0" in path:
        raise InvalidRequest(field, f"{path!r}: has a NUL character")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, f"{path!r}: is not text that can name a file") from error


def open_input(where: Located, *, nonblock: bool) -> Input:
    """Open a FIFO or file for reading; for a FIFO, open our own writer too.

    The order keeps data and EOF.  An ``O_RDWR`` descriptor, which never blocks, stands in for
    both sides while the two real ones are opened.  From then on the FIFO has a reader, so
    whatever containerd writes stays in it, and it has our writer, so that the reader sees no EOF
    in the time before containerd's writer is there, nor while containerd restarts.  EOF comes
    once containerd's writer and ours are both closed, as containerd's runc shim has it (it too
    holds a writer until CloseIO: ``cmd/containerd-shim-runc-v2/process/init.go``).

    ``nonblock`` is for a reader of our own.  The sentry's must be left in blocking mode: it hands
    the flag on to the application, whose reads would then fail with EAGAIN.
    """
    mode = os.O_NONBLOCK if nonblock else 0
    if not where.is_fifo:
        return Input(fd=_reopen(where, os.O_RDONLY | mode))
    both = _reopen(where, os.O_RDWR | os.O_NONBLOCK)
    try:
        fd = _reopen(where, os.O_RDONLY | mode)
        try:
            writer = _reopen(where, os.O_WRONLY | os.O_NONBLOCK)
        except BaseException:
            os.close(fd)
            raise
    finally:
        os.close(both)
    return Input(fd=fd, writer=writer)


def open_output(where: Located, *, nonblock: bool) -> Output:
    """Open a FIFO for writing, or a file for appending; for a FIFO, open our keeper too.

    The keeper is a reader that never reads.  It is opened first, without blocking, so that the
    writer's opening finds a reader and doesn't wait for containerd's.  While it is open the
    writer gets no EPIPE when containerd's reader goes away, and what was written waits in the
    pipe for the next reader.  As it can't write it doesn't hold back EOF: containerd's reader
    sees that as soon as the last writer is closed.

    ``nonblock`` is as for :func:`open_input`.
    """
    mode = os.O_NONBLOCK if nonblock else 0
    if not where.is_fifo:
        return Output(fd=_reopen(where, os.O_WRONLY | os.O_APPEND | mode))
    keeper = _reopen(where, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fd = _reopen(where, os.O_WRONLY | mode)
    except BaseException:
        os.close(keeper)
        raise
    return Output(fd=fd, keeper=keeper)


def await_reader(keeper: int, patience: float, timeout: float) -> bool:
    """Wait until all output has been read; returns whether it has.

    When a delete is answered, containerd's client closes its ends whatever they still hold (Go
    client ``cio``: Cancel), and a process that was short may be over before the client's threads
    have even opened them.  So this waits: ``timeout`` seconds at most if there is a reader, and
    ``patience`` seconds, if that is less, for one to come.

    ``keeper`` is one of the FIFO's ends and is closed: only without it the kernel tells whether
    there is another reader.  Of its reading there is no notification, so this looks again every
    few milliseconds; it does so only where output is about to be lost.
    """
    if not unread(keeper):
        os.close(keeper)
        return True
    try:
        # Keeps the contents, and lets a reader's open succeed.
        writer = to_writer(keeper)
    except OSError:
        # No descriptor is to be had.  With ours it can't be seen whether there is another reader,
        # but what is left can.
        writer, timeout = keeper, min(patience, timeout)
    try:
        poll = select.poll()
        poll.register(writer, 0)
        began = time.monotonic()
        while unread(writer):
            alone = any(mask & select.POLLERR for _, mask in poll.poll(0))
            if time.monotonic() - began >= (min(patience, timeout) if alone else timeout):
                return False
            time.sleep(READER_INTERVAL)
        return True
    finally:
        os.close(writer)


def to_writer(fd: int) -> int:
    """A writer of the FIFO in place of ``fd``, which is one of its ends and is closed.

    Raises OSError; then ``fd`` is open still.
    """
    if is_writer(fd):
        return fd  # without a reader there is no second one to be had
    writer = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(fd)
    return writer


def is_writer(fd: int) -> bool:
    """Whether it is a FIFO's writing end."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY


def unread(fd: int) -> int:
    """The number of bytes in the FIFO behind ``fd``."""
    answer = bytearray(4)
    fcntl.ioctl(fd, _FIONREAD, answer)
    return int.from_bytes(answer, sys.byteorder)


def create_log(field: str, path: str) -> Located:
    """Make the file of a ``file://`` URI, and its directories, unless they are there.

    Modes are those of containerd's runc shim: 0644 and 0755.  Raises like :func:`locate`.
    """
    check_path(field, path)
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        # O_NONBLOCK: what is there already may be a FIFO that nobody reads (ENXIO).
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        os.close(os.open(path, flags, 0o644))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise fault(field, path, error) from error
    return locate(field, path)


def give_to(fd: int, uid: int, gid: int) -> None:
    """Make ``uid``:``gid`` the owner of the FIFO, pipe or terminal behind ``fd``, if that can be.

    Files and devices are left alone: they outlive the process and are others' to own.
    """
    status = os.fstat(fd)
    is_terminal = stat.S_ISCHR(status.st_mode) and status.st_rdev != _NULL_DEVICE
    if not (stat.S_ISFIFO(status.st_mode) or is_terminal):
        return
    if (status.st_uid, status.st_gid) == (uid, gid):
        return
    try:
        os.fchown(fd, uid, gid)
    except OSError as error:
        # gVisor's own runtime goes on without, too: not every file system knows owners.
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
            raise


def _reopen(where: Located, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{where.fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise fault(where.field, where.path, error) from error
