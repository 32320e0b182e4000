"""Two runs of the benchmark side by side: how far their ratios are from each other."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.operations import GROUPS
from tests.bench.report import aligned

ALLOWED = 15.0  # %
# The tables give two digits: a ratio of less than this is nothing.
LEAST = 0.01


@dataclass(frozen=True, order=True)
class Row:
    """An operation of one of ours."""

    group: str
    operation: str
    runtime: str


@dataclass(frozen=True)
class Pair:
    """The ratio of the same row in two runs."""

    row: Row
    first: float
    second: float

    @property
    def difference(self) -> float:
        """How far the second is from the first, in % of it."""
        return (self.second - self.first) / max(self.first, LEAST) * 100

    @property
    def is_above(self) -> bool:
        return abs(self.difference) > ALLOWED


def read(file: Path) -> dict[Row, float]:
    """The ratios that a run has written with --json.

    Raises OSError, and ValueError for a file that holds something else.
    """
    try:
        return dict(_ratios(json.loads(file.read_bytes())))
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{file}: no results of hack/bench --json: {err!r}") from err


def _ratios(described: Mapping[str, Any]) -> Iterator[tuple[Row, float]]:
    for found in described["results"]:
        if (ratio := found.get("ratio")) is not None:
            yield Row(found["group"], found["operation"], found["runtime"]), float(ratio)


def pairs(first: Mapping[Row, float], second: Mapping[Row, float]) -> list[Pair]:
    """What both have, in the first's order."""
    return [Pair(row, ratio, second[row]) for row, ratio in first.items() if row in second]


def lines(first: Mapping[Row, float], second: Mapping[Row, float]) -> Iterator[str]:
    """Yield a table of all rows, what only one of the runs has, and a table of the groups."""
    found = pairs(first, second)
    yield from aligned([_HEAD, *map(_cells, found)])
    for name, here, there in (("first", first, second), ("second", second, first)):
        for row in sorted(here.keys() - there.keys()):
            yield f"only in the {name}: {row.group}: {row.operation}, {row.runtime}"
    yield ""
    yield from aligned([_SUMMARY, *_summary(found)])


_HEAD = ["group", "operation", "of", "first", "second", "difference", f"above {ALLOWED:g} %"]
_SUMMARY = ["group", "rows", "median", "most", f"above {ALLOWED:g} %"]


def _cells(pair: Pair) -> list[str]:
    row = pair.row
    ratios = [f"{pair.first:.3f}", f"{pair.second:.3f}"]
    mark = "above" if pair.is_above else ""
    return [row.group, row.operation, row.runtime, *ratios, f"{pair.difference:+.1f} %", mark]


def _summary(found: Iterable[Pair]) -> Iterator[list[str]]:
    by_group: dict[str, list[Pair]] = {}
    for pair in found:
        by_group.setdefault(pair.row.group, []).append(pair)
    for group in (name for name in GROUPS if name in by_group):
        yield [GROUPS[group], *_figures(by_group[group])]
    if everything := [pair for group in by_group.values() for pair in group]:
        yield ["all", *_figures(everything)]


def _figures(found: list[Pair]) -> list[str]:
    differences = [abs(pair.difference) for pair in found]
    median, most = statistics.median(differences), max(differences)
    above = sum(pair.is_above for pair in found)
    return [str(len(found)), f"{median:.1f} %", f"{most:.1f} %", str(above)]
