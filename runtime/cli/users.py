"""A container's users and groups by name, from the files in its root file system on the host.

Owns the forms of /etc/passwd and /etc/group and who ``USER[:GROUP]`` is.  What the container wrote
since its start counts only where its root file system isn't an overlay in the sandbox.  The
container may write what it likes into these files: they only say which of its own users is meant.
"""

from __future__ import annotations

from runtime.base.errors import InvalidRequest, reason
from runtime.base.record import Record
from runtime.bundle import executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.bundle.spec import Spec

PASSWD, GROUP = "/etc/passwd", "/etc/group"
_FIELD = "--user"
_MAX_ID = 0xFFFF_FFFF
_MAX_FILE = 1 << 22
_MAX_GROUPS = 65536  # the kernel's NGROUPS_MAX


class Account(Record):
    """Who a process is to be."""

    uid: int
    gid: int
    #: The further groups of one who was named without a group; None if it isn't known.
    gids: tuple[int, ...] | None = None


def find(text: str, rootfs: str, spec: Spec) -> Account:
    """The account that ``USER[:GROUP]`` means, each a number or a name.

    A user that is a number has group 0 unless one is named, as in runc; one that is a name has
    those that the files give.  Numbers alone need no files.  Raises InvalidRequest.
    """
    return _find(text, lambda path: _read(rootfs, spec, path))


def _find(text: str, read: Callable[[str], bytes]) -> Account:
    user, colon, group = text.partition(":")
    if not user or (colon and not group) or ":" in group:
        raise InvalidRequest(_FIELD, f"{text!r} is not of the form USER[:GROUP]")
    uid = _number(user)
    gid, gids = 0, None
    if uid is None:
        uid, gid = _entry(read(PASSWD), user, PASSWD, (2, 3))
        gids = () if group else _memberships(read(GROUP), user)
    if group:
        known = _number(group)
        gid = known if known is not None else _entry(read(GROUP), group, GROUP, (2,))[0]
    return Account(uid=uid, gid=gid, gids=gids)


def _number(text: str) -> int | None:
    """An id that is written as a number; None for a name.  Raises InvalidRequest."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > _MAX_ID:
        raise InvalidRequest(_FIELD, f"{text[:20]!r} is more than {_MAX_ID}")
    return int(text)


def _lines(data: bytes) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "replace").split("\n"):
        fields = line.strip().split(":")
        if len(fields) > 1 and not line.startswith("#"):
            yield fields


def _entry(data: bytes, name: str, path: str, columns: tuple[int, ...]) -> list[int]:
    """The numbers in the first line that is about ``name``."""
    for fields in _lines(data):
        if fields[0] != name:
            continue
        try:
            found = [_number(fields[column]) for column in columns]
        except IndexError:
            found = [None]
        if None in found:
            break
        return [each for each in found if each is not None]
    else:
        raise InvalidRequest(_FIELD, f"no {name!r} in the container's {path}")
    raise InvalidRequest(_FIELD, f"the entry of {name!r} in the container's {path} is malformed")


def _memberships(data: bytes, user: str) -> tuple[int, ...]:
    found: list[int] = []
    for fields in _lines(data):
        if len(fields) < 4 or user not in fields[3].split(","):
            continue
        gid = _number(fields[2])
        if gid is not None and len(found) < _MAX_GROUPS:
            found.append(gid)
    return tuple(dict.fromkeys(found))


def _read(rootfs: str, spec: Spec, path: str) -> bytes:
    """The file's bytes; of a missing /etc/group none.  Raises InvalidRequest."""
    try:
        fd = executable.open_file(rootfs, spec, path)
    except FileNotFoundError:
        if path == GROUP:
            return b""
        raise InvalidRequest(_FIELD, f"the container has no {path}: a number is wanted") from None
    except OSError as error:
        why = f"{path} in the container: {reason(error)}"
        raise InvalidRequest(_FIELD, f"{why}: a number is wanted") from None
    if fd is None:
        why = f"a mount of the container decides what its {path} is"
        raise InvalidRequest(_FIELD, f"{why}: a number is wanted")
    with open(fd, "rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise InvalidRequest(_FIELD, f"{path} in the container is too large: a number is wanted")
    return data
