"""hack/bench's statistics and turns: what is compared with what, and when each is asked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import plan, results
from tests.bench.groups import density
from tests.bench.operations import operation
from tests.bench.plan import Bench, Plan
from tests.bench.results import Column, Results, share

OURS, PEER, SLOW_PEER = Column("ours", "built-in"), Column("peer"), Column("slow peer")
ROW = operation("lifecycle", "ContainerStatus")
RATE = operation("streaming", "SPDY, out")


class Clock:
    """Time that goes on by so much with each look, or when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float = 0.0) -> None:
        self.now, self._step = 0.0, step
        for module in (results, density):
            monkeypatch.setattr(module.time, "perf_counter", self.look)

    def look(self) -> float:
        self.now += self._step
        return self.now


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0], [4.0], 0.25),
        ([1.0, 2.0], [2.0], 0.75),
        ([1.0, 2.0, 90.0], [2.0], 1.0),
        ([1.0, 3.0], [2.0, 8.0], 0.4375),  # of 1/8, 3/8, 1/2 and 3/2
        ([0.0, 0.0], [3.0, 5.0], 0.0),
        ([1.0, 3.0], [0.0, 4.0], 0.5),  # nothing was measured of the peer in one turn
        ([1.0, 2.0], [0.0, 0.0], None),
        ([], [], None),
    ],
)
def test_a_share_is_the_median_of_all_quotients(
    ours: list[float], theirs: list[float], expected: float | None
) -> None:
    assert share(ours, theirs) == expected


def test_a_machine_that_is_slow_for_some_turns_changes_no_ratio() -> None:
    quiet, busy = Results(), Results()
    for turn in range(9):
        for found, slower in ((quiet, 1), (busy, 1 + turn % 4)):
            found.add(ROW, OURS, 1.0 * slower, 1.2 * slower, 1.4 * slower)
            found.add(ROW, PEER, 2.0 * slower, 2.4 * slower)
    assert quiet.ratio(ROW, OURS) == pytest.approx(1.2 / 2.2)
    assert busy.ratio(ROW, OURS) == pytest.approx(1.2 / 2.2)


def test_a_turn_counts_once_however_many_calls_it_had() -> None:
    found = Results()
    found.add(ROW, OURS, *[1.0] * 20)
    found.add(ROW, OURS, 3.0)
    found.add(ROW, OURS, 3.0)
    for _ in range(3):
        found.add(ROW, PEER, 1.0)
    assert found.samples(ROW, OURS) == [1.0] * 20 + [3.0, 3.0]
    assert found.turns(ROW, OURS) == [1.0, 3.0, 3.0]
    assert found.ratio(ROW, OURS) == 3.0


@pytest.mark.parametrize(("row", "expected"), [(ROW, 0.5), (RATE, 0.25)])
def test_the_better_peer_is_the_faster_one(row: Any, expected: float) -> None:
    found = Results()
    found.add(row, OURS, 1.0)
    found.add(row, PEER, 2.0)
    found.add(row, SLOW_PEER, 4.0)
    assert found.ratio(row, OURS) == expected
    assert found.ratio(row, Column("absent", "CNI")) is None


def test_what_no_peer_answers_has_no_ratio() -> None:
    found = Results()
    found.add(ROW, OURS, 1.0)
    found.say(ROW, PEER, "fails: UNIMPLEMENTED")
    assert found.ratio(ROW, OURS) is None


def test_a_call_is_timed_so_often_in_the_rows_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 0.25)
    found, answers = Results(), itertools.count()
    assert found.timed("lifecycle", "ContainerStatus", OURS, lambda: next(answers), 3) == 2
    assert found.samples(ROW, OURS) == [250.0] * 3
    assert found.turns(ROW, OURS) == [250.0]


def test_the_file_holds_samples_turns_and_ratios() -> None:
    found = Results()
    found.add(ROW, OURS, 1.0, 2.0)
    found.add(ROW, PEER, 3.0)
    ours, peer = json.loads(json.dumps(found.as_json()))
    assert (ours["samples"], ours["turns"], ours["ratio"]) == ([1.0, 2.0], [1.5], 0.5)
    assert (peer["samples"], peer["turns"], "ratio" in peer) == ([3.0], [3.0], False)


# -- turns ------------------------------------------------------------------------------------


class Runtime:
    """As much of a runtime as turns and questions look at."""

    client: Any = None

    def __init__(self, name: str, kind: str = "") -> None:
        self.name, self.kind, self.is_ours = name, kind, bool(kind)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(plan, "PAUSE_SECONDS", 0)
    runtimes: Any = [Runtime("A", "built-in"), Runtime("B", "CNI"), Runtime("C")]
    shelf: Any = None
    return Bench(runtimes, shelf, Results(), Plan(asked=9), Path("/nowhere"))


def test_turns_go_to_and_fro_and_the_first_only_warms_up(bench: Bench) -> None:
    taken = [
        (runtime.name, results is bench.results) for runtime, results in bench.turns("work", 2)
    ]
    assert taken == [
        *(("C", False), ("B", False), ("A", False)),
        *(("A", True), ("B", True), ("C", True)),
        *(("C", True), ("B", True), ("A", True)),
    ]


def test_what_takes_long_is_not_warmed_up(bench: Bench) -> None:
    rounds = list(bench.rounds("work", 2, warm_up=False))
    assert [results is bench.results for results, _ in rounds] == [True, True]


# -- questions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, density.BLOCK), (density.BLOCK_SECONDS / 3, 3), (18.0, 1)]
)
def test_a_block_is_so_many_calls_or_so_long(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int
) -> None:
    clock = Clock(monkeypatch)

    def call() -> None:
        clock.now += seconds

    assert len(density.block(call)) == expected


@pytest.mark.parametrize(("seconds", "turns"), [(0.001, 9), (0.04, 4), (18.0, 2)])
def test_a_question_is_asked_in_turns_until_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, seconds: float, turns: int
) -> None:
    for name, value in {"BLOCK": 20, "BLOCK_SECONDS": 1.0, "ASKING_SECONDS": 8.0}.items():
        monkeypatch.setattr(density, name, value)
    clock, asked = Clock(monkeypatch), []

    def call(name: str) -> None:
        asked.append(name)
        clock.now += seconds

    monkeypatch.setattr(density, "_call", lambda name, title: lambda: call(name))
    for runtime in bench.runtimes:
        runtime.client = runtime.name
    question = density.Question(bench, "ListContainerStats", 500)
    density.in_turns(bench, "asking", [question], warm_up=False)
    row = operation("density", "500 containers: ListContainerStats")
    for runtime in bench.runtimes:
        assert len(bench.results.turns(row, plan.column(runtime))) == turns
    order = [name for name, _ in itertools.groupby(asked)]
    assert order == (["A", "B", "C", "B"] * turns)[: len(order)]
