"""Many share the lock, or one has it alone."""

from __future__ import annotations

import asyncio

import pytest

from podsandbox.network.shared_lock import SharedLock


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Holder:
    """A task that holds a lock until it is told to let go."""

    def __init__(self, lock: SharedLock, *, alone: bool) -> None:
        self.holds = False
        self._let_go = asyncio.Event()
        self.task = asyncio.create_task(self._run(lock.alone() if alone else lock.shared()))

    async def _run(self, held) -> None:
        async with held:
            self.holds = True
            await self._let_go.wait()
        self.holds = False

    async def let_go(self) -> None:
        self._let_go.set()
        await self.task
        await settle()


async def test_it_is_shared_by_many_and_had_alone_by_one() -> None:
    lock = SharedLock("GC")
    first, second = Holder(lock, alone=False), Holder(lock, alone=False)
    alone, other = Holder(lock, alone=True), Holder(lock, alone=True)
    await settle()
    assert (first.holds, second.holds, alone.holds) == (True, True, False)
    late = Holder(lock, alone=False)
    await settle()
    assert late.holds  # who waits to be alone keeps nobody from coming
    for holder in (first, second, late):
        assert not alone.holds
        await holder.let_go()
    assert (alone.holds, other.holds) == (True, False)
    shut_out = Holder(lock, alone=False)
    await settle()
    assert not shut_out.holds
    await alone.let_go()
    assert other.holds != shut_out.holds
    for holder in (other, shut_out) if other.holds else (shut_out, other):
        assert holder.holds
        await holder.let_go()


@pytest.mark.parametrize("alone", [True, False])
async def test_who_is_cancelled_lets_go(alone: bool) -> None:
    lock = SharedLock("GC")
    holder = Holder(lock, alone=alone)
    await settle()
    waiting = Holder(lock, alone=True)
    await settle()
    holder.task.cancel()
    await settle()
    assert waiting.holds
    await waiting.let_go()
