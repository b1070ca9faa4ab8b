"""What ``top`` draws on a terminal: a table that fits it, in colours where it has them.  Pure,
but for :class:`Screen`, which is the terminal itself."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
import unicodedata

from runtime.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Line = Mapping[str, Any]

_USUAL_SIZE = (80, 24)
#: Keys, and the order that each asks for.
KEYS = {"c": "cpu", "m": "memory", "p": "pids", "r": "restarts", "n": "pod"}
ORDERS: Mapping[str, Callable[[Line], Any]] = {
    "cpu": lambda line: -(line["cpuPercent"] or 0.0),
    "memory": lambda line: -(line["memory"] or 0),
    "pids": lambda line: -(line["pids"] or 0),
    "restarts": lambda line: -line["goferRestarts"],
    "pod": lambda line: line["name"],
}
#: Of CPU in per cent of one, and of memory as a part of its limit, from which a figure stands out.
_BUSY = ((90.0, "red"), (50.0, "yellow"))
_FULL = ((0.9, "red"), (0.75, "yellow"))
_COLOURS = {
    "red": "\x1b[31m",
    "yellow": "\x1b[33m",
    "green": "\x1b[32m",
    "cyan": "\x1b[36m",
    "dim": "\x1b[2m",
    "bold": "\x1b[1m",
    "head": "\x1b[1;7m",
}
_PLAIN = "\x1b[0m"
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[H", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_SYNC_BEGIN, _SYNC_END = "\x1b[?2026h", "\x1b[?2026l"


class _Column:
    """``cell`` makes the text and the colour of a line's cell; ``rank`` says which columns go first
    where there is no room, the highest."""

    def __init__(
        self,
        head: str,
        rank: int,
        cell: Callable[[Line], tuple[str, str]],
        order: str = "",
        right: bool = True,
    ) -> None:
        self.head, self.rank, self.cell, self.order, self.right = head, rank, cell, order, right


def _plain(name: str) -> Callable[[Line], tuple[str, str]]:
    def cell(line: Line) -> tuple[str, str]:
        value = line[name]
        return ("-", "dim") if value is None or value == "" else (str(value), "")

    return cell


def _above(value: float, bounds: Sequence[tuple[float, str]]) -> str:
    return next((colour for bound, colour in bounds if value >= bound), "")


def _cpu(line: Line) -> tuple[str, str]:
    value = line["cpuPercent"]
    return ("-", "dim") if value is None else (f"{value:.1f}", _above(value, _BUSY))


def _memory(line: Line) -> tuple[str, str]:
    value, limit = line["memory"], line["memoryLimit"]
    if value is None:
        return "-", "dim"
    return output.size(value), _above(value / limit, _FULL) if limit else ""


def _limit(line: Line) -> tuple[str, str]:
    value = line["memoryLimit"]
    return ("-", "dim") if value is None else (output.size(value), "")


def _status(line: Line) -> tuple[str, str]:
    colours = {"running": "green", "paused": "yellow", "created": "cyan"}
    return line["status"], colours.get(line["status"], "dim")


def _restarts(line: Line) -> tuple[str, str]:
    value = line["goferRestarts"]
    return str(value), "yellow" if value else "dim"


_COLUMNS = (
    _Column("POD", 0, lambda line: (line["name"], "bold"), "pod", right=False),
    _Column("NAMESPACE", 7, _plain("namespace"), right=False),
    _Column("STATUS", 3, _status, right=False),
    _Column("CPU%", 0, _cpu, "cpu"),
    _Column("MEMORY", 0, _memory, "memory"),
    _Column("LIMIT", 4, _limit),
    _Column("PIDS", 1, _plain("pids"), "pids"),
    _Column("CONTAINERS", 2, _plain("containers")),
    _Column("GOFERS", 6, _plain("gofers")),
    _Column("RESTARTS", 5, _restarts, "restarts"),
    _Column("OOM ADJ", 8, _plain("oomScoreAdj")),
    _Column("CGROUP", 9, _plain("cgroup"), right=False),
)
#: The least that is left of a name that is cut.
_SHORTEST = 12


def width_of(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fit(text: str, width: int, right: bool = False) -> str:
    """The text in exactly ``width`` cells: filled up, or cut with an ellipsis at its end."""
    if width_of(text) > width:
        while text and width_of(text) > width - 1:
            text = text[:-1]
        text += "…" if width else ""
    room = " " * (width - width_of(text))
    return room + text if right else text + room


def totals(lines: Sequence[Line]) -> Line:
    """One line for all pods."""

    def total(name: str) -> Any:
        known = [line[name] for line in lines if line[name] is not None]
        return sum(known) if known else None

    return {
        "name": f"{len(lines)} pod" + ("" if len(lines) == 1 else "s"),
        "namespace": "",
        "status": f"{sum(line['status'] == 'running' for line in lines)} running",
        "memoryLimit": None,
        "oomScoreAdj": None,
        "cgroup": "",
        **{
            name: total(name)
            for name in ("cpuPercent", "memory", "pids", "containers", "gofers", "goferRestarts")
        },
    }


def render(
    lines: Sequence[Line],
    order: str,
    width: int,
    height: int,
    *,
    colour: bool,
    title: str = "",
    notes: Sequence[str] = (),
) -> list[str]:
    """Lines of text, each ``width`` cells at most, and no more than ``height`` of them.

    A title with the keys, the heads, the pods as far as there is room, the totals, ``notes``.
    """
    lines = sorted(lines, key=ORDERS[order])
    total = totals(lines)
    # The title, the heads, a rule and the totals are always there, and the notes where they can be.
    room = max(height - 4 - len(notes), 1)
    shown, hidden = lines[:room], max(len(lines) - room, 0)
    if hidden:
        shown, hidden = lines[: room - 1], len(lines) - room + 1
    cells = [[column.cell(line) for column in _COLUMNS] for line in (*shown, total)]
    cells = [[(output.printable(text), paint) for text, paint in row] for row in cells]
    heads = [f"{c.head}▾" if c.order == order else c.head for c in _COLUMNS]
    widths = [
        max(width_of(head), *(width_of(row[at][0]) for row in cells))
        for at, head in enumerate(heads)
    ]
    used = _choose(widths, width)

    def line_of(texts: Sequence[tuple[str, str]], whole: str = "") -> str:
        parts = []
        for at in used:
            text = fit(texts[at][0], widths[at], _COLUMNS[at].right)
            paint = whole or texts[at][1]
            parts.append(_painted(text, paint, colour))
        gap = _painted("  ", whole, colour) if whole else "  "
        return gap.join(parts)

    keys = "  ".join(f"[{key}] {name}" for key, name in KEYS.items()) + "  [q] quit"
    title = title if width_of(title) + width_of(keys) + 3 > width else f"{title}   {keys}"
    text = [_painted(fit(title, width), "dim", colour)]
    text.append(_painted(fit(line_of([(head, "") for head in heads]), width), "head", colour))
    text += map(line_of, cells[:-1])
    if hidden:
        text.append(_painted(fit(f"… and {hidden} more", width), "dim", colour))
    table = min(sum(widths[at] for at in used) + 2 * (len(used) - 1), width)
    text.append(_painted("─" * table, "dim", colour))
    text.append(
        line_of([("", "") if cell == "-" else (cell, paint) for cell, paint in cells[-1]], "bold")
    )
    text += (_painted(fit(output.printable(note), width), "dim", colour) for note in notes)
    return text[: max(height, 1)]


def _choose(widths: list[int], width: int) -> list[int]:
    """The columns for which there is room, by their place; widths are cut where that helps."""
    used = list(range(len(widths)))

    def over() -> int:
        return sum(widths[at] for at in used) + 2 * (len(used) - 1) - width

    for at in (len(widths) - 1, 0):  # a cgroup's path and a pod's name may be cut
        if over() > 0 and at in used:
            widths[at] = max(widths[at] - over(), min(widths[at], 2 * _SHORTEST))
    for at in sorted(used, key=lambda at: -_COLUMNS[at].rank):
        if over() <= 0:
            break
        if _COLUMNS[at].rank:
            used.remove(at)
    if over() > 0:
        widths[0] = max(widths[0] - over(), _SHORTEST)
    return used


def _painted(text: str, paint: str, colour: bool) -> str:
    return f"{_COLOURS[paint]}{text}{_PLAIN}" if colour and paint else text


def has_colours() -> bool:
    """Whether to use them: NO_COLOR (no-color.org) and a terminal that has none say no."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in ("", "dumb")


