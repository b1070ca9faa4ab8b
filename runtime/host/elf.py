"""An executable file around machine code that needs nothing: no library, no data, no loader."""

from __future__ import annotations

import struct

from runtime.base.errors import Unsupported
from runtime.host import linux

_BASE = 0x400000
_HEADERS = 64 + 56
_READ_EXECUTE = 5


def executable(code: bytes, entry: int, *, what: str) -> bytes:
    """The file; ``entry`` is where in the code its first instruction is.

    Raises Unsupported, naming ``what``, on a machine for which there is no code.
    """
    machine = linux.machine_number()
    if not machine:
        raise Unsupported(f"{what} on this machine")
    whole = _HEADERS + len(code)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64 bits, little-endian
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident, 2, machine, 1, _BASE + _HEADERS + entry, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, _READ_EXECUTE, 0, _BASE, _BASE, whole, whole, 0x1000)
    return head + segment + code
