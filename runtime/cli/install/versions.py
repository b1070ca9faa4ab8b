"""The installed versions: a folder each, with a link to the one that new pods get.

Owns what a bundle is, how it is copied, and which versions are still in use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys

from runtime.base import files
from runtime.base.errors import Failed, InvalidRequest, Unsupported
from runtime.base.record import Record
from runtime.state.lock import RECORD, SEPARATOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.install.node import Node
    from runtime.cli.install.runsc_source import RunscSource

PREFIX = "/opt/gvisor-shim"
SHIM = "bin/containerd-shim-gvisor-v2"
_SUMS, _CONTENTS = "share/SHA512SUMS", "share/contents.json"
_MAX_LIST = 4 << 20
_RUNSC_FOLDER = "runsc"


class Bundle(Record):
    """A bundle that lies in a folder of ours."""

    folder: str
    version: str
    arch: str
    sums: bytes

    def names(self) -> dict[str, str]:
        """Its files with their digests.  Raises InvalidRequest if the list can't be believed."""
        found = {}
        for line in self.sums.decode("utf-8", "surrogateescape").splitlines():
            digest, gap, name = line.partition("  ")
            if not gap or name.startswith("/") or ".." in name.split("/"):
                raise InvalidRequest(f"{self.folder}/{_SUMS}", f"has the line {line[:200]!r}")
            found[name] = digest
        return found


def own_bundle() -> Bundle:
    """The bundle that this gvctl belongs to.  Raises Unsupported if it isn't of one."""
    folder = os.path.realpath(sys.prefix)
    sums = files.read_bounded(f"{folder}/{_SUMS}", _MAX_LIST)
    contents = files.read_bounded(f"{folder}/{_CONTENTS}", _MAX_LIST)
    if sums is None or contents is None:
        raise Unsupported(
            "this gvctl isn't part of a bundle: unpack gvisor-shim-VERSION-ARCH.tar.zst (make"
            " bundle) and run the bin/gvctl in it"
        )
    values = json.loads(contents)
    return Bundle(
        folder=folder,
        version=str(values["version"]),
        arch=str(values["arch"]),
        sums=sums,
    )


