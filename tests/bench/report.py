"""The tables: Markdown that reads as well on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from tests.bench.operations import GROUPS, Operation
from tests.bench.results import Column, Results, percentile


def tables(results: Results, machine: str) -> Iterator[str]:
    """Yield the lines of all tables."""
    yield f"{machine}. Medians, in brackets the 95th percentile; ratios are to the better peer."
    for group, title in GROUPS.items():
        if rows := results.rows(group):
            yield ""
            yield f"**{title}**"
            yield ""
            yield from table(results, rows, results.columns(group))
    if results.stages:
        yield ""
        yield "**Stages of ours, built-in network** (crictl's verbose inspect and inspectp)"
        yield ""
        yield from stages(results)


def table(results: Results, rows: Sequence[Operation], columns: Sequence[Column]) -> Iterator[str]:
    """Yield a group's table: a column for each runtime, then one for each ratio of ours."""
    ours = [column for column in columns if column.kind]
    ratios = [f"ratio, {column.kind}" for column in ours]
    head = ["operation", *(column.name for column in columns), *ratios]
    lines = [head]
    for row in rows:
        cells = [cell(results, row, column) for column in columns]
        lines.append([row.title, *cells, *(ratio(results, row, column) for column in ours)])
    yield from aligned(lines)


def cell(results: Results, row: Operation, column: Column) -> str:
    values = results.samples(row, column)
    if not values:
        return results.fact(row, column) or "-"
    return f"{figure(median(values))} ({figure(percentile(values, 0.95))}) {row.unit}".rstrip()


def figure(value: float) -> str:
    """Three digits, as far as they are behind the point."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def ratio(results: Results, row: Operation, column: Column) -> str:
    """A ratio with its aim."""
    found = results.ratio(row, column)
    if found is None:
        return "-"
    aim = row.aims.get(column.kind)
    if aim is None:
        return f"{found:.2f}"
    sign = "≥" if row.is_rate else "≤"
    return f"{found:.2f} ({sign} {aim:g}{'' if row.reaches(found, aim) else ': missed'})"


def stages(results: Results) -> Iterator[str]:
    """Yield the table of our own stages."""
    lines = [["operation", "stage", "median, ms", "95 %, ms"]]
    for name, found in results.stages.items():
        for stage, values in found.items():
            figures = [f"{median(values):.2f}", f"{percentile(values, 0.95):.2f}"]
            lines.append([name, stage, *figures])
    yield from aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table whose columns have a common width."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    for number, line in enumerate(lines):
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        yield "| " + " | ".join(cells) + " |"
        if not number:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
