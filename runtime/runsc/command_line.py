"""A command line of runsc, and the descriptors that go with it."""

from __future__ import annotations

from runtime.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST_FD = 3


class Command(Record):
    """A command line, and the descriptors that it names: the child's number to ours."""

    argv: tuple[str, ...]
    fds: Mapping[int, int]


class CommandLine:
    """Arguments that number the descriptors given with them."""

    def __init__(self, name: str, root: str, flags: Mapping[str, str]) -> None:
        self._argv = [name, f"--root={root}"]
        self._fds: dict[int, int] = {}
        self._argv += [f"--{k}={flags[k]}" for k in sorted(flags) if k != "root"]

    def add(self, *arguments: str) -> None:
        self._argv += arguments

    def give(self, flag: str, fd: int) -> None:
        self._argv.append(f"--{flag}={self._number(fd)}")

    def give_all(self, fds: Mapping[str, int]) -> None:
        for flag, fd in fds.items():
            self.give(flag, fd)

    def give_as(self, flag: str, fd: int, name: str) -> None:
        """For a flag that says what the descriptor is to be called."""
        self._argv.append(f"--{flag}={self._number(fd)}:{name}")

    def _number(self, fd: int) -> int:
        number = _FIRST_FD + len(self._fds)
        self._fds[number] = fd
        return number

    def command(self) -> Command:
        return Command(argv=tuple(self._argv), fds=dict(self._fds))
