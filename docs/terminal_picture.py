"""Draws what a terminal showed as an SVG picture, for the README.

tmux capture-pane -e -p | python docs/terminal_picture.py "title" >docs/top.svg
"""

from __future__ import annotations

import re
import sys
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _SIZE = 8.4, 19, 14
_MARGIN, _BAR = 14, 30
_GROUND, _TEXT, _DIM = "#1d1f27", "#d8dae0", "#8a8f9d"
_COLOURS = {31: "#ff6b6b", 32: "#7ed491", 33: "#f0c674", 36: "#7fc8d8"}
_CODE = re.compile(r"\x1b\[([0-9;]*)m")


def _runs(line: str) -> list[tuple[str, frozenset[int]]]:
    """Pieces of a line, each with the attributes that are on."""
    found, at, on = [], 0, frozenset[int]()
    for match in _CODE.finditer(line):
        if match.start() > at:
            found.append((line[at : match.start()], on))
        for code in (int(each or 0) for each in match[1].split(";")):
            if code == 0:
                on = frozenset()
            elif code in (22, 27, 39):
                gone = {22: {1, 2}, 27: {7}, 39: set(_COLOURS)}[code]
                on = on - gone
            else:
                on = on | {code}
        at = match.end()
    if line[at:]:
        found.append((line[at:], on))
    return found


def picture(text: str, title: str) -> str:
    """The SVG of lines with the usual escape sequences for colours."""
    lines = [_runs(line) for line in text.rstrip("\n").splitlines()]
    columns = max(sum(len(piece) for piece, _ in line) for line in lines)
    width = columns * _WIDTH + 2 * _MARGIN
    height = len(lines) * _HEIGHT + 2 * _MARGIN + _BAR
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}" role="img" aria-label="{escape(title)}">',
        f'<rect width="100%" height="100%" rx="8" fill="{_GROUND}"/>',
        *(
            f'<circle cx="{_MARGIN + 6 + 20 * n}" cy="{_BAR / 2 + 3}" r="6" fill="{colour}"/>'
            for n, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f'<g font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" '
        f'font-size="{_SIZE}" xml:space="preserve">',
        f'<text x="{width / 2:.0f}" y="{_BAR / 2 + 8}" text-anchor="middle" fill="{_DIM}">'
        f"{escape(title)}</text>",
    ]
    for row, line in enumerate(lines):
        y, column = _BAR + _MARGIN + row * _HEIGHT, 0
        for piece, on in line:
            x, length = _MARGIN + column * _WIDTH, len(piece) * _WIDTH
            column += len(piece)
            colour = next((_COLOURS[c] for c in on if c in _COLOURS), _DIM if 2 in on else _TEXT)
            if 7 in on:
                out.append(
                    f'<rect x="{x:.1f}" y="{y - 1}" width="{length:.1f}" height="{_HEIGHT}" '
                    f'fill="{_TEXT}"/>'
                )
                colour = _GROUND
            weight = ' font-weight="bold"' if 1 in on else ""
            # Word by word, so that columns stand whatever the font; blocks are drawn as such.
            for match in re.finditer(r"█+|─+|[^\s█─]+(?: [^\s█─]+)*", piece):
                left, count = x + match.start() * _WIDTH, match.end() - match.start()
                if match[0][0] in "█─":
                    top, tall = (y + 2, _HEIGHT - 5) if match[0][0] == "█" else (y + 8, 1)
                    out.append(
                        f'<rect x="{left:.1f}" y="{top}" width="{count * _WIDTH:.1f}" '
                        f'height="{tall}" fill="{colour}"/>'
                    )
                    continue
                out.append(
                    f'<text x="{left:.1f}" y="{y + 14}" fill="{colour}"{weight} '
                    f'textLength="{count * _WIDTH:.1f}">{escape(match[0])}</text>'
                )
    out += ["</g>", "</svg>"]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.stdout.write(picture(sys.stdin.read(), sys.argv[1] if len(sys.argv) > 1 else "terminal"))
