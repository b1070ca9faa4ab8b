"""Parts of documents that are written by programs, each between two marks of its own."""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Part:
    """What stands between ``begin`` and ``end``, lines that occur once."""

    def __init__(self, document: str, begin: str, end: str) -> None:
        self.path = os.path.join(ROOT, document)
        self.begin, self.end = begin, end

    def current(self, text: str) -> str:
        """What stands there now."""
        return text.split(self.begin)[1].split(self.end)[0].strip()

    def main(self, wanted: str) -> None:
        """Print ``wanted``; with --write, put it in place of what stands there."""
        if "--write" not in sys.argv:
            print(wanted)
            return
        with open(self.path, encoding="utf-8") as source:
            head, rest = source.read().split(self.begin)
        tail = rest.split(self.end)[1]
        with open(self.path, "w", encoding="utf-8") as target:
            target.write(f"{head}{self.begin}\n{wanted}\n{self.end}{tail}")
