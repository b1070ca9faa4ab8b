"""Trace sessions of a sentry: what their configuration says, and the connections of their sinks.

The forms are those of gVisor's ``pkg/sentry/seccheck`` (``config.go``, ``sinks/remote``).
"""

from __future__ import annotations

import os

from runtime.base.errors import Failed, InvalidRequest, reason
from runtime.base.json_fields import Fields, parse_object
from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: The only session that a sentry knows.
DEFAULT_NAME = "Default"
MAX_CONFIG = 1 << 20
#: Seconds for the other end of a sink to answer.
HANDSHAKE_TIMEOUT = 5.0
#: protobuf: field 1, a number: version 1 of the protocol, the least as well as the newest.
_HANDSHAKE = b"\x08\x01"
_MAX_HANDSHAKE = 10240
_REMOTE, _NULL = "remote", "null"
_SESSION = ("name", "points", "ignore_missing", "sinks", "options")
_POINT = ("name", "optional_fields", "context_fields")
_SINK = ("name", "config", "ignore_setup_error", "status")


class TraceSink(Record):
    """Where events go; ``endpoint`` is the socket of a remote one, empty for none."""

    name: str
    endpoint: str = ""
    config: Mapping[str, Any] = {}
    ignore_setup_error: bool = False


class Session(Record):
    """What is to be traced; ``value`` is the JSON of it, but for the sinks."""

    name: str
    value: Mapping[str, Any]
    sinks: tuple[TraceSink, ...]


def parse(data: bytes, where: str) -> Session:
    """A session's configuration, or that for ``pod-init-config`` which has one in it.

    Raises InvalidRequest naming the member that is wrong, or that isn't known.
    """
    fields = Fields(parse_object(data, where, MAX_CONFIG), where)
    if "trace_session" in fields.value:
        _know(fields, ("trace_session",))
        fields = fields.fields("trace_session") or Fields({}, where)
    _know(fields, _SESSION)
    for point in fields.all_fields("points"):
        _know(point, _POINT)
        if not point.text("name"):
            raise point.error("name", "is wanted")
        point.texts("optional_fields")
        point.texts("context_fields")
    fields.boolean("ignore_missing")
    name = fields.text("name") or DEFAULT_NAME
    value = {**fields.value, "name": name}
    value.pop("sinks", None)
    return Session(name=name, value=value, sinks=tuple(map(_sink, fields.all_fields("sinks"))))


def _know(fields: Fields, names: tuple[str, ...]) -> None:
    for name in fields.value:
        if name not in names:
            raise fields.error(str(name)[:100], "is not known")


def _sink(fields: Fields) -> TraceSink:
    _know(fields, _SINK)
    name = fields.text("name")
    if name not in (_REMOTE, _NULL):
        raise fields.error("name", f"{name!r} is neither {_REMOTE} nor {_NULL}")
    config = fields.fields("config") or Fields({}, fields.where("config"))
    endpoint = config.text("endpoint") if name == _REMOTE else ""
    if name == _REMOTE and not endpoint:
        raise config.error("endpoint", "is wanted: the path of a socket")
    ignored = fields.boolean("ignore_setup_error")
    return TraceSink(name=name, endpoint=endpoint, config=config.value, ignore_setup_error=ignored)


class Connected:
    """A session whose sinks are connected; a context manager.

    A sink whose endpoint isn't there is left out where the configuration says so.
    """

    def __init__(self, session: Session) -> None:
        """Raises Failed."""
        self.fds: list[int] = []
        self.left_out: list[str] = []
        sinks = []
        try:
            for sink in session.sinks:
                try:
                    # The sentry takes the files for those of the sinks one by one, so one that
                    # needs none gets one that does nothing.
                    self.fds.append(_connect(sink.endpoint) if sink.endpoint else _nothing())
                except Failed as fault:
                    if not sink.ignore_setup_error:
                        raise
                    self.left_out.append(str(fault))
                    continue
                sinks.append({"name": sink.name, "config": dict(sink.config)})
        except BaseException:
            self.close()
            raise
        self.config = {**session.value, "sinks": sinks}

    def close(self) -> None:
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Connected:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nothing() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def _connect(path: str) -> int:
    """A connection to a sink at a socket, after the handshake."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(HANDSHAKE_TIMEOUT)
            peer.connect(path)
            peer.send(_HANDSHAKE)
            answer = peer.recv(_MAX_HANDSHAKE)
            if _version(answer) < 1:
                raise Failed(f"trace sink {path}: speaks no version of the protocol that is known")
            peer.setblocking(False)
            return peer.detach()
    except TimeoutError:
        raise Failed(f"trace sink {path}: no answer within {HANDSHAKE_TIMEOUT:g} s") from None
    except OSError as error:
        raise Failed(f"trace sink {path}: {reason(error)}") from None
    except ValueError as error:  # a path with a NUL, or too long
        raise InvalidRequest("endpoint", str(error)) from None


def _version(message: bytes) -> int:
    """Field 1 of a handshake, which is all that one has; 0 if it has none."""
    if len(message) < 2 or message[0] != 0x08:
        return 0
    version = 0
    for shift, byte in enumerate(message[1:6]):
        version |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return version
    return 0


def sessions(found: object) -> list[tuple[str, list[tuple[str, int]]]]:
    """What ListTraceSessions returns: each session's name, and its sinks with their count of
    events that were lost.  Raises Failed."""
    if found is None:
        return []
    if not isinstance(found, list):
        raise Failed("ListTraceSessions: malformed result")
    return [_session(each) for each in found[:100]]


def _session(value: object) -> tuple[str, list[tuple[str, int]]]:
    sinks = value.get("sinks") or [] if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(sinks, list):
        raise Failed("ListTraceSessions: malformed result")
    known = []
    for sink in sinks[:100]:
        status = sink.get("status") or {} if isinstance(sink, dict) else None
        if not isinstance(status, dict):
            raise Failed("ListTraceSessions: malformed result")
        dropped = status.get("dropped_count") or status.get("DroppedCount") or 0
        if type(dropped) is not int:
            raise Failed("ListTraceSessions: malformed result")
        known.append((str(sink.get("name"))[:200], dropped))
    return str(value.get("name"))[:200], known
