"""Beside many pods: memory and idle processor time, and what a kubelet asks all the time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import grpc

from api.cri import api_pb2 as cri
from tests.bench import processes
from tests.bench.client import RPC_SECONDS, SLEEP, Client
from tests.bench.groups.burst import MB
from tests.bench.operations import operation
from tests.bench.parallel import AT_ONCE, at_once
from tests.bench.plan import Bench, column, progress
from tests.bench.results import Column, Results
from tests.bench.runtimes import Runtime

SETTLE_SECONDS = 3.0  # after the last start, before what is called idle
ASKING_SECONDS = 3.0  # for one question: containerd takes long for the statistics of 500
SINGLES = 10  # pods that come and go beside the others
LISTS = (
    "ListContainers",
    "ListPodSandbox",
    "ListContainerStats",
    "ListPodSandboxStats",
    "ListPodSandboxMetrics",
)
FEWER = 10  # how many fewer lists than statuses are asked for


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
    before = {runtime: _cpu(runtime) for runtime in bench.runtimes}
    began = time.monotonic()
    time.sleep(bench.plan.idle_seconds)
    for runtime in bench.runtimes:
        who, seconds = column(runtime), time.monotonic() - began
        now, then = _cpu(runtime), before[runtime]
        daemon_idle = operation("density", f"{pods} pods: processor time, daemon idle", "%")
        pods_idle = operation("density", f"{pods} pods: processor time, shims and pauses idle", "%")
        bench.results.add(daemon_idle, who, (now[0] - then[0]) / seconds * 100)
        bench.results.add(pods_idle, who, (now[1] - then[1]) / seconds * 100)
    for runtime in bench.runtimes:
        who = column(runtime)
        memory = operation("density", f"{pods} pods: daemon, PSS", "MB")
        each = operation("density", f"{pods} pods: shims and pauses, PSS a pod", "MB")
        bench.results.add(memory, who, processes.pss(runtime.daemon_pids()) / MB)
        bench.results.add(each, who, processes.pss(runtime.pod_pids()) / MB / pods)


def _cpu(runtime: Runtime) -> tuple[float, float]:
    pids = runtime.daemon_pids(), runtime.pod_pids()
    return processes.cpu_seconds(pids[0]), processes.cpu_seconds(pids[1])


def come_and_go(bench: Bench, pods: int) -> None:
    """Pods come and go beside the others."""
    rounds = min(SINGLES, bench.plan.cycles)
    for runtime, results in bench.turns(f"beside {pods} pods", rounds):
        _once(runtime.client, f"{pods} pods: ", column(runtime), results)


def _once(client: Client, beside: str, who: Column, results: Results) -> None:
    config = client.pod_config()
    timed = functools.partial(results.timed, "density")
    pod = timed(f"{beside}RunPodSandbox", who, lambda: client.run_pod(config))
    timed(f"{beside}StopPodSandbox", who, lambda: client.stop_pod(pod))
    timed(f"{beside}RemovePodSandbox", who, lambda: client.remove_pod(pod))


def ask(bench: Bench, containers: int) -> None:
    """Statuses of one, and lists of all."""
    for runtime in bench.runtimes:
        progress(f"asking {runtime.name} with {containers} containers")
        for title, call, rounds in _questions(runtime, bench.plan.asked):
            _ask(bench.results, runtime, f"{containers} containers: {title}", call, rounds)


def _questions(runtime: Runtime, asked: int) -> list[tuple[str, Callable[[], object], int]]:
    client, fewer = runtime.client, max(1, asked // FEWER)
    pod, container = client.pods()[-1].id, client.containers()[-1].id
    every = [
        ("ContainerStatus", lambda: client.status(container), asked),
        ("PodSandboxStatus", lambda: client.pod_status(pod), asked),
    ]
    for name in LISTS:
        call, request = getattr(client.runtime, name), getattr(cri, f"{name}Request")()
        every.append((name, functools.partial(call, request, timeout=RPC_SECONDS), fewer))
    streamed = cri.StreamContainersRequest()
    every.append(
        ("StreamContainers", lambda: list(client.runtime.StreamContainers(streamed)), fewer)
    )
    return every


def _ask(
    results: Results, runtime: Runtime, title: str, call: Callable[[], object], rounds: int
) -> None:
    """Ask so often, or as often as the time is enough for; the first answer only warms up.

    A runtime that does not know the RPC is left out.
    """
    try:
        call()
        deadline = time.monotonic() + ASKING_SECONDS
        for _ in range(rounds):
            results.timed("density", title, column(runtime), call)
            if time.monotonic() > deadline:
                break
    except grpc.RpcError as err:
        results.say(operation("density", title), column(runtime), f"fails: {err.code().name}")
