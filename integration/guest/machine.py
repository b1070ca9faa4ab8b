"""The host's side of a guest: QEMU, the two file system daemons, and their end.

Everything that is started dies with this process, whichever way that ends, and the mounts that
are needed are made in a mount namespace of their own: nothing has to be cleaned up but a folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from integration.guest import initramfs
from integration.harness.base import peers

#: How long a guest may need to end once its command is interrupted, in seconds.
GRACE = 40.0
#: How long a guest may write nothing, in seconds.  On two cores with a load of twenty it was up to
#: 350, at the boot and its tests' imports; how long everything takes is not bounded.
SILENCE = 900.0
# How often in that time it is looked.
_LOOKS = 10
_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nopti no5lvl nokaslr audit=0 apparmor=0"
    " clearcpuid=rep_good tsc=reliable no_timer_check nowatchdog systemd.unified_cgroup_hierarchy=1"
)
# Where the host's root is mounted a second time, unseen by others.
_AGAIN = "/media"
_SHARED = ("GVISOR_SHIM_PEERS", "CONTAINERD_BIN", "RUNSC", "GVISOR_SHIM_BIN", "GVISOR_SHIM_RUNTIME")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class NoResult(Exception):
    """The guest ended, or was ended, without a result; the text says what is known."""


def missing() -> list[str]:
    """What a guest needs and is not there."""
    wanted = [_virtiofsd(), peers.PEERS / "kernel" / ".done", peers.PEERS / "kmod" / ".done"]
    found = [str(path) for path in wanted if not path.exists()]
    if shutil.which("qemu-system-x86_64") is None:
        found.append("qemu-system-x86_64")
    return found


def run(
    command: Sequence[str],
    *,
    python: Path,
    output: int,
    systemd: bool = False,
    silence: float = SILENCE,
    artefacts: Path | None = None,
) -> int:
    """Run `command` in the checkout in a new guest and return its exit status.

    What it writes goes to the descriptor `output` at once.  After `silence` seconds in which
    neither the command nor the kernel has written anything, the command is interrupted, and after
    GRACE more the guest is killed.  `artefacts` is a folder in which the command may leave files
    (GUEST_OUTPUT names it there).  Raises NoResult.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gvisor-shim-guest-")))
        out = artefacts or work / "output"
        out.mkdir(parents=True, exist_ok=True)
        (out / "status").unlink(missing_ok=True)
        order = {
            "command": list(command),
            "environment": {k: os.environ[k] for k in _SHARED if k in os.environ},
            "folder": str(peers.CHECKOUT),
            "modules": [str(peers.PEERS / "kmod"), str(initramfs.KERNEL)],
            "warm": [str(peers.runsc(generation)) for generation in peers.RUNSCS],
            "time": time.time(),
        }
        (out / "order.json").write_text(json.dumps(order))
        inside = [str(python), "-IS", str(Path(__file__).with_name("inside.py"))]
        initramfs.build(work / "initramfs", inside, peers.CHECKOUT, systemd=systemd)
        shares = {
            initramfs.ROOT_TAG: (_AGAIN, _host_root(python)),
            initramfs.OUTPUT_TAG: (str(out), ""),
        }
        for tag, (folder, before) in shares.items():
            stack.callback(_end, _serve(_socket(work, tag), folder, before))
        line, guest_end = socket.socketpair()
        stack.enter_context(line)
        written = Written(work / "console")
        copier = threading.Thread(target=_copy, args=(line, output, written))
        with guest_end:
            number = guest_end.fileno()
            qemu = _start(_qemu_command(work, list(shares), number), [number])
        copier.start()
        stack.callback(copier.join)
        stack.callback(_end, qemu)
        try:
            wait(qemu, written, silence)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                line.send(b"!")
            try:
                qemu.wait(GRACE)
            except subprocess.TimeoutExpired:
                raise NoResult(
                    _story(work, f"killed after {silence + GRACE:g} s of silence")
                ) from None
        try:
            return int((out / "status").read_text())
        except (OSError, ValueError):
            raise NoResult(_story(work, f"QEMU ended with {qemu.returncode}")) from None


def _story(work: Path, end: str) -> str:
    console = work / "console"
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    return "\n".join([f"the guest has given no result: {end}; its console:", *lines[-40:]])