class Screen:
    """The terminal while ``top`` draws on it; a context manager that leaves it as it was."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None
        self._keyboard = os.isatty(0)
        self._woken, self._waker = -1, -1
        #: The signal that ends it, if one came.
        self.ended = 0

    def __enter__(self) -> Screen:
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGWINCH, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        if self._keyboard:
            self._saved = termios.tcgetattr(0)
            tty.setcbreak(0)
        output.write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
        try:
            output.write(_LEAVE)
        except OSError:
            return  # the terminal is gone

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        width, height = os.get_terminal_size(1)
        # Of a terminal that nobody gave a size, none.
        return (width, height) if width and height else _USUAL_SIZE

    def draw(self, text: Sequence[str]) -> None:
        """Put lines over those of before, at once where the terminal can."""
        body = "\r\n".join(f"{line}{_CLEAR_LINE}" for line in text)
        output.write(f"{_SYNC_BEGIN}{_HOME}{body}{_CLEAR_BELOW}{_SYNC_END}")

    def wait(self, seconds: float) -> str:
        """The next key, ``resize``, ``end``, or nothing when the time is over."""
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        if self._keyboard:
            poller.register(0, select.POLLIN)
        for fd, _ in poller.poll(seconds * 1000):
            if fd == self._woken:
                numbers = os.read(self._woken, 64)
                ending = [number for number in numbers if number != signal.SIGWINCH]
                self.ended = ending[0] if ending else 0
                return "end" if ending else "resize"
            typed = os.read(0, 64)
            if not typed:  # hung up
                self._keyboard = False
            return typed[:1].decode("ascii", "replace").lower()
        return ""


def is_terminal() -> bool:
    """Whether there is one to draw on."""
    return sys.stdout.isatty()
