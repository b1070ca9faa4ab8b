"""Asks a shim at its debug socket, for ``gvctl``."""

from __future__ import annotations

import _socket
import os

from runtime.base import fastjson
from runtime.base.errors import DeadlineExceeded, Failed, NotFound, Unsupported
from shim.base import sockets, status
from shim.observe.debug_service import SERVICE
from shim.ttrpc.client import Client
from shim.ttrpc.connection import ClientConnection, ResponseReceived
from shim.ttrpc.errors import ConnectionLost, RemoteProtocolError, StatusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def ask(
    address: str, method: str, request: Mapping[str, Any], timeout: float = 2.0
) -> Mapping[str, Any]:
    """The reply of the shim with this ``unix://`` address; the methods are DebugService's.

    Raises NotFound if there is no debug socket (a shim of before it, or none at all),
    DeadlineExceeded, Unsupported for a method that it doesn't know, Failed in its words.
    """
    path = sockets.debug_path(address)
    what = f"the debug socket of the shim at {address or 'no address'}"
    try:
        with Client(path, timeout) as client:
            payload = fastjson.dumps(request).encode("ascii")
            reply = client.call(SERVICE, method, payload, timeout=timeout)
    except StatusError as error:
        if error.code == status.UNIMPLEMENTED:
            raise Unsupported(f"{what}: {error.message}") from None
        raise Failed(f"{what}: {error.message}") from None
    except TimeoutError:
        raise DeadlineExceeded(what, timeout) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotFound("debug socket", path, f"{what} isn't there") from None
    except (OSError, ConnectionLost) as error:
        raise Failed(f"{what}: {error}") from None
    return _decoded(reply, what)


def _decoded(reply: bytes, what: str) -> Mapping[str, Any]:
    try:
        found = fastjson.loads(reply)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Failed(f"{what}: malformed reply")
    return found


class Posted:
    """A method without arguments, asked of a shim without waiting; ``feed`` takes the answer.

    Making one raises as :func:`ask` does, DeadlineExceeded if the shim accepts nobody.
    """

    def __init__(self, address: str, method: str) -> None:
        path = sockets.debug_path(address)
        self._what = f"the debug socket of the shim at {address or 'no address'}"
        self._protocol = ClientConnection()
        self._socket = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        try:
            self._socket.connect(os.fsencode(path))
            _, data = self._protocol.send_request(SERVICE, method, b"{}", 0, None)
            # A connection that is new has room for it.
            self._socket.send(data, _socket.MSG_NOSIGNAL)
        except OSError as error:
            self._socket.close()
            if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
                raise NotFound("debug socket", path, f"{self._what} isn't there") from None
            if isinstance(error, BlockingIOError):
                raise DeadlineExceeded(self._what, 0.0) from None
            raise Failed(f"{self._what}: {error}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def feed(self) -> Mapping[str, Any] | None:
        """The reply, if it is complete.  Raises Unsupported, Failed."""
        try:
            data = self._socket.recv(64 << 10)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise Failed(f"{self._what}: {error}") from None
        if not data:
            raise Failed(f"{self._what}: it closed the connection")
        try:
            events = self._protocol.receive_data(data)
        except RemoteProtocolError as error:
            raise Failed(f"{self._what}: {error}") from None
        for event in events:
            if isinstance(event, ResponseReceived):
                answer = event.status
                if answer is None:
                    return _decoded(event.payload, self._what)
                if answer.code == status.UNIMPLEMENTED:
                    raise Unsupported(f"{self._what}: {answer.message}")
                raise Failed(f"{self._what}: {answer.message}")
        return None

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()
