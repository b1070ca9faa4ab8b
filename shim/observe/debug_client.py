"""Asks a shim at its debug socket, for ``gvctl``."""

from __future__ import annotations

from runtime.base import fastjson
from runtime.base.errors import DeadlineExceeded, Failed, NotFound, Unsupported
from shim import sockets, status
from shim.observe.debug_service import SERVICE
from shim.ttrpc.client import Client
from shim.ttrpc.errors import ConnectionLost, StatusError

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
    try:
        found = fastjson.loads(reply)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Failed(f"{what}: malformed reply")
    return found
