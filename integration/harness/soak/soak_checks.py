"""What is wrong with what a pod of a soak left behind: pure, one line for each flaw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from integration.harness.soak.soak_plan import Part

#: The last words of a container that was asked to end.
LAST_WORDS = "bye"

#: Topic and process of an event; the container's own first process is its id.
Told = tuple[str, str]


def log_flaws(part: Part, log: str, written: int, whole: bool) -> list[str]:
    """What is wrong with a container's log in CRI's form.

    `written` is how many lines it has certainly written, `whole` whether it came to its end.
    """
    lines: list[str] = []
    for raw in log.splitlines():
        words = raw.split(" ", 3)
        if len(words) < 4 or words[2] != "F":
            return [f"log of {part.name} has a broken line: {raw[:80]!r}"]
        lines.append(words[3])
    if lines and lines[-1] == LAST_WORDS:
        lines.pop()
    elif whole and part.kind == "waits":
        return [f"log of {part.name} lacks its last words"]
    for number, line in enumerate(lines, 1):
        if line != str(number):
            return [f"log of {part.name} has {line[:40]!r} in line {number} of {len(lines)}"]
    wanted = part.lines if whole and part.kind != "waits" else written
    if len(lines) < wanted:
        return [f"log of {part.name} has {len(lines)} of {wanted} lines"]
    return []


def event_flaws(container: str, told: Sequence[Told], whole: bool) -> list[str]:
    """What is wrong with the events of one container, in the order in which they came.

    `whole` is whether all of them must be there, once each: not where the shim or containerd died.
    """
    flaws = []
    topics = [topic for topic, _ in told]
    for process in dict.fromkeys(process for topic, process in told if topic == "exit"):
        places = [n for n, each in enumerate(told) if each == ("exit", process)]
        if whole and len(places) > 1:
            flaws.append(f"exit of {process[:12]} told {len(places)} times")
        begin = ("start", container) if process == container else ("exec-started", process)
        if begin in told and told.index(begin) > places[0]:
            flaws.append(f"exit of {process[:12]} precedes its start")
    if "create" in topics and topics.index("create") != 0:
        flaws.append("create isn't first")
    if whole:
        flaws += _missing(container, told)
    return [f"events of {container[:12]}: {flaw} in {' '.join(topics)}" for flaw in flaws]


def _missing(container: str, told: Sequence[Told]) -> list[str]:
    flaws = []
    count = Counter(told)
    topics = [topic for topic, _ in told]
    for topic in ("create", "start", "delete"):
        if topics.count(topic) > 1:
            flaws.append(f"{topic} told {topics.count(topic)} times")
    if count["start", container] and not count["exit", container]:
        flaws.append("no exit")
    if topics and topics[-1] != "delete":
        flaws.append("delete isn't last")
    for topic, process in told:
        if topic == "exec-started":
            if ("exec-added", process) not in told:
                flaws.append(f"exec {process[:12]} started, but never added")
            if ("exit", process) not in told:
                flaws.append(f"no exit of exec {process[:12]}")
            elif ("exit", container) in told and told.index(("exit", process)) > told.index(
                ("exit", container)
            ):
                flaws.append(f"exit of exec {process[:12]} after init's")
    return flaws


def mentions(lines: Iterable[str], names: Iterable[str]) -> list[str]:
    """The lines in which one of `names` stands."""
    wanted = [name for name in names if name]
    return [line for line in lines if any(name in line for name in wanted)]
