"""No operation asks more of the kernel than tests/bench/budget.toml allows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from tests.bench import budget
from tests.bench.operations import BUILTIN
from tests.bench.runtimes import Criserver
from tests.bench.shapes import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "registry")
    yield made
    made.close()


@pytest.fixture
def ours(shelf: Shelf) -> Iterator[Criserver]:
    made = Criserver(BUILTIN, shelf.registry, cri.POD)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_no_operation_exceeds_its_budget(
    ours: Criserver, shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, allowed = budget.measure(ours, shelf, tmp_path), budget.read()
    below = budget.well_under(counts, allowed)
    if below:
        with capsys.disabled():
            print("\ntests/bench/budget.toml can be lowered, by hack/bench --budget write:")
            print("\n".join(f"  {line}" for line in below))
    assert budget.exceeded(counts, allowed) == [], "\n" + "\n".join(budget.table(counts))
