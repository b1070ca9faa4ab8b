"""A read-only file system as an image: EROFS, uncompressed, as much of it as one folder needs.

The layout is Linux's (Documentation/filesystems/erofs.rst): a sentry mounts such an image by
itself, without a process that serves the files.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BLOCK = 4096
_MAGIC = 0xE0F5E1E2
_SUPER_AT, _SUPER_SIZE = 1024, 128
#: Inodes begin at multiples of this, by which they are numbered.
_SLOT = 32
_SLOT_BITS = 5
_PLAIN, _INLINE = 0, 2
_TYPE_FILE, _TYPE_FOLDER = 1, 2
_MODE_FILE, _MODE_FOLDER = 0o100755, 0o040755
_DIRENT = struct.Struct("<IIHBB")
_INODE = struct.Struct("<HHHHIIIIHHI")


def image(files: Mapping[str, bytes], folders: Sequence[str]) -> bytes:
    """A root folder of root's with these files, which may be executed, and empty folders.

    Raises ValueError if they are too many for one block.
    """
    names = sorted([*files, *folders], key=str.encode)
    root = (_SUPER_AT + _SUPER_SIZE) >> _SLOT_BITS
    # A folder's entries follow its inode, so all inodes get their places first.
    at = root + _slots(_entries([(name, 0, 0) for name in [".", "..", *names]]))
    places = {}
    for name in names:
        places[name] = at
        at += 1 if name in files else _slots(_entries([(".", 0, 0), ("..", 0, 0)]))
    if at << _SLOT_BITS > BLOCK:
        raise ValueError(f"{len(names)} names are too many for one block")
    head = bytearray(BLOCK)
    data = b""

    def put(number: int, content: bytes) -> None:
        start = number << _SLOT_BITS
        head[start : start + len(content)] = content

    found = [(".", root, _TYPE_FOLDER), ("..", root, _TYPE_FOLDER)]
    found += [(n, places[n], _TYPE_FILE if n in files else _TYPE_FOLDER) for n in names]
    put(root, _folder(root, 2 + len(folders), found))
    for name in folders:
        own = [(".", places[name], _TYPE_FOLDER), ("..", root, _TYPE_FOLDER)]
        put(places[name], _folder(places[name], 2, own))
    for name, content in files.items():
        block = 1 + len(data) // BLOCK
        put(places[name], _inode(_PLAIN, _MODE_FILE, 1, len(content), block, places[name]))
        data += content + bytes(-len(content) % BLOCK)
    blocks = 1 + len(data) // BLOCK
    put(
        _SUPER_AT >> _SLOT_BITS,
        struct.pack(
            "<IIIBBHQQIIII16s16sIHHH38s",
            _MAGIC, 0, 0, BLOCK.bit_length() - 1, 0, root, 1 + len(names), 0, 0, blocks,
            0, 0, b"", b"", 0, 0, 0, 0, b"",
        ),
    )  # fmt: skip
    return bytes(head) + data


def _entries(found: Sequence[tuple[str, int, int]]) -> bytes:
    """A folder's content: the entries, then their names, in the order of their bytes."""
    names = [name.encode() for name, _, _ in found]
    at = len(found) * _DIRENT.size
    entries = b""
    for name, (_, number, kind) in zip(names, found, strict=True):
        entries += _DIRENT.pack(number, 0, at, kind, 0)
        at += len(name)
    return entries + b"".join(names)


def _folder(number: int, links: int, found: Sequence[tuple[str, int, int]]) -> bytes:
    # "." and ".." come before all names that begin with a letter, as they must.
    content = _entries(found)
    return _inode(_INLINE, _MODE_FOLDER, links, len(content), 0, number) + content


def _slots(content: bytes) -> int:
    return (_INODE.size + len(content) + _SLOT - 1) // _SLOT


def _inode(layout: int, mode: int, links: int, size: int, block: int, number: int) -> bytes:
    return _INODE.pack(layout << 1, 0, mode, links, size, 0, block, number, 0, 0, 0)
