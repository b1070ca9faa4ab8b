"""Bindings of system calls, and handles on processes by number."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from runtime.base.errors import reason
from runtime.host import linux
from runtime.host.pids import Foreign, start_time


def test_errors_carry_the_number_and_the_path() -> None:
    with pytest.raises(OSError) as caught:
        linux.umount2("/nowhere", linux.UMOUNT_NOFOLLOW)
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)
    assert caught.value.filename == "/nowhere"
    with pytest.raises(OSError) as caught:
        linux.setns(-1)
    assert caught.value.errno == errno.EBADF


def test_paths_with_a_nul_byte_are_refused() -> None:
    with pytest.raises(ValueError):
        linux.umount2("/tmp\0/x")
    with pytest.raises(ValueError):
        linux.mount("a", "/tmp", "tmpfs", 0, "mode=7\0")


def test_the_subreaper_flag_in_another_process() -> None:
    program = """
import ctypes
from runtime.host import linux
linux.limit_malloc_arenas(1)
linux.set_child_subreaper()
flag = ctypes.c_int(-1)
ctypes.CDLL(None).prctl(37, ctypes.byref(flag), 0, 0, 0)
print(flag.value)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1"], done.stderr


def test_opening_within_a_root(tmp_path: os.PathLike[str]) -> None:
    os.mkdir(os.path.join(tmp_path, "etc"))
    os.symlink("/../../etc", os.path.join(tmp_path, "link"))
    root = os.open(tmp_path, os.O_PATH)
    try:
        fd = linux.open_in_root(root, "link", os.O_PATH)
        assert os.readlink(f"/proc/self/fd/{fd}") == os.path.join(tmp_path, "etc")
        assert not os.get_inheritable(fd)
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            linux.open_in_root(root, "missing", os.O_PATH)
    finally:
        os.close(root)


def test_reasons_are_lower_case() -> None:
    assert reason(errno.EACCES) == "permission denied"


def test_start_times_differ_from_field_to_field() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        ticks = start_time(child.pid)
        assert ticks >= start_time(os.getpid()) > 0
        with open("/proc/uptime") as file:
            now = float(file.read().split()[0])
        assert abs(now - ticks / os.sysconf("SC_CLK_TCK")) < 60
    finally:
        child.communicate()
    with pytest.raises(ProcessLookupError):
        start_time(child.pid)


def test_start_time_of_a_command_with_brackets_and_blanks() -> None:
    program = """
from runtime.host import linux
from runtime.host.pids import start_time
import os
before = start_time(os.getpid())
open("/proc/self/comm", "w").write(") S 1 (2 3 ) ")
assert open("/proc/self/stat").read().split(" (", 1)[1].startswith(") S 1 (2")
assert start_time(os.getpid()) == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_foreign_process_is_signalled_and_awaited() -> None:
    process = subprocess.Popen(["/bin/sleep", "60"])
    began = start_time(process.pid)
    assert Foreign.open(process.pid, began + 1) is None
    assert Foreign.open(process.pid, began - 1) is None
    handle = Foreign.open(process.pid, began)
    assert handle is not None
    with handle:
        assert not handle.wait_gone(0)
        handle.kill(signal.SIGTERM)
        assert handle.wait_gone(5)  # a zombie has ended
        assert process.wait() == -signal.SIGTERM
        handle.kill(signal.SIGKILL)
        assert handle.wait_gone(0)
    handle.close()
    assert Foreign.open(process.pid, began) is None
    assert Foreign.open(0, 0) is None


def test_a_thread_is_no_foreign_process() -> None:
    found: list[Foreign | None] = []

    def work() -> None:
        found.append(Foreign.open(threading.get_native_id(), 0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_handles_need_no_native_module() -> None:
    program = """
import sys
before = set(sys.modules)
import runtime.host.pids, runtime.bundle.rootfs
runtime.bundle.rootfs.unmount_all("/nowhere/at/all")
heavy = {"runtime._native", "_cffi_backend", "runtime.host.spawn", "subprocess", "typing", "re"}
assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
