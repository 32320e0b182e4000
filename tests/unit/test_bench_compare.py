"""hack/bench --compare: two runs' ratios side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import __main__ as hack_bench
from tests.bench import compare
from tests.bench.compare import Row
from tests.bench.operations import operation
from tests.bench.results import Column, Results

OURS, PEER = Column("criserver, CNI", "CNI"), Column("containerd")
RUN, STOP = operation("lifecycle", "RunPodSandbox"), operation("density", "10 pods: StopPodSandbox")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, **ratios: float) -> Path:
        """A run's file, with these ratios of operations named by their first word."""
        results = Results()
        for word, ratio in ratios.items():
            row = {"run": RUN, "stop": STOP}[word]
            results.add(row, OURS, ratio)
            results.add(row, PEER, 1.0)
        file = tmp_path / name
        file.write_text(json.dumps({"results": results.as_json()}))
        return file

    return write


def rows(said: str) -> list[list[str]]:
    lines = [line for line in said.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_row_has_both_ratios_and_how_far_they_are_apart(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write("a", run=0.4, stop=0.5), write("b", run=0.45, stop=0.4)
    assert hack_bench.main(["--compare", *map(str, files)]) == 1
    found = rows(capsys.readouterr().out)
    run = ["lifecycle", "RunPodSandbox", "criserver, CNI", "0.400", "0.450", "+12.5 %", ""]
    stop = ["density", STOP.title, "criserver, CNI", "0.500", "0.400", "-20.0 %", "above"]
    assert run in found
    assert stop in found
    assert ["Beside many pods", "1", "20.0 %", "20.0 %", "1"] in found
    assert ["all", "2", "16.2 %", "20.0 %", "1"] in found


def test_runs_that_are_close_succeed(write: Write) -> None:
    files = write("a", run=0.40, stop=0.5), write("b", run=0.46, stop=0.43)
    assert hack_bench.main(["--compare", *map(str, files)]) == 0


@pytest.mark.parametrize(
    ("first", "second", "above"),
    [
        (1.0, 1.14, False),
        (1.0, 1.16, True),
        (1.0, 0.84, True),
        (0.0, 0.0, False),
        (0.001, 0.002, False),  # both are 0.00 in the tables
        (0.0, 0.1, True),
    ],
)
def test_what_is_further_than_that_is_above(first: float, second: float, above: bool) -> None:
    row = Row("density", "10 pods: processor time, shims and pauses idle", "criserver, CNI")
    (pair,) = compare.pairs({row: first}, {row: second})
    assert pair.is_above is above


def test_what_only_one_run_has_is_told(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    files = write("a", run=0.4), write("b", run=0.4, stop=0.5)
    assert hack_bench.main(["--compare", *map(str, files)]) == 0
    said = capsys.readouterr().out
    assert "only in the second: density: 10 pods: StopPodSandbox, criserver, CNI" in said


@pytest.mark.parametrize("content", ["", "[]", '{"results": [{"ratio": 1}]}'])
def test_a_file_of_something_else_is_refused_by_name(
    write: Write, tmp_path: Path, content: str
) -> None:
    other = tmp_path / "other"
    other.write_text(content)
    with pytest.raises(SystemExit, match=f"{other}: no results"):
        hack_bench.main(["--compare", str(write("a", run=1.0)), str(other)])
