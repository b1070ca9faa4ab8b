"""The guest's first file system: busybox, one module, and a script that finds the host's `/`."""

from __future__ import annotations

import lzma
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from integration.harness.base import peers

KERNEL = peers.PEERS / "kernel"
ROOT_TAG, OUTPUT_TAG = "host", "output"
UNIT = "gvisor-shim-test"

# The host's root, read-only, with everything that the guest writes in memory above it.  What
# would tell systemd that it runs in a container is hidden.
_INIT = """\
#!/bin/busybox sh
busybox mount -t proc proc /proc
for module in /modules/*; do busybox insmod $module || exit; done
busybox mount -t virtiofs -o ro {root_tag} /lower || exit
busybox mount -t tmpfs -o size=4G tmpfs /upper || exit
busybox mkdir /upper/files /upper/work
layers=lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work
busybox mount -t overlay -o $layers host /root || exit
busybox rm -f /root/.dockerenv
{more}
busybox umount /proc
cd /root
exec busybox switch_root /root {init}
"""
_ADD_UNITS = """\
busybox mount -t tmpfs -o mode=755 tmpfs /root/run
busybox mkdir -p /root/run/systemd
busybox cp -r /units /root/run/systemd/system
"""
_SERVICE = """\
[Unit]
DefaultDependencies=no
Wants=dbus.socket
After=dbus.socket
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
Delegate=yes
OOMPolicy=continue
LimitNOFILE=1048576
LimitMEMLOCK=infinity
TasksMax=infinity
WorkingDirectory={folder}
ExecStart={command}
StandardOutput=journal+console
"""
# Nothing of an ordinary boot is wanted: what these would pull in is left out.
_EARLY = "[Unit]\nDefaultDependencies=no\n"


def kernel() -> Path:
    return next((KERNEL / "boot").glob("vmlinuz-*"))


def release() -> str:
    return kernel().name.removeprefix("vmlinuz-")


def build(path: Path, command: Sequence[str], folder: Path, *, systemd: bool) -> None:
    """Write the archive.  `command` is what goes on in the host's root, with all file systems
    yet to be mounted as process 1, or else as the only service of systemd.
    """
    files: dict[str, tuple[int, bytes]] = {
        "bin/busybox": (0o100755, peers.busybox().read_bytes()),
    }
    for number, module in enumerate(_with_dependencies("overlay")):
        files[f"modules/{number}.ko"] = (0o100644, _decompressed(module))
    init = ["/usr/bin/env", "-C", str(folder), *command]
    if systemd:
        init = ["/lib/systemd/systemd", f"--unit={UNIT}.service"]
        service = _SERVICE.format(folder=folder, command=" ".join(command))
        files[f"units/{UNIT}.service"] = (0o100644, service.encode())
        for unit in ("dbus.socket", "dbus.service"):
            files[f"units/{unit}.d/early.conf"] = (0o100644, _EARLY.encode())
    script = _INIT.format(
        root_tag=ROOT_TAG, more=_ADD_UNITS if systemd else "", init=shlex.join(init)
    )
    files["init"] = (0o100755, script.encode())
    folders = {"dev", "proc", "lower", "upper", "root"}
    for name in files:
        folders.update(str(parent) for parent in Path(name).parents if str(parent) != ".")
    with path.open("wb") as archive:
        for name in sorted(folders):
            archive.write(_entry(name, 0o40755, b""))
        for name, (mode, data) in files.items():
            archive.write(_entry(name, mode, data))
        archive.write(_entry("TRAILER!!!", 0, b""))


def _with_dependencies(name: str) -> Iterator[Path]:
    """The files of a module and of those that it needs, in the order in which to load them."""
    base = KERNEL / "usr/lib/modules" / release()
    needs: Mapping[str, str] = dict(
        line.split(":", 1) for line in (base / "modules.dep").read_text().splitlines()
    )
    path = next(path for path in needs if Path(path).name.split(".")[0] == name)
    for needed in [*reversed(needs[path].split()), path]:
        yield base / needed


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _entry(name: str, mode: int, data: bytes) -> bytes:
    """One member of a cpio archive in the form "newc"."""
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
