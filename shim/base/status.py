"""The one table from the domain's exceptions to gRPC status codes.

Called by the dispatcher alone; no handler maps errors itself.
"""

from __future__ import annotations

from runtime.base import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OK: Final = 0
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
ALREADY_EXISTS: Final = 6
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12
UNAVAILABLE: Final = 14

#: First match wins, so a child stands before its parent.
CODES: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (errors.NotFound, NOT_FOUND),
    (errors.AlreadyExists, ALREADY_EXISTS),
    (errors.InvalidState, FAILED_PRECONDITION),
    (errors.InvalidRequest, INVALID_ARGUMENT),
    (errors.Unsupported, UNIMPLEMENTED),
    (errors.ResourceExhausted, RESOURCE_EXHAUSTED),
    (errors.SandboxGone, UNAVAILABLE),
    (errors.Unreachable, UNAVAILABLE),
    (errors.DeadlineExceeded, DEADLINE_EXCEEDED),
    (errors.Failed, UNKNOWN),
)

#: Longest message that is sent; containerd shows it whole to its users.
MAX_MESSAGE = 8192


def of(fault: BaseException) -> tuple[int, str, bool]:
    """The code and message for ``fault``, and whether it was expected (not worth a traceback)."""
    message = str(fault)[:MAX_MESSAGE] or type(fault).__name__
    for kind, code in CODES:
        if isinstance(fault, kind):
            return code, message, True
    return UNKNOWN, f"{type(fault).__name__}: {message}", False
