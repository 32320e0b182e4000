"""A pod and a container from beginning to end: one at a time, and 8 at a time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tests.bench.client import SLEEP, Client
from tests.bench.operations import BUILTIN, operation
from tests.bench.parallel import AT_ONCE
from tests.bench.plan import Bench, column
from tests.bench.results import Column, Results, in_unit

T = TypeVar("T")
U = TypeVar("U")

# One status takes less than what the machine does beside it now and then.
STATUSES = 10


def measure(bench: Bench) -> None:
    """One cycle after another."""
    image = bench.shelf.small
    for runtime, results in bench.turns("lifecycle", bench.plan.cycles):
        stages = results if runtime.kind == BUILTIN else Results()
        cycle(runtime.client, image, column(runtime), results, stages)


def cycle(client: Client, image: str, who: Column, results: Results, stages: Results) -> None:
    """Measure every operation; `stages` gets what ours says of its own."""
    timed = functools.partial(results.timed, "lifecycle")
    config = client.pod_config()
    pod = timed("RunPodSandbox", who, lambda: client.run_pod(config))
    container = timed("CreateContainer + StartContainer", who, lambda: start(client, image, pod))
    timed("ExecSync true", who, lambda: client.exec_sync(container, "true"))
    timed("ContainerStatus", who, lambda: client.status(container), STATUSES)
    timed("PodSandboxStatus", who, lambda: client.pod_status(pod), STATUSES)
    timed("StopContainer", who, lambda: client.stop(container))
    stages.add_stages(client.timings(pod, container) if who.kind else {})
    timed("RemoveContainer", who, lambda: client.remove(container))
    timed("StopPodSandbox", who, lambda: client.stop_pod(pod))
    timed("RemovePodSandbox", who, lambda: client.remove_pod(pod))


def start(client: Client, image: str, pod: str) -> str:
    container = client.create(pod, image, *SLEEP)
    client.start(container)
    return container


def measure_parallel(bench: Bench) -> None:
    """Each operation 8 times at once, one operation after another."""
    image = bench.shelf.small
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for runtime, results in bench.turns("8 at a time", bench.plan.parallel):
            batches(Batches(pool, column(runtime), results), runtime.client, image)


class Batches:
    """Measures what many calls take together: a batch ends with its last call.

    The time of one call among others would say more of its place in the queue.
    """

    def __init__(self, pool: ThreadPoolExecutor, who: Column, results: Results) -> None:
        """`pool` has a thread for each call at a time."""
        self._pool, self._who, self._results = pool, who, results

    def timed(self, title: str, call: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """Call for each item, and add the time of all by their number; returns the answers."""
        given = list(items)
        began = time.perf_counter()
        answers = list(self._pool.map(call, given))
        seconds = (time.perf_counter() - began) / len(given)
        row = operation("parallel", title)
        self._results.add(row, self._who, in_unit(seconds, row))
        return answers


def batches(measured: Batches, client: Client, image: str) -> None:
    """Measure every operation on 8 pods of one container."""
    timed = measured.timed
    pods = timed("RunPodSandbox", client.run_pod, [client.pod_config() for _ in range(AT_ONCE)])
    containers = timed(
        "CreateContainer + StartContainer", functools.partial(start, client, image), pods
    )
    timed("ExecSync true", lambda container: client.exec_sync(container, "true"), containers)
    timed("ContainerStatus", client.status, containers * STATUSES)
    timed("PodSandboxStatus", client.pod_status, pods * STATUSES)
    timed("StopContainer", client.stop, containers)
    timed("RemoveContainer", client.remove, containers)
    timed("StopPodSandbox", client.stop_pod, pods)
    timed("RemovePodSandbox", client.remove_pod, pods)
