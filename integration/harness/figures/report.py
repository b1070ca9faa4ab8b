"""Samples of several runtimes: medians, ratios, a table, and whether budgets are kept."""

from __future__ import annotations

import statistics
from typing import NamedTuple

#: label -> measure -> values
Samples = dict[str, dict[str, list[float]]]
_MIB = 1 << 20


class Budget(NamedTuple):
    """What a measure may be: a share of what another runtime takes in the same run, or a figure.

    A ratio holds on a machine of any speed, and whatever else it does; a figure is for what does
    not depend on that, such as memory (in bytes) and counts.
    """

    measure: str
    ratio: float = 0.0
    figure: float = 0.0


def keep(samples: Samples, label: str, found: dict[str, float]) -> None:
    """Add one value of each measure."""
    for name, value in found.items():
        samples.setdefault(label, {}).setdefault(name, []).append(value)


def medians(samples: Samples) -> dict[str, dict[str, float]]:
    return {
        label: {name: statistics.median(values) for name, values in table.items()}
        for label, table in samples.items()
    }


def table(samples: Samples) -> list[str]:
    """A line for each measure: every runtime's median, and the first one's share of the others."""
    middle = medians(samples)
    labels = [*samples]
    names = list(dict.fromkeys(name for found in samples.values() for name in found))
    width = max(map(len, names), default=0) + 2
    head = f"{'':{width}}" + "".join(f"{label:>14}" for label in labels)
    lines = [head + "".join(f"{'/ ' + label:>12}" for label in labels[1:])]
    for name in names:
        values = [middle[label].get(name) for label in labels]
        line = f"{name:{width}}" + "".join(f"{_shown(name, value):>14}" for value in values)
        first = values[0]
        for value in values[1:]:
            line += f"{first / value:12.2f}" if first is not None and value else f"{'':12}"
        lines.append(line.rstrip())
    return lines


def exceeded(
    samples: Samples, label: str, other: str, budgets: tuple[Budget, ...]
) -> tuple[list[str], int]:
    """A line for each budget that `label` doesn't keep, and how many could be judged."""
    middle = medians(samples)
    found, judged = [], 0
    for budget in budgets:
        value = middle.get(label, {}).get(budget.measure)
        base = middle.get(other, {}).get(budget.measure)
        if value is None or (budget.ratio and not base):
            continue
        judged += 1
        if budget.figure and value > budget.figure:
            allowed = _shown(budget.measure, budget.figure)
            found.append(f"{budget.measure}: {_shown(budget.measure, value)}, budget {allowed}")
        if budget.ratio and base and value / base > budget.ratio:
            found.append(
                f"{budget.measure}: {value / base:.2f} of {other}'s, budget {budget.ratio:.2f}"
            )
    return found, judged


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if "PSS" in name:
        return f"{value / _MIB:.1f} MiB"
    if "idle" in name:
        return f"{value:.1f}"
    return f"{value * 1000:.1f} ms"
