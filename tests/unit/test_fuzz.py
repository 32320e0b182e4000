"""A short run of each fuzz target, the same in every run; `python -m tests.fuzz` runs for long."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.__main__ import TARGETS, corpus
from tests.fuzz.targets import Target

RUNS = {
    "tar": 1500,
    "unpack": 150,
    "reference": 3000,
    "hosts": 300,
    "policy": 300,
    "request": 500,
    "pod": 1000,
    "cdi": 2000,
    "cdi-names": 2000,
    "pressure": 2000,
}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_a_fault(name: str) -> None:
    target = TARGETS[name]
    seeds = [*target.seeds, *corpus(name)]
    for data in seeds:
        target.run(data)
    source = random.Random(1)
    for _ in range(RUNS[name]):
        target.run(target.mutated(source, seeds))


def test_a_fault_would_be_seen() -> None:
    def fail(data: bytes) -> None:
        assert b".." not in data

    broken = Target(fail, TARGETS["reference"].seeds)
    source = random.Random(1)
    with pytest.raises(AssertionError):
        for _ in range(3000):
            broken.run(broken.mutated(source, broken.seeds))


@pytest.mark.parametrize("name", ["tar", "request"])
def test_the_same_seed_gives_the_same_inputs(name: str) -> None:
    target = TARGETS[name]

    def inputs() -> list[bytes]:
        source = random.Random(7)
        return [target.mutated(source, target.seeds) for _ in range(50)]

    assert inputs() == inputs()
    assert len(set(inputs())) > 40