class Versions:
    """The versions below ``prefix`` of a node."""

    def __init__(self, node: Node, prefix: str = PREFIX) -> None:
        self.node, self.prefix = node, prefix

    @property
    def link(self) -> str:
        """What leads to the version that new pods get."""
        return f"{self.prefix}/current"

    def folder(self, name: str) -> str:
        return f"{self.prefix}/versions/{name}".rstrip("/")

    def every(self) -> list[str]:
        return [n for n in self.node.names(f"{self.prefix}/versions") if not n.startswith(".")]

    def current(self) -> str:
        """The name of the version that the link leads to; empty if there is none."""
        try:
            target = os.readlink(self.node.path(self.prefix) + "/current")
        except OSError:
            return ""
        return os.path.basename(target)

    def name_of(self, bundle: Bundle, runsc: RunscSource) -> str:
        """The name of the version that these two make: the same ones, the same name."""
        digest = hashlib.sha512(bundle.sums)
        for name, sha in sorted(runsc.digests().items()):
            digest.update(f"{name} {sha}\n".encode())
        return f"{bundle.version}-{digest.hexdigest()[:12]}"

    def runsc_of(self, name: str) -> str:
        """The path of the runsc in a version."""
        return f"{self.folder(name)}/{_RUNSC_FOLDER}/runsc"

    def add(self, name: str, bundle: Bundle, runsc: RunscSource) -> None:
        """Copy the two into a version's folder, which is shown when it is whole.

        Raises Failed where a file isn't what the bundle's list says, OSError.
        """
        node, folder = self.node, f"{self.prefix}/versions"
        whole = node.path(folder) + "/" + name
        part = f"{node.path(folder)}/.{name}"
        shutil.rmtree(part, ignore_errors=True)
        try:
            for file, digest in bundle.names().items():
                _copy(f"{bundle.folder}/{file}", f"{part}/{file}", digest)
            _copy(f"{bundle.folder}/{_SUMS}", f"{part}/{_SUMS}", "")
            runsc.copy_to(f"{part}/{_RUNSC_FOLDER}")
            os.chmod(part, 0o755)
            os.sync()  # The link must not outlive what it leads to.
            os.rename(part, whole)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def remove(self, name: str) -> None:
        shutil.rmtree(self.node.path(f"{self.prefix}/versions") + "/" + name)

    def set_current(self, name: str) -> None:
        """Have the link lead to a version, in one step; empty: have no link."""
        folder = self.node.path(self.prefix)
        if not name:
            files.remove_file(f"{folder}/current")
            return
        temporary = f"{folder}/.current.{os.getpid()}"
        files.remove_file(temporary)
        os.symlink(f"versions/{name}", temporary)
        os.rename(temporary, f"{folder}/current")

    def used(self) -> dict[str, list[int]]:
        """The processes that run from each version, fork servers and our own family apart.

        What can't be seen counts as running: then there is a version with the pid 0.
        """
        found: dict[str, list[int]] = {}
        if not self.node.shows_processes:
            return {name: [0] for name in self.every()} if self._recorded() else {}
        ours = _family()
        mark = f"{self.prefix}/versions/"
        for pid, path in self.node.executables():
            at = path.find(mark)
            if at >= 0 and pid not in ours:
                found.setdefault(path[at + len(mark) :].split("/")[0], []).append(pid)
        return found

    def shims(self) -> list[str]:
        """The pods whose shims run from any version, by the ids in their command lines.

        Of processes that can't be seen it is the pods that have records.

        containerd's calls for a container, ``start`` and ``delete``, have such a command line as
        well, and are none of these.  Where there are only calls these count: one may be about to
        become a shim.
        """
        if not self.node.shows_processes:
            return self._recorded()
        found: dict[bool, set[str]] = {True: set(), False: set()}
        for pids in self.used().values():
            for pid in pids:
                if ident := _pod_of(pid):
                    found[_leads_session(pid)].add(ident)
        return sorted(found[True] or found[False])

    def _recorded(self) -> list[str]:
        """The pods of which a shim has left records: each is named after container and sandbox."""
        base = "/run/containerd/runsc"
        names = {
            name.removesuffix(RECORD).rpartition(SEPARATOR)[2]
            for namespace in self.node.names(base)
            for name in self.node.names(f"{base}/{namespace}")
            if name.endswith(RECORD)
        }
        return sorted(names)

    def clean(self) -> list[str]:
        """Remove the versions that are neither current nor in use; their names."""
        used, gone = self.used(), []
        for name in self.every():
            if name != self.current() and name not in used:
                self.remove(name)
                gone.append(name)
        return gone


def _copy(source: str, target: str, digest: str) -> None:
    """Copy a regular file, and check what was copied if a digest is given."""
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(source, flags), "rb") as file, open(target, "xb") as copy:
        sha = hashlib.sha512()
        while data := file.read(1 << 20):
            sha.update(data)
            copy.write(data)
        executable = os.fstat(file.fileno()).st_mode & 0o100
    if digest and sha.hexdigest() != digest:
        raise Failed(f"{source} is damaged: its SHA-512 isn't that of the bundle's list")
    os.chmod(target, 0o755 if executable else 0o644)
    folder = os.path.dirname(target)
    while os.stat(folder).st_mode & 0o777 != 0o755:  # whatever the umask
        os.chmod(folder, 0o755)
        folder = os.path.dirname(folder)


def _family() -> set[int]:
    """Us and the processes that we come from, which may run from a version themselves."""
    found, pid = set(), os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        pid = _parent_and_session(pid)[0]
    return found


def _leads_session(pid: int) -> bool:
    """Whether it has a session of its own, as a shim has and what containerd calls has not."""
    return _parent_and_session(pid)[1] == pid


def _parent_and_session(pid: int) -> tuple[int, int]:
    """Both of a process, zeros where it has gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            _state, parent, _group, session = file.read().rpartition(")")[2].split()[:4]
        return int(parent), int(session)
    except (OSError, ValueError):
        return 0, 0


def _pod_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return ""
    if not any(word.endswith("containerd-shim-gvisor-v2") for word in words) or "-id" not in words:
        return ""
    return words[words.index("-id") + 1]
