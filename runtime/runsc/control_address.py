"""Where a sandbox's control socket is: the path, or the abstract name of old releases."""

from __future__ import annotations

import os
from binascii import crc32


def control_address(directory: str, sandbox_id: str) -> str:
    """The path of a sandbox's control socket: ``runsc-<id>.sock``, as runsc itself names it.

    Of an overlong id the end is a checksum.
    """
    name = sandbox_id
    if len(name) > _NAME_LIMIT - 12:
        name = f"{name[: _NAME_LIMIT - 21]}-{crc32(name.encode()):08x}"
    return os.path.join(directory, f"runsc-{name}.sock")


def control_addresses(directory: str, sandbox_id: str, abstract: bool) -> tuple[str, ...]:
    """Where a sandbox's control socket may be, to be tried in this order.

    ``abstract`` is an operator's wish for the one name under which runsc's own commands look for
    sandboxes of before release-20230920; the sentry itself doesn't mind.  Every user of the
    network namespace can reach it, and the sentry takes all of them for its own: in its user
    namespace they have the overflow id, which is its own, too.  It is one for all root
    directories: where it is taken, or too long, there is the path.
    """
    path = control_address(directory, sandbox_id)
    name = abstract_address(sandbox_id)
    if not abstract or len(os.fsencode(name)) > _MAX_ABSTRACT:
        return (path,)
    return name, path


_NAME_LIMIT = 80


#: Bytes of sun_path.
_MAX_ABSTRACT = 108


def abstract_address(sandbox_id: str) -> str:
    """Where a sentry of before release-20230920 listens: Go's library counts a final NUL."""
    return f"\0runsc-sandbox.{sandbox_id}\0"
