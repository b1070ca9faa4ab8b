"""The limit of open files: as high as may be for us, and what it was for those that we start."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from runtime.host import open_files

_PROGRAM = """
import os, resource, sys
from runtime.host import open_files
from runtime.host.spawn import SpawnSpec, spawn
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 900))
open_files.raise_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
words = ("sh", "-c", "echo $(ulimit -Sn) $(ulimit -Hn)")
with spawn(SpawnSpec(path="/bin/sh", argv=words, fds={1: 1, 2: 2})) as child:
    sys.exit(os.waitstatus_to_exitcode(child.wait(10)))
"""


def test_the_limit_is_ours_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, timeout=30)
    assert done.stdout.split() == [b"900", b"900", b"300", b"900"], done


def test_the_hard_limit_of_a_process() -> None:
    assert open_files.hard_limit(os.getpid()) == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert open_files.hard_limit(1 << 30) is None


def test_room_for_numbers_that_are_to_come() -> None:
    program = """
import os, resource
from runtime.host import open_files
size = lambda: int(open("/proc/self/status").read().split("FDSize:")[1].split()[0])
before, count = size(), len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
open_files.make_room(1025)
assert size() == before
open_files.make_room(1024)
print(before, size(), len(os.listdir("/proc/self/fd")) - count)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    before, after, more = map(int, done.stdout.split())
    assert before < after == 1024 and more == 0
