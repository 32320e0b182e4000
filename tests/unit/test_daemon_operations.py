"""Operations outlive their callers; retries join; deadlines end waits and name the stage."""

import asyncio

import pytest

from api.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
)
from api.stages import stage
from criserver.made_once import join_or_claim
from criserver.operations import DEADLINE, Operations
from criserver.stops import Stops


class Work:
    """A piece of work that waits for `release` in a stage."""

    def __init__(self, result="done"):
        self.release = asyncio.Event()
        self.runs = 0
        self.result = result

    async def __call__(self):
        self.runs += 1
        with stage("network"):
            await self.release.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def with_deadline(seconds, coroutine):
    DEADLINE.set(asyncio.get_running_loop().time() + seconds)
    return await coroutine


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_retry_joins_the_operation_in_flight():
    operations, work = Operations(), Work()
    first = asyncio.create_task(operations.run("x", "Run", work))
    second = asyncio.create_task(operations.run("x", "Run", work))
    await settle()
    work.release.set()
    assert await asyncio.gather(first, second) == ["done", "done"]
    assert work.runs == 1


async def test_operations_on_different_objects_do_not_wait():
    operations, slow, fast = Operations(), Work(), Work()
    fast.release.set()
    waiting = asyncio.create_task(operations.run("x", "Run", slow))
    await settle()
    assert await operations.run("y", "Run", fast) == "done"
    slow.release.set()
    await waiting


async def test_another_operation_on_the_same_object_waits_its_turn():
    operations, run, stop = Operations(), Work("run"), Work("stop")
    running = asyncio.create_task(operations.run("x", "Run", run))
    await settle()
    stopping = asyncio.create_task(operations.run("x", "Stop", stop))
    await settle()
    assert stop.runs == 0
    run.release.set()
    stop.release.set()
    assert await asyncio.gather(running, stopping) == ["run", "stop"]


async def test_the_caller_going_away_does_not_end_the_work():
    operations, work = Operations(), Work()
    caller = asyncio.create_task(operations.run("x", "Run", work))
    await settle()
    caller.cancel()
    await asyncio.wait({caller})
    work.release.set()
    assert await operations.run("x", "Run", work) == "done"
    assert work.runs == 1


async def test_a_deadline_names_operation_stage_and_time_and_the_work_goes_on():
    operations, work = Operations(), Work()
    with pytest.raises(DeadlineExceededError) as caught:
        await asyncio.create_task(with_deadline(0.01, operations.run("abc", "RunPodSandbox", work)))
    assert "RunPodSandbox of abc is in stage 'network' for 0." in str(caught.value)
    assert "a retry joins it" in str(caught.value)
    work.release.set()
    assert await operations.run("abc", "RunPodSandbox", work) == "done"


async def test_the_deadline_of_a_caller_does_not_reach_into_the_work():
    operations = Operations()

    async def work():
        return DEADLINE.get()

    assert await asyncio.create_task(with_deadline(60, operations.run("x", "Run", work))) is None


async def test_a_failure_reaches_all_who_wait():
    operations, work = Operations(), Work(InternalError("broken"))
    tasks = [asyncio.create_task(operations.run("x", "Run", work)) for _ in range(2)]
    await settle()
    work.release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in results] == ["broken", "broken"]


async def test_the_failure_that_nobody_waits_for_is_logged(caplog):
    operations, work = Operations(), Work(InternalError("broken"))
    caller = asyncio.create_task(operations.run("x", "Run", work))
    await settle()
    caller.cancel()
    await asyncio.wait({caller})
    work.release.set()
    await settle()
    assert "Run of x failed: broken" in caplog.text


async def test_stage_timings_of_the_last_operations_are_kept_until_the_object_is_forgotten():
    operations, work = Operations(), Work()
    work.release.set()
    await operations.run("x", "Run", work)
    timings = operations.timings("x")["Run"]
    assert 0 < timings["network"] <= timings["total"]
    assert operations.where("x") == ""

    async def remove():
        operations.forget("x")

    await operations.run("x", "Remove", remove)
    assert operations.timings("x") == {}


class Holder:
    def __init__(self, made):
        self.id, self.name, self.made = "x", "pod_ns_uid_0", made


async def test_a_retry_of_a_creation_joins_it_by_name():
    operations, work = Operations(), Work("x")
    first = asyncio.create_task(operations.run("x", "Create", work))
    await settle()
    retry = asyncio.create_task(join_or_claim(operations, "Create", Holder(made=False)))
    await settle()
    work.release.set()
    assert await asyncio.gather(first, retry) == ["x", "x"]


async def test_a_retry_is_handed_what_nobody_waited_for_and_only_once():
    operations, work = Operations(), Work("x")
    with pytest.raises(DeadlineExceededError):
        await asyncio.create_task(with_deadline(0.01, operations.run("x", "Create", work)))
    work.release.set()
    await settle()
    assert await join_or_claim(operations, "Create", Holder(made=True)) == "x"
    with pytest.raises(AlreadyExistsError, match="pod_ns_uid_0 belongs to x"):
        await join_or_claim(operations, "Create", Holder(made=True))


async def test_a_name_whose_creation_was_answered_is_taken():
    operations, work = Operations(), Work("x")
    work.release.set()
    await operations.run("x", "Create", work)
    with pytest.raises(AlreadyExistsError):
        await join_or_claim(operations, "Create", Holder(made=True))


async def test_one_of_two_waiters_is_enough_to_take_the_result():
    operations, work = Operations(), Work("x")
    patient = asyncio.create_task(operations.run("x", "Create", work))
    await settle()
    with pytest.raises(DeadlineExceededError):
        await asyncio.create_task(with_deadline(0.01, operations.run("x", "Create", work)))
    work.release.set()
    assert await patient == "x"
    assert not operations.claim("x")


async def test_draining_lets_work_end_and_cancels_what_does_not():
    operations, quick, stuck = Operations(), Work("quick"), Work()
    tasks = [
        asyncio.create_task(operations.run("x", "Run", quick)),
        asyncio.create_task(operations.run("y", "Run", stuck)),
    ]
    await settle()
    quick.release.set()
    await operations.drain(0.05)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == "quick"
    assert isinstance(results[1], UnavailableError)


async def test_a_later_shorter_timeout_wins_and_a_longer_one_does_not():
    stops, loop = Stops(), asyncio.get_running_loop()
    stops.request("c", 3600)
    stops.request("c", 7200)

    async def wait():
        async with stops.grace("c"):
            await loop.create_future()

    waiting = asyncio.create_task(wait())
    await settle()
    assert not stops.over("c")
    stops.request("c", 0)
    await asyncio.wait_for(waiting, 10)
    assert stops.over("c")
    stops.done("c")
    stops.request("c", 3600)
    assert not stops.over("c")


async def test_a_request_that_comes_before_the_grace_period_counts():
    stops = Stops()
    stops.request("c", 0)
    stops.request("c", 3600)
    assert stops.over("c")
