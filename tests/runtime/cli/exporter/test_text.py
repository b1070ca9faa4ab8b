"""Prometheus' text format: what it escapes, what it forbids."""

from __future__ import annotations

import math

import pytest

from runtime.cli.exporter.text import Page, is_name, labels, number


def test_labels_are_escaped() -> None:
    assert labels(a='x"y\\z\nw') == r'a="x\"y\\z\nw"'
    assert labels(a="", b="ü") == 'b="ü"'
    # A byte that ends the text for some readers, and one that isn't UTF-8.
    assert labels(a="x\0\r\x7f", b="\udcff") == 'a="x???",b="?"'
    assert len(labels(a="x" * 10_000)) < 300


def test_help_is_one_line() -> None:
    page = Page()
    page.gauge("a", 'back\\slash\n"quote"\t\0').add("", 1)
    assert page.render() == '# HELP a back\\\\slash "quote" ?\n# TYPE a gauge\na 1\n'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((True, "1"), (0, "0"), (2**63, "9223372036854775808"), (0.5, "0.5"), (1e300, "1e+300")),
        *((math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_no_sample_comes_twice_and_no_family_in_two_places() -> None:
    page = Page()
    first = page.counter("a_total", "A.")
    page.gauge("b", "B.").add('x="1"', 1)
    assert first.add('x="1"', 1) and not first.add('x="1"', 2)
    assert page.counter("a_total", "other").add('x="2"', None)
    assert page.counter("a_total", "other").add('x="2"', 3)
    page.gauge("empty", "Nothing.")
    assert page.render() == (
        '# HELP a_total A.\n# TYPE a_total counter\na_total{x="1"} 1\na_total{x="2"} 3\n'
        '# HELP b B.\n# TYPE b gauge\nb{x="1"} 1\n'
    )


def test_histograms_are_cumulative() -> None:
    page = Page()
    page.histogram("h", "H.").add_histogram('x="1"', [0.1, 1.0], [1, 0, 2], 7.5)
    assert page.render().splitlines()[2:] == [
        *('h_bucket{x="1",le="0.1"} 1', 'h_bucket{x="1",le="1.0"} 1'),
        *('h_bucket{x="1",le="+Inf"} 3', 'h_sum{x="1"} 7.5', 'h_count{x="1"} 3'),
    ]


@pytest.mark.parametrize("name", ["", "1a", "a-b", "ä", "a b", "a:b", "__a{"])
def test_no_names(name: str) -> None:
    assert not name or not is_name(name)
    assert is_name("_a1_B")
