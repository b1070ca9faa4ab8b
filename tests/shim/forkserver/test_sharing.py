"""What a fork shares with its server, and gives back: in a process of its own, as it changes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shim.forkserver import layout

ROOT = Path(__file__).resolve().parents[3]

_HEAD = """
import gc, os, sys, threading, time
sys.path.insert(0, sys.argv[1])
from runtime.host import linux
from shim.forkserver import layout, preload

gc.disable()
preload.everything(others=False)
values = {f"key {n}": {"n": 0, "list": [0] * 20, "text": "x" * n} for n in range(2000)}
raw = [bytes([n % 256]) * (100 + n * 7 % 5000) for n in range(2000)]
buffers = [bytearray(1000) for _ in range(20)]
locks = [threading.Lock() for _ in range(20)]

def private():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

if "shown" in sys.argv:
    # As long as an arena of the allocator's, beside which it lies otherwise.
    linux.show_arguments([b"an argument", b"x" * (1 << 20)], [b"NAME=value"])
if "unknown" in sys.argv:
    layout.is_known = lambda: False
kept = layout.settle()
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(program: str, *more: str) -> str:
    """What a fork of a settled process prints that runs ``program``."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _HEAD + program, str(ROOT), *more],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    return done.stdout


needs_known = pytest.mark.skipif(not layout.is_known(), reason="the interpreter isn't CPython 3.11")


@needs_known
def test_a_page_that_is_what_it_was_is_shared_again() -> None:
    program = """
for name, module in sorted(sys.modules.items()):
    held = list(vars(module).values()) if module else []  # counts go up, and down again
held = list(values.values())
held = None
used = private()
given = linux.give_back()
print(used, private(), given, linux.give_back())
"""
    used, after, given, again = map(int, run(program).split())
    assert given > 100
    assert used - after > given * 3.5
    assert again < given / 10


@needs_known
def test_what_a_fork_writes_stays() -> None:
    program = """
failed = []
end = time.monotonic() + 4
def give():
    while time.monotonic() < end:
        linux.give_back()
        time.sleep(0.0005)
def count(first):
    rounds = 0
    mine = list(values)[first::3]
    while time.monotonic() < end:
        rounds += 1
        for name in mine[:100]:
            value = values[name]
            value["n"] += 1
            value["list"].append(rounds)
            value["text"] = value["text"][::-1] + "y"
            if value["n"] != rounds or len(value["list"]) != 20 + rounds:
                failed.append(name)
        if raw:
            del raw[-1]
def read(number):
    reading, writing = os.pipe()
    while time.monotonic() < end:
        data = os.urandom(1000)
        os.write(writing, data)
        os.readv(reading, [buffers[number]])
        if buffers[number] != data:
            failed.append("a buffer")
        os.write(writing, data[:400])
        if os.read(reading, 400) != data[:400]:
            failed.append("a read")
        with locks[number]:
            pass
threads = [threading.Thread(target=give)]
threads += [threading.Thread(target=count, args=(n,)) for n in range(3)]
threads += [threading.Thread(target=read, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(failed), failed[:3])
"""
    assert run(program).split()[0] == "0"


@needs_known
def test_what_is_freed_of_the_servers_may_be_freed() -> None:
    program = """
for value in values.values():
    value["list"].extend(range(3000))
    value["text"] *= 50
total = sum(len(value["list"]) for value in values.values())
values.clear()
raw.clear()
gc.collect()
print(total, linux.give_back() >= 0)
"""
    assert run(program).split() == [str(2000 * 3020), "True"]


@needs_known
def test_code_is_not_rewritten() -> None:
    program = """
from runtime.base import fastjson
code = fastjson.loads.__code__
before = code._co_code_adaptive
for _ in range(50):
    fastjson.loads(b'{"a": [1, 2, {"b": null}]}')
print(code._co_code_adaptive == before == code.co_code)
"""
    assert run(program).strip() == "True"


def test_an_interpreter_that_is_not_known_is_left_alone() -> None:
    assert run("print(linux.give_back())", "unknown").strip() == "0"


@needs_known
def test_command_line_and_environment_are_shown_still() -> None:
    """Of the server and of its forks, wherever the kernel has put them."""
    program = """
for pid in (os.getppid(), os.getpid()):
    for name, size in (("cmdline", 11), ("environ", 10)):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            print(file.read()[:size].decode())
"""
    assert run(program, "shown").splitlines() == ["an argument", "NAME=value"] * 2