def _copy(line: socket.socket, output: int, written: Written) -> None:
    with suppress(OSError):
        while data := line.recv(65536):
            written.count += len(data)
            os.write(output, data)


class Written:
    """How much a guest has written, to its line (``count``) and to its ``console``."""

    def __init__(self, console: Path) -> None:
        self.count = 0  # of the copying thread
        self._console = console

    def total(self) -> int:
        with suppress(FileNotFoundError):
            return self.count + self._console.stat().st_size
        return self.count


def wait(qemu: subprocess.Popen[bytes], written: Written, silence: float) -> None:
    """Wait for the end, however long it takes, of a guest that goes on writing.

    Raises TimeoutExpired once it has written nothing for `silence` seconds, or up to a tenth more.
    """
    quiet, seen = 0, -1
    while quiet < _LOOKS:
        try:
            qemu.wait(silence / _LOOKS)
            return
        except subprocess.TimeoutExpired:
            total = written.total()
            quiet, seen = (0 if total != seen else quiet + 1), total
    raise subprocess.TimeoutExpired(qemu.args, silence)


# Processes


def _start(command: Sequence[str], fds: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=fds,
        start_new_session=True,
        preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    # The file system daemons end by themselves, once QEMU has.
    if process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    process.kill()
    process.wait()


def _virtiofsd() -> Path:
    return peers.PEERS / "virtiofsd" / "usr" / "libexec" / "virtiofsd"


def _serve(path: Path, folder: str, before: str) -> subprocess.Popen[bytes]:
    """A virtiofsd for `folder`, which listens at `path` by the time this returns."""
    libraries = peers.PEERS / "virtiofsd" / "usr" / "lib" / "x86_64-linux-gnu"
    options = ["--readonly"] if before else []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        # It is made for a newer libc than the host may have, so it gets its own.
        daemon = [
            *(str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)),
            *(str(_virtiofsd()), f"--fd={listener.fileno()}", f"--shared-dir={folder}"),
            *("--sandbox=none", "--cache=always" if before else "--cache=auto"),
            *("--inode-file-handles=prefer", "--rlimit-nofile=0", "--log-level=error"),
            *options,
        ]
        if before:
            script = f"set -e; {before}; exec {shlex.join(daemon)}"
            daemon = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        return _start(daemon, [listener.fileno()])


def _socket(work: Path, tag: str) -> Path:
    return work / f"{tag}.sock"


def _host_root(python: Path) -> str:
    """Shell commands that mount `/`, without what is mounted below it, and then those of the
    folders that are needed which are mounts themselves; all read-only.
    """
    wanted = (peers.CHECKOUT, peers.PEERS, python, python.resolve())
    lines = [f"mount --bind / {_AGAIN}", f"mount -o remount,bind,ro {_AGAIN}"]
    points = {str(point) for path in wanted if (point := _mount_point(path)) != Path("/")}
    lines += [
        f"mount --bind {shlex.quote(point)} {shlex.quote(_AGAIN + point)}" for point in points
    ]
    return "; ".join(lines)


def _mount_point(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.ismount(place))


def _qemu_command(work: Path, shares: Sequence[str], guest_end: int) -> list[str]:
    command = [
        "qemu-system-x86_64",
        *("-M", "q35,memory-backend=memory", "-accel", "tcg,thread=single,tb-size=1024"),
        # The guest's clock counts instructions, 2 ns each, so that however slow and busy the host
        # is, the guest finds itself a quick machine and no time limit in a test is too tight.
        *("-icount", "shift=1,sleep=on"),
        *("-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", "6G"),
        *("-object", "memory-backend-memfd,id=memory,size=6G,share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{work / 'console'}"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=result,fd={guest_end}"),
        *("-device", "virtserialport,chardev=result,name=result"),
        *("-kernel", str(initramfs.kernel()), "-initrd", str(work / "initramfs")),
        *("-append", _ARGUMENTS),
    ]
    for tag in shares:
        command += ["-chardev", f"socket,id={tag},path={_socket(work, tag)}"]
        command += ["-device", f"vhost-user-fs-pci,queue-size=1024,chardev={tag},tag={tag}"]
    return command
