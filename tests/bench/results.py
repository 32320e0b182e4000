"""What was measured, and its statistics: samples by operation, by runtime and by turn."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.bench.operations import Operation, operation

T = TypeVar("T")

_SCALE = {"ms": 1000.0, "s": 1.0}


@dataclass(frozen=True)
class Column:
    """A runtime in the results. `kind` tells ours apart; it is "" for a peer."""

    name: str
    kind: str = ""


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile of values that are not empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def in_unit(seconds: float, row: Operation) -> float:
    """Seconds in the unit of a row of times."""
    return seconds * _SCALE[row.unit]


def share(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The median of each turn of ours divided by each of theirs; None with nothing to divide by.

    That is the estimate of Hodges and Lehmann for two samples, as a factor. It minds single turns
    as little as the quotient of the medians, and varies less from one run to another:
    docs/performance.md.
    """
    quotients = [mine / other for mine in ours for other in theirs if other]
    return statistics.median(quotients) if quotients else None


class Results:
    """Samples in the order of their first coming; may be added to by several threads.

    What was measured of a runtime in one of its turns is a block of samples.
    """

    def __init__(self) -> None:
        self._blocks: dict[Operation, dict[Column, list[list[float]]]] = {}
        self._facts: dict[Operation, dict[Column, str]] = {}
        self.stages: dict[str, dict[str, list[float]]] = {}  # operation -> stage -> ms
        self._lock = threading.Lock()

    def add(self, row: Operation, column: Column, *values: float) -> None:
        """Add a turn's samples, in the operation's unit."""
        with self._lock:
            self._blocks.setdefault(row, {}).setdefault(column, []).append(list(values))

    def say(self, row: Operation, column: Column, text: str) -> None:
        """Note something that is no number."""
        self._facts.setdefault(row, {})[column] = text

    def add_stages(self, timings: dict[str, dict[str, int]]) -> None:
        """Add what ours says of its stages, in ns."""
        for name, stages in timings.items():
            for stage, ns in stages.items():
                found = self.stages.setdefault(name, {})
                found.setdefault(stage, []).append(ns / 1e6)

    def timed(
        self, group: str, title: str, column: Column, call: Callable[[], T], times: int = 1
    ) -> T:
        """Call so often, at least once, and add the times that it took; returns the last answer."""
        row = operation(group, title)
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            answer = call()
            seconds.append(time.perf_counter() - began)
        self.add(row, column, *(in_unit(each, row) for each in seconds))
        return answer

    def rows(self, group: str) -> list[Operation]:
        """The operations of a group that there is something of."""
        return [row for row in {**self._blocks, **self._facts} if row.group == group]

    def columns(self, group: str) -> list[Column]:
        """Who has been measured in a group, ours first."""
        found: dict[Column, None] = {}
        for row in self.rows(group):
            found |= dict.fromkeys([*self._blocks.get(row, ()), *self._facts.get(row, ())])
        return sorted(found, key=lambda column: not column.kind)

    def samples(self, row: Operation, column: Column) -> list[float]:
        """All samples of all turns."""
        return [value for block in self._of(row, column) for value in block]

    def turns(self, row: Operation, column: Column) -> list[float]:
        """The median of each turn."""
        return [statistics.median(block) for block in self._of(row, column)]

    def _of(self, row: Operation, column: Column) -> list[list[float]]:
        return self._blocks.get(row, {}).get(column, [])

    def fact(self, row: Operation, column: Column) -> str:
        return self._facts.get(row, {}).get(column, "")

    def ratio(self, row: Operation, column: Column) -> float | None:
        """One of ours as a share of the better peer; None without a peer's."""
        medians = {
            peer: median
            for peer in self._blocks.get(row, {})
            if not peer.kind and (median := statistics.median(self.samples(row, peer)))
        }
        if not medians:
            return None
        better = (max if row.is_rate else min)(medians, key=medians.__getitem__)
        return share(self.turns(row, column), self.turns(row, better))

    def as_json(self) -> list[dict[str, Any]]:
        """Everything, for a machine."""
        return [
            {
                "group": row.group,
                "operation": row.title,
                "unit": row.unit,
                "runtime": column.name,
                "samples": (values := self.samples(row, column)),
                "turns": self.turns(row, column),
                "median": statistics.median(values),
                "p95": percentile(values, 0.95),
                **({"ratio": self.ratio(row, column)} if column.kind else {}),
                **({"aim": row.aims[column.kind]} if column.kind in row.aims else {}),
            }
            for row, columns in self._blocks.items()
            for column in columns
        ]
