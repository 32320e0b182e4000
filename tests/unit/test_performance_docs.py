"""docs/performance.md: the counts in it are the budget's, and its prose fits a page."""

from __future__ import annotations

from pathlib import Path

from tests.bench import budget, compare
from tests.bench.counts import COUNTED

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/performance.md").read_text()
COLUMNS = 104


def test_what_operations_ask_of_the_kernel_is_the_budget() -> None:
    section = DOCUMENT.split("## What operations ask of the kernel\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert head == ["operation", *COUNTED]
    documented = {
        name: dict(zip(COUNTED, map(int, numbers), strict=True)) for name, *numbers in rows
    }
    assert documented == budget.read()


def test_prose_fits_the_columns() -> None:
    lines = enumerate(DOCUMENT.splitlines(), 1)
    assert [n for n, line in lines if len(line) > COLUMNS and not line.startswith("|")] == []


def test_the_page_says_how_far_two_runs_may_be_apart() -> None:
    assert f"more than {compare.ALLOWED:g} %" in DOCUMENT.split("\n## ")[1]
