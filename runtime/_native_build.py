"""Builds ``runtime._native``: the C part of process start and the bindings of system calls.

Out-of-line API mode, against Python's limited API, so one build serves every supported version.
The C sources are inlined into the generated file; nothing of ``runtime/native`` is needed later.
"""

from __future__ import annotations

import os

from cffi import FFI

_HERE = os.path.dirname(os.path.abspath(__file__))

_INCLUDES = """
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <poll.h>
#include <stddef.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
"""


def _read(name: str) -> str:
    with open(os.path.join(_HERE, "native", name), encoding="utf-8") as file:
        return file.read()


COMPILE_ARGUMENTS = ["-O2", "-Wall", "-Wextra"]
#: A forked process must not be the first to call a function: the loader would take locks.
LINK_ARGUMENTS = ["-Wl,-z,now"]

ffi = FFI()
ffi.cdef(_read("spawn.h") + _read("linux.h") + _read("pages.h"))
ffi.set_source(
    "runtime._native",
    _INCLUDES + "".join(_read(name) for name in ("linux.c", "pages.c", "spawn.h", "spawn.c")),
    extra_compile_args=COMPILE_ARGUMENTS,
    extra_link_args=LINK_ARGUMENTS,
)

if __name__ == "__main__":
    # The name that setuptools gives it, so that the two ways of building replace each other.
    ffi.compile(tmpdir=os.path.dirname(_HERE), target="_native.abi3.so", verbose=True)
