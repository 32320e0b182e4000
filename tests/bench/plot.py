"""The ratios as a picture: a bar for each operation, and a mark where it is aimed at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from tests.bench.operations import GROUPS, Operation
from tests.bench.results import Column, Results

matplotlib.use("Agg")  # no display

from matplotlib import pyplot

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd")
MISSED = "#d62728"
ROW_INCHES = 0.28
WIDTH_INCHES = 10.0
BAR = 0.8  # of a row

Entry = tuple[Operation, dict[Column, float]]


def draw(results: Results, files: Sequence[Path], machine: str) -> None:
    """Draw what has a ratio; the end of a file's name says which kind of picture it is.

    Raises ValueError for a kind that matplotlib does not know.
    """
    entries = [entry for group in GROUPS for entry in _entries(results, group)]
    kinds = list(dict.fromkeys(column for _, ratios in entries for column in ratios))
    height = 1.8 + ROW_INCHES * len(entries)
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, height), layout="constrained")
    for number, column in enumerate(kinds):
        _bars(axes, entries, column, COLOURS[number % len(COLOURS)])
    _aims(axes, entries)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(entries)), [f"{row.title}  [{row.group}]" for row, _ in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_xlabel("ours / better peer: left of 1 is less time or memory (MB/s: right)")
    axes.set_title(f"criserver beside its peers\n{machine}", fontsize=9)
    if kinds:
        axes.legend(loc="lower right", fontsize=8)
    for file in files:
        figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _entries(results: Results, group: str) -> list[Entry]:
    found = []
    for row in results.rows(group):
        ours = [column for column in results.columns(group) if column.kind]
        ratios = {c: ratio for c in ours if (ratio := results.ratio(row, c))}
        if ratios:
            found.append((row, ratios))
    return found


def _bars(axes: pyplot.Axes, entries: Sequence[Entry], column: Column, colour: str) -> None:
    rows, widths = [], []
    for number, (_, ratios) in enumerate(entries):
        if column in ratios:
            place = (list(ratios).index(column) + 0.5) / len(ratios) - 0.5
            rows.append(number + BAR * place)
            widths.append(ratios[column])
    axes.barh(rows, [width - 1 for width in widths], BAR / 2.2, 1, color=colour, label=column.name)


def _aims(axes: pyplot.Axes, entries: Sequence[Entry]) -> None:
    """A line across each bar at its aim, red where it is missed."""
    for number, (row, ratios) in enumerate(entries):
        for index, (column, ratio) in enumerate(ratios.items()):
            if (aim := row.aims.get(column.kind)) is None:
                continue
            centre = number + BAR * ((index + 0.5) / len(ratios) - 0.5)
            colour = "black" if row.reaches(ratio, aim) else MISSED
            half = BAR / len(ratios) / 2
            axes.plot([aim, aim], [centre - half, centre + half], color=colour, linewidth=2)
