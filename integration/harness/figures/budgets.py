"""What the shim may cost, beside runc's in the same run (`integration/bench --check`).

A measure that takes more than its budget is a regression.  Budgets leave room for the noise of a
machine that does other things; they are lowered when the shim gets better, never raised to make a
check pass.
"""

from __future__ import annotations

from integration.harness.figures.report import Budget

_MIB = 1 << 20

#: Single containers through the task API.
TASKS: tuple[Budget, ...] = (
    Budget("create", ratio=2.8),
    Budget("start", ratio=3.5),
    Budget("create to output", ratio=3.0),
    Budget("exec true", ratio=1.0),
    Budget("metrics", ratio=1.5),
    Budget("kill to exit event", ratio=1.0),
    Budget("delete", ratio=1.2),
    Budget("start (process)", ratio=2.0),
    Budget("delete (process)", ratio=1.6),
    Budget("PSS shim", figure=11 * _MIB),
    Budget("idle wake-ups/s", figure=0.5),
)
#: Pods through CRI.
PODS: tuple[Budget, ...] = (
    Budget("run pod", ratio=3.0),
    Budget("container to first log byte", ratio=1.6),
    Budget("exec true", ratio=0.8),
    Budget("container stats", ratio=2.0),
    Budget("stop container", ratio=0.8),
    Budget("stop pod", ratio=1.4),
    Budget("idle wake-ups/s", figure=0.5),
    Budget("idle threads", figure=10),
    Budget("PSS shim, 1 container", figure=11 * _MIB),
    Budget("PSS shim, 3 containers", figure=11 * _MIB),
    Budget("PSS shim, 10 containers", figure=12 * _MIB),
)
