"""Work that several may wait for: done once, and ended only when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Flight:
    """One piece of work in progress."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.waiters = 0


class Seat(Generic[T]):
    """A place in a flight, taken at once; `first` tells who began it. result() gives it back."""

    def __init__(self, flights: Flights, key: Hashable, flight: Flight, first: bool) -> None:
        self._flights = flights
        self._key = key
        self._flight = flight
        self._left = False
        self.first = first
        flight.waiters += 1

    async def result(self) -> T:
        """Wait for the work. Cancelling this wait ends the work only if nobody else waits."""
        try:
            result: T = await asyncio.shield(self._flight.task)
            return result
        finally:
            self.leave()

    def leave(self) -> None:
        """Give the place back; idempotent."""
        if self._left:
            return
        self._left = True
        self._flight.waiters -= 1
        if self._flight.waiters == 0 and not self._flight.task.done():
            self._flights.cancel(self._key, self._flight)

    async def close(self) -> None:
        """Give the place back, and wait until the work has ended if nobody else waits for it."""
        self.leave()
        if self._flight.waiters == 0:
            await asyncio.wait((self._flight.task,))


class Flights:
    """The work in progress, by key."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def enter(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> Seat[T]:
        """Join the work `key`, or begin it; the caller awaits the seat's result, or leaves it."""
        flight = self._flights.get(key)
        if flight is not None:
            return Seat(self, key, flight, first=False)
        flight = Flight(asyncio.create_task(start()))
        self._flights[key] = flight
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._landed(key, flight, task))
        return Seat(self, key, flight, first=True)

    def join(self, key: Hashable) -> Seat[Any] | None:
        """Join the work `key` if there is any."""
        flight = self._flights.get(key)
        return None if flight is None else Seat(self, key, flight, first=False)

    def cancel(self, key: Hashable, flight: Flight) -> None:
        """End work that nobody waits for; whoever comes next begins anew."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.task.cancel()

    def _landed(self, key: Hashable, flight: Flight, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; asyncio shall not warn if nobody did

    async def close(self) -> None:
        """Cancel everything and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
