"""The domain's exceptions.  They carry data; ``shim/base/status.py`` alone turns them into codes.

Messages are lower case, without a full stop, and name the object they speak of.
"""

from __future__ import annotations

import os


def reason(error: OSError | int | None) -> str:
    """The system's words for an error, or an errno value, as a part of one of our messages."""
    code = error.errno if isinstance(error, OSError) else error
    return os.strerror(code or 0).lower()


class RuntimeFault(Exception):
    """Root of all that the runtime raises on purpose."""


class NotFound(RuntimeFault):
    """A container, process or exec that isn't there (any more)."""

    def __init__(self, kind: str, name: str, detail: str = "") -> None:
        self.kind, self.name = kind, name
        super().__init__(detail or f"{kind} {name!r} not found")


class AlreadyExists(RuntimeFault):
    """The id is taken."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"{kind} {name!r} already exists")


class InvalidState(RuntimeFault):
    """The operation isn't legal in the object's present state."""

    def __init__(self, operation: str, subject: str, state: str) -> None:
        self.operation, self.subject, self.state = operation, subject, state
        super().__init__(f"cannot {operation} {subject} in state {state}")


class InvalidRequest(RuntimeFault):
    """An input from outside is wrong: ``field`` names it, ``why`` says how."""

    def __init__(self, field: str, why: str) -> None:
        self.field, self.why = field, why
        super().__init__(f"{field}: {why}")


class Unsupported(RuntimeFault):
    """What is asked can't be given by gVisor, this runsc or this host."""


class ResourceExhausted(RuntimeFault):
    """A bound is reached: file descriptors, message size, queue length."""


class SandboxGone(RuntimeFault):
    """The sentry ended.  ``status`` is its raw wait status where known."""

    def __init__(self, pid: int, status: int | None = None, detail: str = "") -> None:
        self.pid, self.status = pid, status
        super().__init__(detail or f"sandbox process {pid} is gone")


class Unreachable(RuntimeFault):
    """A call's connection broke, but the sentry lives: what was asked for may take effect yet."""


class DeadlineExceeded(RuntimeFault):
    """A step took longer than it was allowed to."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds
        super().__init__(f"{what}: no answer within {seconds:g} s")


class Unanswered(DeadlineExceeded):
    """There was no answer in time, but the request was sent whole and may take effect yet."""


class Failed(RuntimeFault):
    """An operation that was legal and well-formed did not work; the message says why."""
