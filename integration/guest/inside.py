"""The guest's side: mount what is missing, run the command, write its status, power off.

Runs as a script, as process 1 or as a service of systemd.  It takes little of the standard
library and nothing else: imports are slow in a guest.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OUTPUT_TAG = "output"
_OUTPUT = "/run/guest"
_CGROUPS = "/sys/fs/cgroup"
_PORTS = "/sys/class/virtio-ports"
_POWER_OFF = 0x4321FEDC
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_NOSUID_NODEV = 2 | 4
_FILES = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    first = os.getpid() == 1
    try:
        if first:
            _mount_file_systems()
        _mount_output()
        order = json.loads(_read(f"{_OUTPUT}/order.json"))
        _prepare(order)
        if first:
            _join_leaf()
        _warm(order["warm"])
        status = _run(order)
        _write(f"{_OUTPUT}/status", str(status))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os.sync()
    if first:
        _libc.reboot(_POWER_OFF)


def _mount_file_systems() -> None:
    flags = _NOSUID_NODEV_NOEXEC
    _mount("proc", "/proc", "proc", flags)
    _mount("sysfs", "/sys", "sysfs", flags)
    _mount("devtmpfs", "/dev", "devtmpfs", 2)
    for folder in ("/dev/pts", "/dev/shm", "/dev/mqueue"):
        os.makedirs(folder, exist_ok=True)
    _mount("devpts", "/dev/pts", "devpts", 2 | 8, "gid=5,mode=620,ptmxmode=666")
    _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID_NODEV)
    _mount("mqueue", "/dev/mqueue", "mqueue", flags)
    _mount("tmpfs", "/run", "tmpfs", _NOSUID_NODEV, "mode=755")
    for name, target in (("fd", "self/fd"), ("stdin", "self/fd/0"), ("stdout", "self/fd/1")):
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(f"/proc/{target}", f"/dev/{name}")
    _mount("cgroup2", _CGROUPS, "cgroup2", flags, "nsdelegate,memory_recursiveprot")
    controllers = _read(f"{_CGROUPS}/cgroup.controllers").split()
    _write(f"{_CGROUPS}/cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def _mount_output() -> None:
    os.makedirs(_OUTPUT, exist_ok=True)
    _mount(_OUTPUT_TAG, _OUTPUT, "virtiofs")


def _prepare(order: dict[str, Any]) -> None:
    time.clock_settime(time.CLOCK_REALTIME, order["time"])
    _write("/proc/sys/fs/nr_open", str(_FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    # A few large requests cost less than many small ones, each of which leaves the guest.
    for device in os.listdir("/sys/class/bdi"):
        _write(f"/sys/class/bdi/{device}/read_ahead_kb", "2048")
    tools, modules = order["modules"]
    loader = "/run/modprobe"
    _write(
        loader,
        f'#!/bin/sh\nLD_LIBRARY_PATH={tools}/lib exec {tools}/sbin/modprobe -d {modules} "$@"\n',
    )
    os.chmod(loader, 0o755)
    _write("/proc/sys/kernel/modprobe", loader)
    _bring_up("lo")


def _bring_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", name.encode(), 1)  # IFF_UP
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def _run(order: dict[str, Any]) -> int:
    """The command's exit status, as a shell would tell it."""
    programs = os.path.dirname(sys.executable)
    environment = {
        "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GUEST_OUTPUT": _OUTPUT,
        **order["environment"],
    }
    result = os.open(_result_port(), os.O_RDWR)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(result, 1)
            os.dup2(result, 2)
            os.chdir(order["folder"])
            os.execvpe(order["command"][0], order["command"], environment)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(127)
    threading.Thread(target=_obey, args=(result, child), daemon=True).start()
    while True:
        pid, status = os.wait()  # as process 1, orphans too
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _obey(result: int, child: int) -> None:
    """Interrupt the command when the host says that it is time, which this clock doesn't know."""
    if os.read(result, 1):
        os.write(result, b"\nguest: out of time\n")
        os.kill(child, signal.SIGINT)


def _join_leaf() -> None:
    """Processes stay out of the cgroups that controllers are handed down from."""
    leaf = f"{_CGROUPS}/session"
    os.mkdir(leaf)
    _write(f"{leaf}/cgroup.procs", "0")


def _warm(files: list[str]) -> None:
    """Read files, so that their pages are neither charged to a container nor dropped for its
    limit: fetching them from the host again and again would take minutes.
    """
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def _result_port() -> str:
    for port in os.listdir(_PORTS):
        if _read(f"{_PORTS}/{port}/name").strip() == "result":
            return f"/dev/{port}"
    raise FileNotFoundError("no port for the result")


def _mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
