"""What the shim may cost, beside runc's in the same run (`integration/bench --check`).

A measure that got slower than its budget is a regression.  Budgets leave room for the noise of a
machine that does other things; they are lowered when the shim gets better, never raised to make a
check pass.
"""

from __future__ import annotations

from integration.harness.report import Budget

_MIB = 1 << 20

#: Single containers through the task API.
TASKS: tuple[Budget, ...] = ()
#: Pods through CRI.
PODS: tuple[Budget, ...] = (Budget("PSS shim, 1 container", figure=15 * _MIB),)
