"""60 pods of one container: started one after another and 8 at a time, weighed, and removed."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench import processes
from tests.bench.client import SLEEP, Client
from tests.bench.operations import operation
from tests.bench.parallel import AT_ONCE, at_once
from tests.bench.plan import Bench, column
from tests.bench.results import Column, Results
from tests.bench.runtimes import Runtime

MB = 1_000_000


def measure(bench: Bench) -> None:
    """Start, weigh, remove; then start the other way and remove."""
    for runtime, results in bench.turns("burst", bench.plan.bursts):
        who, client = column(runtime), runtime.client
        run = _run(client, bench.shelf.small)
        count = bench.plan.burst_pods if results is bench.results else 4  # to warm up

        def one_by_one(run: Callable[[int], object] = run, count: int = count) -> None:
            for number in range(count):
                run(number)

        def together(run: Callable[[int], object] = run, count: int = count) -> None:
            at_once(AT_ONCE, run, range(count))

        results.timed("burst", "start, one after another", who, one_by_one)
        weigh(runtime, results, count)
        remove_all(client, who, results)
        results.timed("burst", "start, 8 at a time", who, together)
        remove_all(client, who, results)


def _run(client: Client, image: str) -> Callable[[int], object]:
    return lambda _: client.run(image, *SLEEP)


def weigh(runtime: Runtime, results: Results, pods: int) -> None:
    """Measure the memory of the daemon, and of what looks after the pods."""
    who = column(runtime)
    daemon = operation("burst", "daemon, PSS")
    shims = operation("burst", "shims and pauses, PSS a pod")
    results.add(daemon, who, processes.pss(runtime.daemon_pids()) / MB)
    results.add(shims, who, processes.pss(runtime.pod_pids()) / MB / pods)


def remove_all(client: Client, who: Column, results: Results) -> None:
    """As `crictl rmp -af`: status, stop and remove of all pods, all at once."""

    def remove(pod: str) -> None:
        client.pod_status(pod)
        client.stop_pod(pod)
        client.remove_pod(pod)

    pods = [pod.id for pod in client.pods()]
    results.timed("burst", "remove, all at once", who, lambda: at_once(len(pods), remove, pods))
