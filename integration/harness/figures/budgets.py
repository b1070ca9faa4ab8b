"""What the shim may cost, beside runc's in the same run (`integration/bench --check`).

A measure that takes more than its budget is a regression.  Budgets leave room for the noise of a
machine that does other things; they are lowered when the shim gets better, never raised to make a
check pass.

Two pairs of calls have one budget together besides, as what one of them doesn't wait for the other
does: a create that ends before the sentry has booted leaves that to the start, and an exit that is
told once the sandbox's process has gone spares the delete the wait.
"""

from __future__ import annotations

from integration.harness.figures.report import Budget

_MIB = 1 << 20

#: Single containers through the task API.
TASKS: tuple[Budget, ...] = (
    Budget("create", ratio=1.7),
    Budget("start", ratio=3.5),
    Budget("create and start", ratio=1.9),
    Budget("create to output", ratio=2.0),
    Budget("exec true", ratio=0.9),
    Budget("metrics", ratio=1.2),
    Budget("kill to exit event", ratio=1.0),
    Budget("kill and delete", ratio=0.8),
    Budget("delete", ratio=0.7),
    Budget("start (process)", ratio=1.8),
    Budget("delete (process)", ratio=1.2),
    Budget("PSS shim", figure=11 * _MIB),
    Budget("idle wake-ups/s", figure=0.5),
)
#: Pods through CRI.
PODS: tuple[Budget, ...] = (
    Budget("run pod", ratio=2.0),
    Budget("container to first log byte", ratio=1.4),
    Budget("exec true", ratio=0.8),
    Budget("container stats", ratio=1.6),
    Budget("stop container", ratio=0.6),
    Budget("stop pod", ratio=1.3),
    Budget("idle wake-ups/s", figure=0.5),
    Budget("idle threads", figure=10),
    Budget("PSS shim, 1 container", figure=11 * _MIB),
    Budget("PSS shim, 3 containers", figure=11 * _MIB),
    Budget("PSS shim, 10 containers", figure=12 * _MIB),
)
