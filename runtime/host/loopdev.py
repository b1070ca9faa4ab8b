"""Loop devices: a file as a block device that vanishes with its last user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
# Others may take the free device between the question and the answer.
_TRIES = 32


def attach_loop(path: str, *, read_only: bool, direct_io: bool = False) -> int:
    """A descriptor of a loop device (``/proc/self/fd/N`` leads to it) with ``path`` behind it.

    The device is freed once the descriptor is closed and nothing that it was mounted on is left.
    Raises OSError; EINVAL before Linux 5.8.
    """
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    backing = os.open(path, mode)
    try:
        flags = _LO_FLAGS_AUTOCLEAR
        flags |= _LO_FLAGS_READ_ONLY if read_only else 0
        flags |= _LO_FLAGS_DIRECT_IO if direct_io else 0
        config = _config(backing, flags, os.fsencode(path))
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_TRIES):
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                device = os.open(f"/dev/loop{number}", mode)
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                    return device
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY:
                        raise
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "/dev/loop-control")
        finally:
            os.close(control)
    finally:
        os.close(backing)


def _config(backing: int, flags: int, name: bytes) -> bytes:
    """``struct loop_config`` of ``linux/loop.h``."""
    info = struct.pack("=5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, name[:63], b"", b"", 0, 0)
    return struct.pack("=2I", backing, 0) + info + bytes(64)
