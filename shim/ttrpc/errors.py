"""The exceptions of ttrpc, and the status codes, which are those of gRPC."""

from __future__ import annotations

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16


class TtrpcError(Exception):
    """Root of this package's exceptions."""


class LocalProtocolError(TtrpcError):
    """This side used the protocol wrongly: a bug in the caller, not in the peer."""


class RemoteProtocolError(TtrpcError):
    """The peer sent bytes that make no sense; the connection cannot go on."""


class ConnectionLost(TtrpcError):
    """The connection ended before the answer came.  Whether the peer acted is unknown."""


class StatusError(TtrpcError):
    """A status other than OK: raised by a handler as its answer, by the client for one received.

    ``code`` is one of the codes above, ``details`` are serialized ``google.protobuf.Any``.
    """

    def __init__(self, code: int, message: str, details: tuple[bytes, ...] = ()) -> None:
        self.code, self.message, self.details = code, message, details
        super().__init__(f"{message} (code {code})")
