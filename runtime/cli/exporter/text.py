"""Prometheus' text format, version 0.0.4.  Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/: one HELP and one TYPE line for each
name, all lines of a name together, and no two lines with the same name and labels, or the whole
scrape is lost.
"""

from __future__ import annotations

from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Characters of a label's value that are written.
MAX_VALUE = 256
_CONTROL = {code: "?" for code in (*range(32), 127) if code != 10}
_HELP = {**_CONTROL, ord("\\"): "\\\\", ord("\n"): "\\n"}
_LABEL = {**_HELP, ord('"'): '\\"'}


def is_name(text: str, colons: bool = False) -> bool:
    """Whether this can be a label's name, or with ``colons`` a metric's."""
    plain = text.replace("_", "a")
    if colons:
        plain = plain.replace(":", "a")
    return plain.isascii() and plain.isalnum() and not plain[0].isdigit()


def _clean(text: str) -> str:
    return text[:MAX_VALUE].encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=8192)  # the same ones come with each scrape
def labels(**values: str) -> str:
    """Labels as they stand between the braces; those with an empty value are left out."""
    return render_labels(values)


def render_labels(values: Mapping[str, str]) -> str:
    """The same.  The names must be names."""
    return ",".join(
        f'{name}="{_clean(value).translate(_LABEL)}"' for name, value in values.items() if value
    )


def number(value: float) -> str:
    """A sample's value."""
    if isinstance(value, int):
        return str(int(value))  # of a bool as well
    if value - value != 0:
        return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
    return repr(value)


class Family:
    """All samples of one name."""

    __slots__ = ("_lines", "_seen", "help", "kind", "name")

    def __init__(self, name: str, kind: str, help: str) -> None:
        self.name, self.kind = name, kind
        self.help = help
        self._lines: list[str] = []
        self._seen: set[str] = set()

    def add(self, labels: str, value: float | None, suffix: str = "") -> bool:
        """A sample.  None is no sample; False if there is one with these labels already."""
        if value is None:
            return True
        key = f"{self.name}{suffix}{{{labels}}}" if labels else self.name + suffix
        if key in self._seen:
            return False
        self._seen.add(key)
        self._lines.append(f"{key} {number(value)}\n")
        return True

    def add_histogram(
        self, labels: str, bounds: list[float], counts: list[int], total: float
    ) -> None:
        """A histogram: how many fell below each bound and not below the one before, and above."""
        comma = "," if labels else ""
        seen = 0
        for bound, count in zip((*bounds, float("inf")), counts, strict=True):
            seen += count
            self.add(f'{labels}{comma}le="{number(float(bound))}"', seen, "_bucket")
        self.add(labels, total, "_sum")
        self.add(labels, seen, "_count")

    def include(self, part: Family) -> None:
        """The samples of another of this name, which has none with the labels of one here."""
        self._lines += part._lines

    def render(self) -> str:
        """Its lines; nothing without a sample."""
        if not self._lines:
            return ""
        text = _clean_help(self.help)
        head = f"# HELP {self.name} {text}\n# TYPE {self.name} {self.kind}\n"
        return head + "".join(self._lines)


def _clean_help(text: str) -> str:
    return _clean(" ".join(text.split()) or "No description.").translate(_HELP)


class Page:
    """The families of a scrape, in the order in which they were first wanted."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def family(self, name: str, kind: str, help: str) -> Family:
        """The family of that name; of no type if it is wanted with two.

        Histograms and others must not have a name in common.
        """
        found = self._families.get(name)
        if found is None:
            found = self._families[name] = Family(name, kind, help)
        elif found.kind != kind:
            found.kind = "untyped"
        return found

    def gauge(self, name: str, help: str) -> Family:
        """A name of our own, which has this type."""
        return self.family(name, "gauge", help)

    def counter(self, name: str, help: str) -> Family:
        """Likewise."""
        return self.family(name, "counter", help)

    def histogram(self, name: str, help: str) -> Family:
        """Likewise."""
        return self.family(name, "histogram", help)

    def include(self, part: Page) -> None:
        """The families of another page, whose samples have labels that none has here."""
        for each in part._families.values():
            self.family(each.name, each.kind, each.help).include(each)

    def render(self) -> str:
        """The page."""
        return "".join(family.render() for family in self._families.values())
