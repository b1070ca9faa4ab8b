"""The files in a container's bundle by which containerd finds the container's shim again.

containerd writes them itself where it runs ``start``, and only in part for a container that joins
a pod's shim without one.  At its next start it takes the shim's binary from ``shim-binary-path``,
else from the runtime's name and its own PATH, and deletes the bundle of a container whose runtime
it can't find (core/runtime/v2, loadShim); containerd 1.x takes the shim's socket from ``address``.
"""

from __future__ import annotations

import os
import stat

from runtime.base import files, log
from runtime.base.errors import InvalidRequest
from runtime.bundle import rootfs

#: The shim's socket, for containerd 1.x.
ADDRESS = "address"
#: The shim's binary, as the runtime was configured.
BINARY = "shim-binary-path"
_MAX_PATH = 4096

_log = log.get_logger("bundles")


class Bundles:
    """The bundles of a shim's containers.  From any thread."""

    def __init__(self, address: str, first: str = "") -> None:
        """``address`` is the shim's own, ``first`` the bundle that it was started in."""
        self._address = address
        self._first = first
        #: Kept, as the first bundle may go before the others.
        self._binary = b""

    def note(self, bundle: str) -> None:
        """Leave in ``bundle`` what containerd didn't.  Never raises: nothing depends on it now."""
        try:
            if self._address:
                self._add(bundle, ADDRESS, self._address.encode())
            binary = self._find_binary(bundle)
            if binary:
                self._add(bundle, BINARY, binary)
        except (OSError, InvalidRequest) as error:
            _log.warning("bundle.unmarked", bundle=bundle, error=str(error))

    def _find_binary(self, bundle: str) -> bytes:
        for place in (self._first, bundle):
            if self._binary or not place:
                break
            self._binary = files.read_bounded(os.path.join(place, BINARY), _MAX_PATH) or b""
        return self._binary

    @staticmethod
    def _add(bundle: str, name: str, data: bytes) -> None:
        path = os.path.join(bundle, name)
        if not os.path.lexists(path):
            files.replace_file(path, data)


def remove(bundle: str) -> None:
    """Remove a bundle that containerd has forgotten; no error if there is none.

    Never deeper than its own entries: what is in a directory in it stays, and so does the bundle.
    Raises OSError, RuntimeFault.
    """
    rootfs.unmount_all(os.path.join(bundle, "rootfs"))
    try:
        entries = os.listdir(bundle)
    except FileNotFoundError:
        return
    for name in entries:
        path = os.path.join(bundle, name)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
        else:
            os.unlink(path)
    os.rmdir(bundle)
