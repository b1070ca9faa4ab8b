"""The shim's listening socket: where it is, who may bind it, when it is stale.

Owns how the address is made, which must never change: a later shim finds the pod's running daemon
by it.  Uses the built-in socket type, as ``socket`` is slow to load.
"""

from __future__ import annotations

import _socket
import errno
import os

from runtime.base import files
from runtime.base.errors import Failed, InvalidRequest, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

DEFAULT_DIR = "/run/containerd/s"
SCHEME = "unix://"
#: What a shim's debug socket is called: the name of its own one, and this.
DEBUG_ENDING = ".debug"
#: What fits into sun_path with its terminator.
_MAX_PATH = 107
#: A daemon may be slow to accept, and a pod's connections are many.
_BACKLOG = 512


def path_of(address: str) -> str:
    """The path in ``unix://PATH``; empty for anything else.

    Addresses without the scheme name abstract sockets, which no shim of ours ever made.
    """
    return address[len(SCHEME) :] if address.startswith(SCHEME + "/") else ""


def debug_path(address: str) -> str:
    """Where a shim with this address has its debug socket; empty for an abstract address."""
    path = path_of(address)
    return path + DEBUG_ENDING if path else ""


def _join(*elements: str) -> str:
    """Go's ``filepath.Join``: empty elements dropped, the result cleaned."""
    joined = "/".join(e for e in elements if e)
    if not joined:
        return ""
    cleaned = os.path.normpath(joined)
    # POSIX keeps two leading slashes; Go doesn't.
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def socket_path(
    directory: str, grpc_address: str, namespace: str, group: str, *, debug: bool = False
) -> str:
    """Path of the socket that all members of a group share (containerd's ``SocketAddress``).

    Raises InvalidRequest if ``directory`` is relative or too long.
    """
    try:
        from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            from hashlib import sha256
    name = _join(grpc_address, namespace, group, "debug" if debug else "")
    digest: str = sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    path = _join(directory or DEFAULT_DIR, digest)
    if not path.startswith("/"):
        raise InvalidRequest("socket_dir", f"{directory!r} is not an absolute path")
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidRequest("socket_dir", f"{directory!r} is too long for a socket's path")
    return path


def is_served(path: str) -> bool:
    """Whether a process listens at ``path``.  Never blocks.

    A full backlog counts as served: a daemon that is merely busy must not lose its socket.
    """
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        probe.connect(os.fsencode(path))
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        probe.close()
    return True


def listen(path: str) -> int | None:
    """A descriptor listening at ``path``, mode 0600; None if another process listens there.

    Replaces a stale socket.  The caller holds the directory's lock.  Raises Failed.
    """
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        try:
            listener.bind(os.fsencode(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if is_served(path):
                return None
            remove(path)
            listener.bind(os.fsencode(path))
        try:
            os.chmod(path, 0o600)
            listener.listen(_BACKLOG)
        except OSError:
            os.unlink(path)
            raise
        return listener.detach()
    except OSError as error:
        raise Failed(f"listen on {path}: {reason(error)}") from None
    finally:
        listener.close()


def remove(path: str) -> None:
    """Unlink the socket at ``path``; no error if it is gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def identity(path: str) -> tuple[int, int] | None:
    """What tells this socket from one that is later bound to the same path; None if it is gone."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_ino, info.st_ctime_ns


def remove_if_same(path: str, expected: tuple[int, int] | None) -> None:
    """Unlink the socket at ``path`` if it is the one that ``expected`` identifies.

    For a process whose listener other processes may hold as well, so that it seems served.
    """
    with files.DirectoryLock(os.path.dirname(path)):
        if expected is not None and identity(path) == expected:
            remove(path + DEBUG_ENDING)
            remove(path)


def remove_stale(path: str) -> bool:
    """Unlink the socket at ``path`` unless a process listens there; whether it is gone now.

    Raises OSError or DeadlineExceeded.
    """
    if not os.path.lexists(path):
        return True
    with files.DirectoryLock(os.path.dirname(path)):
        if is_served(path):
            return False
        remove(path)
        return True


def remove_socket(address: str) -> None:
    """Unlink a daemon's own socket, to be called while it still listens.

    As long as it does, no other shim can have bound the path anew.
    """
    path = path_of(address)
    if path:
        remove(path)
