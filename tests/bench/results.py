"""What was measured, and its statistics: samples by operation and by runtime."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
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


class Results:
    """Samples in the order of their first coming; may be added to by several threads."""

    def __init__(self) -> None:
        self._samples: dict[Operation, dict[Column, list[float]]] = {}
        self._facts: dict[Operation, dict[Column, str]] = {}
        self.stages: dict[str, dict[str, list[float]]] = {}  # operation -> stage -> ms
        self._lock = threading.Lock()

    def add(self, row: Operation, column: Column, value: float) -> None:
        """Add a sample, in the operation's unit."""
        with self._lock:
            self._samples.setdefault(row, {}).setdefault(column, []).append(value)

    def say(self, row: Operation, column: Column, text: str) -> None:
        """Note something that is no number."""
        self._facts.setdefault(row, {})[column] = text

    def add_stages(self, timings: dict[str, dict[str, int]]) -> None:
        """Add what ours says of its stages, in ns."""
        for name, stages in timings.items():
            for stage, ns in stages.items():
                found = self.stages.setdefault(name, {})
                found.setdefault(stage, []).append(ns / 1e6)

    def timed(self, group: str, title: str, column: Column, call: Callable[[], T]) -> T:
        """Call, and add the time that it took."""
        row = operation(group, title)
        began = time.perf_counter()
        answer = call()
        self.add(row, column, (time.perf_counter() - began) * _SCALE[row.unit])
        return answer

    def rows(self, group: str) -> list[Operation]:
        """The operations of a group that there is something of."""
        return [row for row in {**self._samples, **self._facts} if row.group == group]

    def columns(self, group: str) -> list[Column]:
        """Who has been measured in a group, ours first."""
        found: dict[Column, None] = {}
        for row in self.rows(group):
            found |= dict.fromkeys([*self._samples.get(row, ()), *self._facts.get(row, ())])
        return sorted(found, key=lambda column: not column.kind)

    def samples(self, row: Operation, column: Column) -> list[float]:
        return self._samples.get(row, {}).get(column, [])

    def fact(self, row: Operation, column: Column) -> str:
        return self._facts.get(row, {}).get(column, "")

    def median(self, row: Operation, column: Column) -> float | None:
        values = self.samples(row, column)
        return statistics.median(values) if values else None

    def ratio(self, row: Operation, column: Column) -> float | None:
        """The median of one of ours as a share of the better peer's; None without a peer's."""
        ours = self.median(row, column)
        theirs = [
            median
            for peer in self._samples.get(row, {})
            if not peer.kind and (median := self.median(row, peer))
        ]
        if ours is None or not theirs:
            return None
        return ours / (max(theirs) if row.is_rate else min(theirs))

    def as_json(self) -> list[dict[str, Any]]:
        """Everything, for a machine."""
        return [
            {
                "group": row.group,
                "operation": row.title,
                "unit": row.unit,
                "runtime": column.name,
                "samples": values,
                "median": statistics.median(values),
                "p95": percentile(values, 0.95),
                **({"ratio": self.ratio(row, column)} if column.kind else {}),
                **({"aim": row.aims[column.kind]} if column.kind in row.aims else {}),
            }
            for row, columns in self._samples.items()
            for column, values in columns.items()
        ]
