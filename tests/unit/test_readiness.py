"""RuntimeReady: what is looked at, and what is said of it and when."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from criserver.operations import DEADLINE
from criserver.readiness import RuntimeReadiness
from criserver.store.database import open_database
from runtimeshim.client import SpawnerError


class Spawner:
    """One that answers, or not; `given` is the time that it was given."""

    def __init__(self) -> None:
        self.fault = ""
        self.given = 0.0

    async def check(self, timeout: float) -> None:
        self.given = timeout
        if self.fault:
            raise SpawnerError(self.fault)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = open_database(tmp_path)
    yield made
    made.close()


@pytest.fixture
def spawner() -> Spawner:
    return Spawner()


@pytest.fixture
def readiness(connection: sqlite3.Connection, spawner: Spawner) -> RuntimeReadiness:
    return RuntimeReadiness(spawner, connection)  # type: ignore[arg-type]


async def test_all_is_well(readiness: RuntimeReadiness) -> None:
    found = await readiness.condition()
    assert (found.type, found.status, found.reason, found.message) == ("RuntimeReady", True, "", "")


async def test_a_read_only_database(
    readiness: RuntimeReadiness, connection: sqlite3.Connection
) -> None:
    connection.execute("PRAGMA query_only=ON")
    found = await readiness.condition()
    assert (found.status, found.reason) == (False, "DatabaseNotWritable")
    assert found.message == ("the database cannot be written: attempt to write a readonly database")
    connection.execute("PRAGMA query_only=OFF")
    assert (await readiness.condition()).status


async def test_the_spawner(readiness: RuntimeReadiness, spawner: Spawner) -> None:
    spawner.fault = "the spawner is away"
    found = await readiness.condition()
    assert (found.status, found.reason) == (False, "SpawnerNotReady")
    assert found.message == "the spawner is away"


async def test_the_spawner_has_no_longer_than_the_caller(
    readiness: RuntimeReadiness, spawner: Spawner
) -> None:
    await readiness.condition()
    assert spawner.given == 10.0
    DEADLINE.set(asyncio.get_running_loop().time() + 1.0)
    await readiness.condition()
    assert 0 < spawner.given <= 1.0


async def test_a_change_is_logged_once(
    readiness: RuntimeReadiness, spawner: Spawner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for fault in ("", "gone", "gone", "", ""):
        spawner.fault = fault
        await readiness.condition()
    assert [record.getMessage() for record in caplog.records] == [
        "the runtime is not ready: gone",
        "the runtime is ready again",
    ]
