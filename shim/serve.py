"""The daemon without ``start``: run by hand, or by a program that has the listening socket already.

Owns where such a daemon's listener comes from.  No container's start goes through it.
"""

from __future__ import annotations

import _socket
import os

from runtime.base import files
from runtime.base.errors import Failed
from shim import bootstrap
from shim.base import sockets
from shim.base.arguments import check_id
from shim.daemon_args import DaemonArgs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from shim.base.arguments import Invocation

#: As containerd's own shims hand it to their daemon.
_INHERITED_LISTENER = 3


def serve(call: Invocation, output: tuple[int, int]) -> NoReturn:
    """Be the daemon: the listener is descriptor 3, or is made at ``-socket``.

    ``output`` are the descriptors of the real stdout and stderr, which are let go of when the
    daemon begins: whoever reads them waits for their end.  Raises RuntimeFault or OSError before
    that, and then leaves no socket.
    """
    check_id("-id", call.id)
    check_id("-namespace", call.namespace)
    path = os.path.abspath(call.socket.removeprefix(sockets.SCHEME)) if call.socket else ""
    bundle = os.path.abspath(call.bundle) if call.bundle else os.getcwd()
    os.chdir(bundle)
    bootstrap.clean_environment()
    saved = files.read_bounded(bootstrap.OPTIONS_FILE, bootstrap.MAX_STDIN)
    options = bootstrap.parse_stdin(saved or b"", call.id, call.namespace).options
    if path:
        with files.DirectoryLock(os.path.dirname(path)):
            listener = sockets.listen(path)
        if listener is None:
            raise Failed(f"listen on {path}: address already in use")
        address = sockets.SCHEME + path
    else:
        listener = _INHERITED_LISTENER
        address = _inherited_address(listener)
        os.set_inheritable(listener, False)
    for fd in output:
        os.close(fd)
    bootstrap.run_daemon(
        DaemonArgs(
            namespace=call.namespace,
            id=call.id,
            bundle=bundle,
            address=call.address,
            ttrpc_address=os.environ.get("TTRPC_ADDRESS", ""),
            publish_binary=call.publish_binary,
            listener_fd=listener,
            socket_address=address,
            log_level="debug" if call.debug else "info",
            options=options,
        )
    )


def _inherited_address(fd: int) -> str:
    try:
        listener = _socket.socket(fileno=fd)
    except OSError:
        raise Failed("no listening socket: neither -socket nor descriptor 3 is one") from None
    try:
        listening = listener.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN)
        name = listener.getsockname() if listener.family == _socket.AF_UNIX else None
    finally:
        listener.detach()
    if not listening or not isinstance(name, str) or not name.startswith("/"):
        raise Failed("descriptor 3 is not a listening unix socket with a path")
    return sockets.SCHEME + name
