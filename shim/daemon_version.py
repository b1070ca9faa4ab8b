"""Which containerd runs us, as far as the form of ``start``'s reply depends on it.

A version 3 reply spares every further container of a pod its ``start`` and ``delete``, but
containerd 1.7 rejects it and 2.0.0 to 2.0.5 mishandle it, and nothing in a shim's environment
tells 1.7 from 2.x.  So the daemon asks the binary once and keeps the answer in a file; ``start``
only compares the running daemon's executable with what was asked.  No answer means version 2,
which every containerd accepts.
"""

from __future__ import annotations

import os

from runtime import files
from runtime.errors import RuntimeFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Where the answer is kept, for all shims of the host.
CACHE_PATH = "/run/containerd-shim-gvisor/containerd-version"
_MAX_CACHE = 4096
_MAX_OUTPUT = 4096
_ASK_TIMEOUT = 5.0


def _identity(path: str) -> str:
    """What changes when the executable at ``path`` does.  Raises OSError."""
    info = os.stat(path)
    return f"{info.st_dev} {info.st_ino} {info.st_mtime_ns} {info.st_size}"


def parse_version(output: str) -> str:
    """The version in what ``containerd --version`` prints; empty for anything else.

    Dockerd and k3s carry containerd's code in binaries that print something else.
    """
    words = output.split()
    if len(words) < 3 or words[0] != "containerd" or "/containerd" not in words[1]:
        return ""
    # Build metadata and Debian's mark of repacked sources ("1.7.24~ds1") change no code.
    version = words[2].removeprefix("v").partition("+")[0].partition("~ds")[0]
    return version if _numbers(version) else ""


def _numbers(version: str) -> tuple[int, int, int] | None:
    # What a pre-release has of the fixes, its number doesn't tell: not understood.
    parts = version.split(".")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() for p in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def accepts_version_3(version: str) -> bool:
    """Whether that containerd handles a version 3 reply in JSON rightly."""
    numbers = _numbers(version)
    return numbers is not None and numbers[0] == 2 and (numbers >= (2, 1, 0) or numbers[2] >= 6)


def known_version(
    publish_binary: str, cache_path: str = CACHE_PATH, daemon_exe: str | None = None
) -> str:
    """The version of the running containerd if it was learnt before, else empty.  Never fails.

    ``daemon_exe`` is the executable of our parent.  It must be the very file that was asked: after
    an upgrade the binary on disk is newer than the daemon that still runs.
    """
    if not publish_binary.startswith("/"):
        return ""
    try:
        data = files.read_bounded(cache_path, _MAX_CACHE)
        if data is None or os.stat(cache_path).st_uid != os.geteuid():
            return ""
        identity, _, version = data.decode("ascii").strip().rpartition(" ")
        running = _identity(daemon_exe or f"/proc/{os.getppid()}/exe")
    except (OSError, ValueError, RuntimeFault):
        return ""
    return version if identity == running and _numbers(version) else ""


def learn_daemon_version(
    publish_binary: str,
    cache_path: str = CACHE_PATH,
    ask: Callable[[str], bytes] | None = None,
) -> str:
    """Ask ``publish_binary`` for its version and keep the answer; returns it, or empty.

    For the daemon, on a worker thread: it takes as long as containerd's start-up of a process, 5 s
    at most.  Does nothing if the answer for this binary is known already.  Raises RuntimeFault
    or OSError; the caller logs it and lives on.
    """
    if not publish_binary.startswith("/"):
        return ""
    identity = _identity(publish_binary)
    known = files.read_bounded(cache_path, _MAX_CACHE)
    if known is not None and known.decode("ascii", "replace").rpartition(" ")[0] == identity:
        return known.decode("ascii", "replace").rpartition(" ")[2].strip()
    version = parse_version((ask or _ask)(publish_binary).decode("utf-8", "replace"))
    if _identity(publish_binary) != identity:
        return ""
    os.makedirs(os.path.dirname(cache_path), 0o711, exist_ok=True)
    files.replace_file(cache_path, f"{identity} {version or '-'}\n".encode("ascii"))
    return version


def _ask(binary: str) -> bytes:
    import select
    import time

    from runtime.errors import DeadlineExceeded
    from runtime.spawn import SpawnSpec, spawn

    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = spawn(SpawnSpec(path=binary, argv=(binary, "--version"), fds={1: writer}))
        finally:
            os.close(writer)
        deadline = time.monotonic() + _ASK_TIMEOUT
        output = b""
        try:
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            while len(output) < _MAX_OUTPUT:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise DeadlineExceeded(f"{binary} --version", _ASK_TIMEOUT)
                chunk = os.read(reader, _MAX_OUTPUT)
                if not chunk:
                    break
                output += chunk
        finally:
            child.kill(9)
            child.wait(_ASK_TIMEOUT)
            child.close()
    finally:
        os.close(reader)
    return output
