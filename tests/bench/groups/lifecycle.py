"""A pod and a container from beginning to end: one at a time, and 8 at a time."""

from __future__ import annotations

import functools

from tests.bench.client import SLEEP, Client
from tests.bench.operations import BUILTIN
from tests.bench.parallel import AT_ONCE, at_once
from tests.bench.plan import Bench, column
from tests.bench.results import Column, Results


def measure(bench: Bench) -> None:
    """One cycle after another."""
    image = bench.shelf.small
    for runtime, results in bench.turns("lifecycle", bench.plan.cycles):
        stages = results if runtime.kind == BUILTIN else Results()
        cycle(runtime.client, image, "lifecycle", column(runtime), results, stages)


def measure_parallel(bench: Bench) -> None:
    """8 cycles at a time."""
    image = bench.shelf.small
    for runtime, results in bench.turns("8 at a time", bench.plan.parallel):
        who = column(runtime)
        one = functools.partial(cycle, runtime.client, image, "parallel", who, results)
        at_once(AT_ONCE, lambda _: one(Results()), range(2 * AT_ONCE))  # noqa: B023 - all end here


def cycle(
    client: Client, image: str, group: str, who: Column, results: Results, stages: Results
) -> None:
    """Measure every operation once; `stages` gets what ours says of its own."""
    config = client.pod_config()
    pod = results.timed(group, "RunPodSandbox", who, lambda: client.run_pod(config))

    def start() -> str:
        container = client.create(pod, image, *SLEEP)
        client.start(container)
        return container

    container = results.timed(group, "CreateContainer + StartContainer", who, start)
    for title, call in (
        ("ExecSync true", lambda: client.exec_sync(container, "true")),
        ("ContainerStatus", lambda: client.status(container)),
        ("PodSandboxStatus", lambda: client.pod_status(pod)),
        ("StopContainer", lambda: client.stop(container)),
    ):
        results.timed(group, title, who, call)
    stages.add_stages(client.timings(pod, container) if who.kind else {})
    for title, call in (
        ("RemoveContainer", lambda: client.remove(container)),
        ("StopPodSandbox", lambda: client.stop_pod(pod)),
        ("RemovePodSandbox", lambda: client.remove_pod(pod)),
    ):
        results.timed(group, title, who, call)
