"""Operations that outlive the RPC that started them.

A sandbox or container has at most one operation in flight. A retry of the same operation joins it;
another operation waits for its turn. A caller's deadline, or its disappearance, ends the wait and
never the work: the error names the stage and how long the operation has been in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from api.errors import DeadlineExceededError, UnavailableError
from api.stages import Stages, record
from criserver import logs

T = TypeVar("T")

log = logging.getLogger(__name__)

# The loop time at which the current RPC has to be answered; None without a deadline.
DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)


class Operation:
    """One piece of work on one object."""

    def __init__(self, key: str, name: str, detail: str = "") -> None:
        self.key = key
        self.name = name
        self.detail = detail
        self.stages = Stages(name, key)
        self.waiters = 0
        self.forgotten = False
        self.task: asyncio.Task[Any]

    def where(self) -> str:
        """Say what the operation is doing, for a person."""
        current = self.stages.current()
        place = f"in stage {current[0]!r} for {current[1]:.1f} s" if current else "about to end"
        return f"{self.name} of {self.key} is {place}, {self.stages.elapsed():.1f} s in all"


class Queued(NamedTuple):
    """An operation that waits for its turn: `since` in monotonic ns."""

    key: str
    name: str
    since: int
    behind: Operation


class Operations:
    """The operations in flight, and the stage timings of the last ones of each object."""

    def __init__(self) -> None:
        self._current: dict[str, Operation] = {}
        self._timings: dict[str, dict[str, dict[str, int]]] = {}
        self._unclaimed: set[str] = set()
        self._queue: dict[int, Queued] = {}

    async def run(
        self,
        key: str,
        name: str,
        work: Callable[[], Awaitable[T]],
        *,
        joined: Callable[[], None] = lambda: None,
        detail: str = "",
    ) -> T:
        """Run `work` as operation `name` on the object `key`, or join the one that is in flight.

        Only what has the same `detail` is joined: it tells operations apart that would not do the
        same. `joined` is called when one is, before the wait. Raises what the work raises, or
        DeadlineExceededError when the caller's deadline comes first.
        """
        wanted = (name, detail)
        while (operation := self._current.get(key)) is not None and wanted != (
            operation.name,
            operation.detail,
        ):
            with self._queued(key, name, operation):
                await self._finished(operation)
        if operation is None:
            operation = self._begin(key, name, work, detail)
        else:
            joined()
        result: T = await self._result(operation)
        return result

    def in_flight(self, key: str, name: str) -> bool:
        """Tell whether operation `name` is under way on the object."""
        operation = self._current.get(key)
        return operation is not None and operation.name == name

    def is_busy(self, key: str) -> bool:
        """Tell whether anything is being done to the object."""
        return key in self._current

    def where(self, key: str) -> str:
        """Say what is being done to the object, for a person; empty if nothing is."""
        operation = self._current.get(key)
        return operation.where() if operation else ""

    @contextlib.contextmanager
    def _queued(self, key: str, name: str, behind: Operation) -> Iterator[None]:
        queued = Queued(key, name, time.monotonic_ns(), behind)
        self._queue[id(queued)] = queued
        try:
            yield
        finally:
            del self._queue[id(queued)]

    def queue(self, key: str) -> list[Queued]:
        """Return what waits until another operation on the object has ended."""
        return [queued for queued in self._queue.values() if queued.key == key]

    def under_way(self) -> list[str]:
        """Say what is being done to all objects, for a person."""
        return [operation.where() for operation in self._current.values()]

    def offer(self, key: str) -> None:
        """Let a retry take an object, whose making may not have been answered before a crash."""
        self._unclaimed.add(key)

    def claim(self, key: str) -> bool:
        """Take the finished result that nobody waited for; False if there is none."""
        unclaimed = key in self._unclaimed
        self._unclaimed.discard(key)
        return unclaimed

    def timings(self, key: str) -> dict[str, dict[str, int]]:
        """Return {operation: {stage: ns}} of the object's last operations, with a "total" each."""
        return self._timings.get(key, {})

    def forget(self, key: str) -> None:
        """Drop what is kept, or would be, of an object that has been removed."""
        self._timings.pop(key, None)
        self._unclaimed.discard(key)
        if (operation := self._current.get(key)) is not None:
            operation.forgotten = True

    async def drain(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for all operations, then cancel and undo the rest."""
        tasks = {operation.task for operation in self._current.values()}
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=timeout)
        for operation in [op for op in self._current.values() if op.task in pending]:
            log.warning("cancelled because the daemon stops: %s", operation.where())
            operation.task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=timeout)

    def _begin(
        self, key: str, name: str, work: Callable[[], Awaitable[T]], detail: str
    ) -> Operation:
        operation = Operation(key, name, detail)
        # A context of its own: neither the deadline nor the trace of the RPC bounds the work.
        context = contextvars.copy_context()
        context.run(record, operation.stages)
        context.run(DEADLINE.set, None)

        async def body() -> T:
            return await work()

        operation.task = asyncio.create_task(body(), name=f"{name} {key}", context=context)
        operation.task.add_done_callback(lambda task: self._ended(operation, task))
        self._unclaimed.discard(key)
        self._current[key] = operation
        operation.stages.begin()
        return operation

    def _ended(self, operation: Operation, task: asyncio.Task[Any]) -> None:
        del self._current[operation.key]
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        operation.stages.end(error)
        if not operation.forgotten:
            stages = dict(operation.stages.finished)
            stages["total"] = round(operation.stages.elapsed() * 1e9)
            self._timings.setdefault(operation.key, {})[operation.name] = stages
        if not task.cancelled() and not operation.waiters:
            _log_end(operation, error)
            if error is None and not operation.forgotten:
                self._unclaimed.add(operation.key)

    async def _result(self, operation: Operation) -> Any:
        operation.waiters += 1
        try:
            await self._finished(operation)
        finally:
            operation.waiters -= 1
        if operation.task.cancelled():
            raise UnavailableError(f"{operation.name}: the daemon is stopping; try again")
        return operation.task.result()

    async def _finished(self, operation: Operation) -> None:
        deadline = DEADLINE.get()
        loop = asyncio.get_running_loop()
        timeout = None if deadline is None else max(0.0, deadline - loop.time())
        done, _ = await asyncio.wait({operation.task}, timeout=timeout)
        if not done:
            raise DeadlineExceededError(f"{operation.where()}; it goes on, and a retry joins it")


def _log_end(operation: Operation, error: BaseException | None) -> None:
    """Log how an operation ended that no caller waits for; otherwise the RPC's line says it."""
    seconds = operation.stages.elapsed()
    told = {"method": operation.name, "key": operation.key, "code": operation.stages.code}
    log.log(
        logging.INFO if error is None else logging.WARNING,
        "%s of %s %s (%.1f ms; its caller has gone)",
        operation.name,
        operation.key,
        "succeeded" if error is None else f"failed: {error}",
        seconds * 1000,
        extra=logs.fields(told | {"duration_ms": round(seconds * 1000, 1)}),
    )
