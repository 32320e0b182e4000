"""Beside many pods: memory and idle processor time, and what a kubelet asks all the time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import grpc

from api.cri import api_pb2 as cri
from tests.bench import processes
from tests.bench.client import RPC_SECONDS, SLEEP, Client
from tests.bench.groups.burst import MB
from tests.bench.operations import operation
from tests.bench.parallel import AT_ONCE, at_once
from tests.bench.plan import Bench, column, in_peace, progress
from tests.bench.results import Column, Results, in_unit
from tests.bench.runtimes import Runtime

SETTLE_SECONDS = 3.0  # after the last start, before what is called idle
AT_ONCE_ANSWERED = (
    "ContainerStatus",
    "PodSandboxStatus",
    "ListContainers",
    "ListPodSandbox",
    "StreamContainers",
)
STATISTICS = ("ListContainerStats", "ListPodSandboxStats", "ListPodSandboxMetrics")
# A block of calls of one runtime, so many or for so long, whose median counts.
BLOCK = 20
BLOCK_SECONDS = 0.3
# For one question in all: containerd takes 18 s to list the statistics of 300 pods.
ASKING_SECONDS = 6.0
LEAST_TURNS = 2


def measure(bench: Bench) -> None:
    """Fill up to each number of pods, then to each number of containers, and look."""
    levels = sorted({*bench.plan.density, *bench.plan.containers})
    for count in levels:
        for runtime in bench.runtimes:
            progress(f"density: {count} on {runtime.name}")
            fill(bench, runtime, count)
        if count in bench.plan.density:
            weigh(bench, count)
            come_and_go(bench, count)
        if count in bench.plan.containers:
            ask(bench, count)
    for runtime in bench.runtimes:
        progress(f"density: removing from {runtime.name}")
        at_once(AT_ONCE, runtime.client.take_away, _pods(runtime))


def _pods(runtime: Runtime) -> list[str]:
    return [pod.id for pod in runtime.client.pods()]


def fill(bench: Bench, runtime: Runtime, count: int) -> None:
    """Start so many containers in all: each in a pod of its own as far as there are to be pods."""
    client, image = runtime.client, bench.shelf.small
    there = len(client.containers())
    alone = max(0, min(count, bench.plan.density[-1]) - there)
    at_once(AT_ONCE, lambda _: client.run(image, *SLEEP), range(alone))
    pods = _pods(runtime)

    def add(number: int) -> None:
        client.start(client.create(pods[number % len(pods)], image, *SLEEP))

    at_once(AT_ONCE, add, range(count - there - alone))


def weigh(bench: Bench, pods: int) -> None:
    """Memory of the daemons and for the pods; and all of them idle at the same time."""
    time.sleep(SETTLE_SECONDS)
    before = {runtime: Processor(runtime) for runtime in bench.runtimes}
    time.sleep(bench.plan.idle_seconds)
    for runtime in bench.runtimes:
        add = functools.partial(_add, bench, runtime, f"{pods} pods")
        daemon, for_pods = Processor(runtime).since(before[runtime])
        add("processor time, daemon idle", "%", daemon)
        add("processor time, shims and pauses idle", "%", for_pods)
    for runtime in bench.runtimes:
        add = functools.partial(_add, bench, runtime, f"{pods} pods")
        add("daemon, PSS", "MB", processes.pss(runtime.daemon_pids()) / MB)
        add("shims and pauses, PSS a pod", "MB", processes.pss(runtime.pod_pids()) / MB / pods)


def _add(bench: Bench, runtime: Runtime, beside: str, title: str, unit: str, value: float) -> None:
    bench.results.add(operation("density", f"{beside}: {title}", unit), column(runtime), value)


class Processor:
    """The processor time that a runtime has taken until now."""

    def __init__(self, runtime: Runtime) -> None:
        pids = runtime.daemon_pids(), runtime.pod_pids()
        self._when = time.monotonic()  # to find the processes of many pods takes a second
        self._daemon, self._pods = map(processes.cpu_seconds, pids)

    def since(self, before: Processor) -> tuple[float, float]:
        """What the daemon and its pods' processes took of one processor, in %."""
        share = 100 / (self._when - before._when)
        return (self._daemon - before._daemon) * share, (self._pods - before._pods) * share


def come_and_go(bench: Bench, pods: int) -> None:
    """Pods come and go beside the others."""
    for runtime, results in bench.turns(f"beside {pods} pods", bench.plan.singles):
        _once(runtime.client, f"{pods} pods: ", column(runtime), results)


def _once(client: Client, beside: str, who: Column, results: Results) -> None:
    config = client.pod_config()
    timed = functools.partial(results.timed, "density")
    pod = timed(f"{beside}RunPodSandbox", who, lambda: client.run_pod(config))
    timed(f"{beside}StopPodSandbox", who, lambda: client.stop_pod(pod))
    timed(f"{beside}RemovePodSandbox", who, lambda: client.remove_pod(pod))


def ask(bench: Bench, containers: int) -> None:
    """Statuses of one, and lists of all: what is answered at once, and then what takes long.

    Apart, since what an answer of many megabytes leaves to do is not to meet another question.
    """
    what = f"asking beside {containers} containers"
    in_turns(bench, what, [Question(bench, title, containers) for title in AT_ONCE_ANSWERED])
    statistics = [Question(bench, title, containers) for title in STATISTICS]
    in_turns(bench, f"{what} for statistics", statistics, warm_up=False)


def in_turns(
    bench: Bench, what: str, questions: Sequence[Question], *, warm_up: bool = True
) -> None:
    """Ask everything of one runtime, then of the next."""
    for results, runtimes in bench.rounds(what, bench.plan.asked, warm_up=warm_up):
        asked = [question for question in questions if question.goes_on()]
        if not asked:
            break
        for runtime in in_peace(runtimes):
            for question in asked:
                question.ask(runtime, results)


class Question:
    """A question to every runtime: in each turn a block of calls."""

    def __init__(self, bench: Bench, title: str, containers: int) -> None:
        self._row = operation("density", f"{containers} containers: {title}")
        self._calls = {runtime: _call(runtime.client, title) for runtime in bench.runtimes}
        self._seconds = 0.0  # of all answers
        self._turns = 0

    def goes_on(self) -> bool:
        """Whether it is asked in another turn: for so long, but in some turns at least."""
        self._turns += 1
        return self._seconds < ASKING_SECONDS or self._turns <= LEAST_TURNS

    def ask(self, runtime: Runtime, results: Results) -> None:
        """Ask a block; a runtime that does not know the RPC is said to fail."""
        try:
            seconds = block(self._calls[runtime])
        except grpc.RpcError as err:
            results.say(self._row, column(runtime), f"fails: {err.code().name}")
            return
        self._seconds += sum(seconds)
        results.add(self._row, column(runtime), *(in_unit(each, self._row) for each in seconds))


def block(call: Callable[[], object]) -> list[float]:
    """Call so often, or as often as the time is enough for; returns the seconds of each call."""
    seconds: list[float] = []
    while len(seconds) < BLOCK and sum(seconds) < BLOCK_SECONDS:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def _call(client: Client, title: str) -> Callable[[], object]:
    if title == "ContainerStatus":
        return functools.partial(client.status, client.containers()[-1].id)
    if title == "PodSandboxStatus":
        return functools.partial(client.pod_status, client.pods()[-1].id)
    rpc, request = getattr(client.runtime, title), getattr(cri, f"{title}Request")()
    if title.startswith("Stream"):
        return lambda: list(rpc(request, timeout=RPC_SECONDS))
    return functools.partial(rpc, request, timeout=RPC_SECONDS)
