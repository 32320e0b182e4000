"""A short run of each fuzz target, the same in every run; `python -m tests.fuzz` runs for long."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.__main__ import TARGETS
from tests.fuzz.mutation import mutated
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
    for data in target.seeds:
        target.run(data)
    source = random.Random(1)
    for _ in range(RUNS[name]):
        target.run(mutated(source, target.seeds, blocks=name in ("tar", "unpack")))


def test_a_fault_would_be_seen() -> None:
    def fail(data: bytes) -> None:
        assert b".." not in data

    broken = Target(fail, TARGETS["reference"].seeds)
    source = random.Random(1)
    with pytest.raises(AssertionError):
        for _ in range(3000):
            broken.run(mutated(source, broken.seeds, blocks=False))


def test_the_same_seed_gives_the_same_inputs() -> None:
    def inputs() -> list[bytes]:
        source = random.Random(7)
        return [mutated(source, TARGETS["tar"].seeds, blocks=True) for _ in range(50)]

    assert inputs() == inputs()
    assert len(set(inputs())) == 50
