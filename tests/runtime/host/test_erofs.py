"""The image is read back by the layout's rules; the integration tests have sentries mount it."""

from __future__ import annotations

import struct

import pytest

from runtime.host import erofs


class _Image:
    def __init__(self, data: bytes) -> None:
        self.data = data
        found = struct.unpack_from("<IIIBBHQQIIII16s16sIHHH", data, 1024)
        self.magic, self.incompatible = found[0], found[14]
        self.block_bits, self.root, self.blocks = found[3], found[5], found[9]

    def inode(self, number: int) -> tuple[int, int, bytes]:
        """Mode, links and content."""
        at = number * 32
        form, extra, mode, links, size, _, block, _, uid, gid, _ = struct.unpack_from(
            "<HHHHIIIIHHI", self.data, at
        )
        assert (extra, uid, gid) == (0, 0, 0)
        start = at + 32 if form == 2 << 1 else block << self.block_bits
        assert form in (0, 2 << 1) and start // 4096 == (start + size - 1) // 4096
        return mode, links, self.data[start : start + size]

    def folder(self, number: int) -> dict[str, tuple[int, int]]:
        """Name -> inode and type, in their order."""
        mode, _, content = self.inode(number)
        assert mode == 0o40755
        count = struct.unpack_from("<H", content, 8)[0] // 12
        entries = [struct.unpack_from("<IIHBB", content, 12 * each) for each in range(count)]
        ends = [entry[2] for entry in entries[1:]] + [len(content)]
        return {
            content[low:end].decode(): (number, kind)
            for (number, _, low, kind, _), end in zip(entries, ends, strict=True)
        }


def test_an_image() -> None:
    image = _Image(erofs.image({"run": b"program"}, ("proc", "dev", "sys")))
    assert (image.magic, image.incompatible) == (0xE0F5E1E2, 0)
    assert 1 << image.block_bits == 4096
    assert image.blocks * 4096 == len(image.data)
    root = image.folder(image.root)
    assert list(root) == [".", "..", "dev", "proc", "run", "sys"]
    assert root["."] == root[".."] == (image.root, 2)
    assert image.inode(image.root)[1] == 2 + 3
    assert root["run"][1] == 1
    assert image.inode(root["run"][0]) == (0o100755, 1, b"program")
    for name in ("dev", "proc", "sys"):
        number, kind = root[name]
        assert kind == 2 and image.folder(number) == {".": (number, 2), "..": (image.root, 2)}


def test_the_same_gives_the_same() -> None:
    assert erofs.image({"a": b"1"}, ("b",)) == erofs.image({"a": b"1"}, ("b",))


def test_what_is_too_much_for_a_block() -> None:
    with pytest.raises(ValueError, match="too many"):
        erofs.image({}, [f"folder{number}" for number in range(100)])
