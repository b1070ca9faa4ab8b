"""A program in runsc's place: gofer and sentry processes that do what a test's arguments say.

It is started by the real code, takes the real command lines and descriptors, and needs no rights.
The first word of the container's process says how it behaves; see :func:`_gofer` and
:func:`_boot`.  Imports as little as it can, as it is started often.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.sentry import FakeSentry


def install(folder: str) -> str:
    """Put an executable that runs this file into ``folder``; returns its path."""
    path = os.path.join(folder, "runsc")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"#!{sys.executable} -IS\n")
        file.write(f"import sys\nsys.path.insert(0, {_ROOT!r})\n")
        file.write("from tests.fakes.runsc import main\nmain(sys.argv)\n")
    os.chmod(path, 0o755)
    return path


_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main(argv: list[str]) -> None:
    import json

    flags: dict[str, list[int]] = {}
    words = []
    for word in argv[1:]:
        name, equals, value = word.lstrip("-").partition("=")
        if equals and value.isdigit():
            flags.setdefault(name, []).append(int(value))
        elif not word.startswith("-"):
            words.append(word)
    with open(flags["spec-fd"][0], "rb", closefd=False) as file:
        spec = json.loads(file.read())
    script = spec["process"]["args"]
    if words[0] == "gofer":
        _gofer(flags, script)
    else:
        _boot(flags, script, words[-1])


def _gofer(flags: dict[str, list[int]], script: list[str]) -> None:
    import signal

    if script[0] == "gofer-fails":
        os.write(2, b"error setting up FS: no such file\n")
        sys.exit(128)
    os.write(flags["mounts-fd"][0], b"[]")
    os.close(flags["mounts-fd"][0])
    if "gofer-stays" in script:  # though the sentry, which is no real one, closes its connection
        signal.alarm(300)  # no test lasts as long
        signal.pause()
    while os.read(flags["io-fds"][0], 100):
        pass


def _boot(flags: dict[str, list[int]], script: list[str], sandbox_id: str) -> None:
    import socket
    import threading

    from tests.fakes.sentry import FakeSentry, SentryError

    if not os.read(flags["mounts-fd"][0], 100):
        os.write(
            2,
            b"Error reading mounts file: error unmarshaling mounts: unexpected end of JSON input\n"
            b"JSON bytes:\n",
        )
        os._exit(128)
    if script[0] == "boot-fails":
        os.write(2, b"unknown platform: zork\n")
        os._exit(128)
    if script[0] == "boot-hangs":
        threading.Event().wait()
    sentry = FakeSentry(socket.socket(fileno=flags["controller-fd"][0]))
    if script[0] == "directed":
        _be_directed(sentry, flags, sandbox_id, "watches-gofer" in script)
    ended = threading.Event()
    # Status of init, and what the process does at its end.
    outcome = {"wait": 0, "exit": 0}

    def die(status: int, text: str = "") -> None:
        os.write(2, text.encode())
        os._exit(status)

    def start(_: object) -> dict[str, object]:
        kind = script[0]
        if kind == "exit":
            outcome["wait"] = int(script[1]) << 8
            outcome["exit"] = int(script[1])
            ended.set()
        elif kind == "start-fails":
            if len(script) > 2:
                outcome["exit"] = int(script[2])
                ended.set()
            raise SentryError(f"starting sandbox: creating process: failed to load {script[1]}")
        elif kind == "panics":
            die(2, "panic: index out of range\n\ngoroutine 1 [running]:\n")
        elif kind in ("breaks", "refuses", "rambles"):
            hard_to_ask(kind, script[1:])
        return {}

    def hard_to_ask(kind: str, methods: list[str]) -> None:
        """At first: the connection breaks, the answer is an error, or is none."""
        for name in methods:
            method = "containerManager." + name
            if kind == "breaks":
                sentry.broken[method] = 3
            elif kind == "rambles":
                sentry.handlers[method] = at_first(sentry.handlers[method], lambda: "zork")
            else:
                sentry.handlers[method] = at_first(sentry.handlers[method], refuse)

    def refuse() -> object:
        raise SentryError(f"container {sandbox_id!r} not found")

    def at_first(
        later: Callable[[object], object], first: Callable[[], object]
    ) -> Callable[[object], object]:
        left = [None] * 3
        return lambda argument: (left.pop() or first()) if left else later(argument)

    def wait(_: object) -> int:
        if script[0] == "ends-silently":
            die(int(script[1]))
        if script[0] == "forgot":
            refuse()
        ended.wait()
        return outcome["wait"]

    def signal(argument: dict[str, int]) -> dict[str, object]:
        if not argument["Signo"]:
            if script[0] == "forgot" or ended.is_set():
                raise SentryError("no such process")
            return {}
        outcome["wait"], outcome["exit"] = argument["Signo"], 128 + argument["Signo"]
        ended.set()
        return {}

    manager = "containerManager."
    sentry.handlers = {
        manager + "StartRoot": start,
        manager + "Wait": wait,
        manager + "WaitPID": wait,
        manager + "Signal": signal,
        manager + "ExecuteAsync": lambda _: 5,
        manager + "CreateSubcontainer": lambda _: {},
        manager + "DestroySubcontainer": lambda _: {},
        manager + "Processes": lambda _: [{"pid": os.getpid()}],
        "Network.CreateLinksAndRoutes": lambda _: {},
    }
    sentry.start()
    os.write(flags["start-sync-fd"][0], b"\0")
    ended.wait()
    # Like a sentry, let the answers go out first.
    while sentry.closed_by_peer.acquire(timeout=0.2):
        pass
    os._exit(outcome["exit"])


def _be_directed(
    sentry: FakeSentry, flags: dict[str, list[int]], sandbox_id: str, watches: bool
) -> None:
    from tests.fakes.directed import Directed

    directed = Directed(sentry, sandbox_id)
    if watches:
        directed.watch_gofer(flags["io-fds"][0])
    sentry.start()
    os.write(flags["start-sync-fd"][0], b"\0")
    directed.ended.wait()
    while sentry.closed_by_peer.acquire(timeout=0.1):
        pass
    os._exit(directed.status)
