"""Shared work: done once, and ended only when nobody waits."""

from __future__ import annotations

import asyncio

import pytest

from imageservice.flights import Flights


class Work:
    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.runs


async def step() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_work_is_done_once_for_all_who_wait() -> None:
    flights, work = Flights(), Work()
    seats = [flights.enter("key", work) for _ in range(3)]
    assert [seat.first for seat in seats] == [True, False, False]
    waiting = [asyncio.create_task(seat.result()) for seat in seats]
    await step()
    work.go.set()
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    assert flights.join("key") is None


async def test_work_outlives_one_who_leaves() -> None:
    flights, work = Flights(), Work()
    first = asyncio.create_task(flights.enter("key", work).result())
    second = asyncio.create_task(flights.enter("key", work).result())
    await step()
    first.cancel()
    await step()
    work.go.set()
    assert await second == 1
    assert (work.runs, work.cancelled) == (1, 0)


async def test_work_ends_with_the_last_who_waits_and_begins_anew() -> None:
    flights, work = Flights(), Work()
    waiting = [asyncio.create_task(flights.enter("key", work).result()) for _ in range(2)]
    await step()
    for task in waiting:
        task.cancel()
    await step()
    assert work.cancelled == 1
    again = flights.enter("key", work)
    assert again.first
    work.go.set()
    assert await again.result() == 2


async def test_a_seat_that_is_left_unused_ends_the_work() -> None:
    flights, work = Flights(), Work()
    seat = flights.enter("key", work)
    await step()
    seat.leave()
    seat.leave()
    await step()
    assert work.cancelled == 1


async def test_closing_the_last_seat_waits_for_the_end_of_the_work() -> None:
    flights, work = Flights(), Work()
    first, second = (flights.enter("key", work) for _ in range(2))
    await step()
    await first.close()
    assert work.cancelled == 0
    await second.close()
    assert work.cancelled == 1


async def test_everyone_gets_the_error() -> None:
    async def fail() -> None:
        raise ValueError("no")

    flights = Flights()
    for seat in [flights.enter("key", fail) for _ in range(2)]:
        with pytest.raises(ValueError, match="no"):
            await seat.result()


async def test_close_waits_for_the_end() -> None:
    flights, work = Flights(), Work()
    seat = flights.enter("key", work)
    await step()
    await flights.close()
    assert work.cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await seat.result()
