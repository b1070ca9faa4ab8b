"""What each pod of a soak does and suffers: pure, and the same for the same seed and number."""

from __future__ import annotations

import random
from typing import NamedTuple

#: What a pod's life is made of, in order; a strike falls into one of them.
PHASES = (
    "run pod",
    "create",
    "start",
    "exec",
    "watch",
    "stop",
    "remove container",
    "stop pod",
    "remove pod",
)
VICTIMS = ("shim", "sentry", "gofer", "root gofer")
CONTAINERD = "containerd"

#: Of how many pods one is struck, and one loses its containerd.
_STRUCK, _ORPHANED = 3, 24
#: How many times a pod's shim is asked to become the installed version: one of these.
_UPGRADES = (0, 0, 1, 1, 2, 3)
_CODES = range(1, 120)


class Part(NamedTuple):
    """A container: it `counts` up to `lines` and ends, `waits` for SIGTERM, or `dies` by SIGKILL.

    `code` is its exit status if it ends as it is meant to.
    """

    name: str
    kind: str
    lines: int
    code: int
    execs: tuple[int, ...]

    @property
    def command(self) -> tuple[str, ...]:
        """Numbered lines on stdout, and on /mnt how many there were at least."""
        if self.kind == "waits":
            script = (
                f"trap 'echo bye; exit {self.code}' TERM; n=0;"
                f" while :; do n=$((n+1)); echo $n; echo $n >> /mnt/{self.name}; sleep 0.2; done"
            )
        else:
            end = f"exit {self.code}" if self.kind == "counts" else "kill -9 $$"
            script = (
                f"n=0; while [ $n -lt {self.lines} ]; do n=$((n+1)); echo $n; done;"
                f" for i in $(seq {self.lines}); do echo $i; done > /mnt/{self.name}; {end}"
            )
        return ("sh", "-c", script)


class Strike(NamedTuple):
    """Who is killed in which phase, after which share of the time that the phase usually takes."""

    victim: str
    phase: str
    share: float


class Upgrade(NamedTuple):
    """In which phase the shim is asked for an upgrade, and after which share of its time."""

    phase: str
    share: float


class Plan(NamedTuple):
    """One pod's life."""

    number: int
    parts: tuple[Part, ...]
    strike: Strike | None
    #: Whether its containers are asked to stop, and then removed, before the pod is.
    stops: bool
    removes: bool
    upgrades: tuple[Upgrade, ...] = ()


def plan(seed: int, number: int, victims: tuple[str, ...] = VICTIMS) -> Plan:
    """The life of one pod; without `victims` nobody but containerd is killed."""
    dice = random.Random(f"{seed}-{number}")
    parts = tuple(_part(dice, f"c{index}") for index in range(dice.choice((1, 1, 2, 3))))
    strike = None
    if dice.randrange(_ORPHANED) == 0:
        strike = Strike(CONTAINERD, dice.choice(PHASES), dice.uniform(0, 1.2))
    elif dice.randrange(_STRUCK) == 0 and victims:
        strike = Strike(dice.choice(victims), dice.choice(PHASES), dice.uniform(0, 1.2))
    stops = dice.random() < 0.75
    removes = stops and dice.random() < 0.5
    return Plan(number, parts, strike, stops, removes, _upgrades(seed, number))


def _upgrades(seed: int, number: int) -> tuple[Upgrade, ...]:
    """By dice of their own, so that with and without them a pod has the same life."""
    dice = random.Random(f"{seed}-{number}-upgrades")
    count = dice.choice(_UPGRADES)
    return tuple(Upgrade(dice.choice(PHASES), dice.uniform(0, 1.2)) for _ in range(count))


def _part(dice: random.Random, name: str) -> Part:
    kind = dice.choice(("counts", "waits", "waits", "dies"))
    lines = dice.choice((0, 1, 10, 500, 3000))
    code = 137 if kind == "dies" else dice.choice(_CODES)
    execs = tuple(dice.choice(_CODES) for _ in range(dice.randrange(3))) if kind == "waits" else ()
    return Part(name, kind, lines, code, execs)
