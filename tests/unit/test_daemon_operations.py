"""Operations outlive their callers; retries join; deadlines end waits and name the stage."""

import asyncio

import pytest

from api.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
)
from api.stages import MAX_EVENTS, RECORDER, note, observe, operation, stage, waiting_for
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


class Told:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def operation_began(self, operation):
        self.lines.append(f"{operation.name} {operation.key} begins")

    def operation_ended(self, operation):
        self.lines.append(f"{operation.name} {operation.code} {operation.cause}".rstrip())

    def stage_began(self, stage):
        parent = f" in {stage.parent.name}" if stage.parent else ""
        self.lines.append(f"+{stage.name}{parent}")

    def stage_ended(self, stage):
        self.lines.append(f"-{stage.name} {stage.outcome.value} {stage.cause}".rstrip())


@pytest.fixture
def told():
    observer = Told()
    stop = observe(observer)
    yield observer.lines
    stop()


async def test_observers_are_told_of_operations_and_stages_in_their_order(told):
    async def work():
        with stage("sandbox"):
            with stage("files"):
                pass
            with stage("network", "bridge"):
                raise InternalError("no address left")

    with pytest.raises(InternalError):
        await Operations().run("x", "Run", work)
    assert told == [
        "Run x begins",
        "+sandbox",
        "+files in sandbox",
        "-files ok",
        "+network in sandbox",
        "-network failed no address left",
        "-sandbox failed no address left",
        "Run INTERNAL no address left",
    ]


async def test_stages_of_tasks_nest_in_the_stage_that_started_them(told):
    async def part(name):
        with stage(name):
            await asyncio.sleep(0)

    async def work():
        with stage("containers"):
            await asyncio.gather(part("a"), part("b"))

    await Operations().run("x", "Stop", work)
    assert told[1:4] == ["+containers", "+a in containers", "+b in containers"]


async def test_an_operation_knows_the_stage_of_the_one_that_asked_for_it():
    operations, parents = Operations(), []

    async def inner():
        parents.append(RECORDER.get().parent)
        with stage("kill"):
            parents.append(RECORDER.get().all[-1].parent)

    async def outer():
        with stage("containers"):
            await operations.run("c", "KillContainer", inner)

    await operations.run("s", "StopPodSandbox", outer)
    assert [parent and parent.name for parent in parents] == ["containers", None]
    assert parents[0].operation.key == "s"


async def test_what_is_cancelled_is_told_as_such(told):
    operations, work = Operations(), Work()
    caller = asyncio.create_task(operations.run("x", "Run", work))
    await settle()
    await operations.drain(0)
    await asyncio.gather(caller, return_exceptions=True)
    assert told[-2:] == ["-network cancelled CancelledError", "Run CANCELLED CancelledError"]


async def test_an_observer_that_fails_fails_no_operation(caplog):
    class Broken(Told):
        def stage_ended(self, stage):
            raise KeyError(stage.name)

    work = Work()
    work.release.set()
    stop = observe(Broken())
    try:
        assert await Operations().run("x", "Run", work) == "done"
    finally:
        stop()
    assert "failed in stage_ended" in caplog.text


def test_stages_measured_elsewhere_keep_their_order_and_their_place(told):
    with operation("CreateContainer", "c") as made, stage("create"):
        made.add({"cgroup": 10, "fork": 20, "rootfs": 30, "total": 100}, "create")
    create, *parts = made.all
    assert [part.name for part in parts] == ["create.cgroup", "create.fork", "create.rootfs"]
    starts = [part.started - parts[0].started for part in parts]
    assert starts == [0, 10, 30]
    assert all(part.parent is create and part.foreign for part in parts)
    assert made.finished["create.total"] == 100
    assert told[2:4] == ["+create.cgroup in create", "-create.cgroup ok"]


def test_events_are_bounded_and_belong_to_the_innermost_stage():
    with operation("PullImage", "busybox") as pull, stage("resolve"):
        with stage("layer"):
            note("503 from the registry")
        for number in range(MAX_EVENTS + 5):
            note(f"try {number}")
        waiting_for(lambda: "registry.example: 503")
        assert pull.innermost().waiting() == "registry.example: 503"
    resolve, layer = pull.all
    assert [event.text for event in layer.events] == ["503 from the registry"]
    assert len(resolve.events) == MAX_EVENTS
    assert resolve.events[-1].text == f"try {MAX_EVENTS + 4}"
    assert resolve.waiting is None


def test_without_an_operation_stages_and_notes_are_nothing(told):
    with stage("network"):
        note("nobody hears it")
        waiting_for(str)
    assert told == []


async def test_an_operation_whose_caller_has_gone_says_how_it_ended(caplog):
    caplog.set_level("INFO")
    operations = Operations()
    for result in ("done", InternalError("the disk is full")):
        work = Work(result)
        with pytest.raises(DeadlineExceededError):
            await with_deadline(0.01, operations.run("x", "RunPodSandbox", work))
        work.release.set()
        await settle()
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert caplog.messages[0].startswith("RunPodSandbox of x succeeded (")
    assert caplog.messages[1].startswith("RunPodSandbox of x failed: the disk is full (")
