"""The release of the containerd that runs us, on which the form of ``start``'s reply depends.

With a version 3 reply, containerd runs no ``start`` and ``delete`` for the further containers of a
pod.  But containerd 1.7 rejects it and 2.0.0 to 2.0.5 mishandle it, and nothing in a shim's
environment tells 1.7 from 2.x.  So the first ``start`` asks the binary, while the daemon that it
forked gets ready, and keeps the answer; later ones only compare the running daemon's executable
with the one that was asked.  No answer means version 2, which every containerd accepts.

Each executable has a record of its own, so that daemons of several releases on one host, or an
upgraded one that is yet to be restarted, do not overwrite each other's.
"""

from __future__ import annotations

import os
import stat

from runtime.base import files
from runtime.base.errors import DeadlineExceeded, RuntimeFault
from shim.forkserver import caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Where the answers are kept, for all shims of the host.  Nobody but root may look or write there.
RECORDS = "/run/containerd-shim-gvisor/containerd"
#: More executables than that no host has; the oldest answers go first.
MAX_RECORDS = 16
#: What stands in the record of an executable whose answer isn't understood.
_NO_ANSWER = "-"
_MAX_RECORD = 64
_MAX_OUTPUT = 4096
_ASK_TIMEOUT = 2.0


def _identity(path: str) -> str:
    """What changes when the executable at ``path`` does; a file name.  Raises OSError."""
    info = os.stat(path)
    return f"{info.st_dev:x}-{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"


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


def known_version(daemon_exe: str = "", records: str = RECORDS) -> str | None:
    """The version of the running containerd, empty if it has none that we understand.

    None if nobody has asked it yet.  ``daemon_exe`` is the executable of our parent: that of the
    process itself, as after an upgrade the file on disk is newer than the daemon that still runs.
    Never fails.
    """
    try:
        return _read(records, _identity(daemon_exe or f"/proc/{caller.parent()}/exe"))
    except (OSError, RuntimeFault):
        return None


def _is_ours(records: str) -> bool:
    """Whether it is a directory that nobody else can write in."""
    try:
        info = os.lstat(records)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077


def _read(records: str, identity: str) -> str | None:
    if not _is_ours(records):
        return None
    data = files.read_bounded(os.path.join(records, identity), _MAX_RECORD)
    if data is None:
        return None
    version = data.decode("ascii", "replace").strip()
    if version == _NO_ANSWER:
        return ""
    return version if _numbers(version) else None


def learn_version(
    publish_binary: str,
    daemon_exe: str = "",
    records: str = RECORDS,
    ask: Callable[[str], str] | None = None,
) -> str:
    """Ask the running containerd for its version and keep the answer; returns it, or empty.

    It is asked only if ``publish_binary``, which containerd names, is the file that our parent
    runs.  One process asks, the others wait for its answer; two seconds at most, and a binary that
    takes longer isn't asked again.  Raises RuntimeFault or OSError.
    """
    if not publish_binary.startswith("/"):
        return ""
    identity = _identity(publish_binary)
    if identity != _identity(daemon_exe or f"/proc/{caller.parent()}/exe"):
        return ""
    for directory in (os.path.dirname(records), records):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            continue
    if not _is_ours(records):
        return ""
    with files.DirectoryLock(records):
        known = _read(records, identity)
        if known is not None:
            return known
        version = parse_version((ask or _ask)(publish_binary))
        if _identity(publish_binary) != identity:
            return ""
        _make_room(records)
        text = f"{version or _NO_ANSWER}\n"
        files.replace_file(os.path.join(records, identity), text.encode("ascii"))
    return version


def _make_room(records: str) -> None:
    """Forget the oldest answers, and whatever a process left that died while it wrote one."""
    found = []
    with os.scandir(records) as entries:
        for entry in entries:
            try:
                found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
            except FileNotFoundError:
                continue  # another `start` has just made room
    found.sort(reverse=True)
    for _, path in found[MAX_RECORDS - 1 :]:
        files.remove_file(path)


def _ask(binary: str) -> str:
    """What ``binary --version`` prints; nothing if it takes too long."""
    from shim import paths

    paths.complete("_cffi_backend")
    from runtime.host.run import Run
    from runtime.host.spawn_spec import SpawnSpec

    with Run(SpawnSpec(path=binary, argv=(binary, "--version")), _MAX_OUTPUT) as run:
        try:
            return run.result(_ASK_TIMEOUT)[1]
        except DeadlineExceeded:
            return ""
