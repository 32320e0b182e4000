"""Pulls of several shapes, what a kubelet asks about images, and the memory that a pull takes."""

from __future__ import annotations

import functools
import threading

from tests.bench import processes
from tests.bench.groups.lifecycle import STATUSES
from tests.bench.operations import operation
from tests.bench.plan import Bench, column, settle
from tests.bench.results import Results
from tests.bench.runtimes import Runtime
from tests.bench.shapes import LARGE

MB = 1_000_000
SAMPLE_SECONDS = 0.05  # between two looks at the processes' memory
LARGEST = "one file of 200 MB"
WEIGHED = f"most memory while pulling {LARGEST}"


def measure(bench: Bench) -> None:
    """The small image many times, the large ones a few times."""
    runtimes = bench.one_of_ours()
    for runtime, results in bench.turns("small image", bench.plan.small_pulls, runtimes):
        settle()
        small(runtime, bench.shelf.pulled, results)
    for title, make in LARGE.items() if bench.plan.large else ():
        name = bench.shelf.put(f"large{len(title)}", make())
        for runtime, results in bench.turns(title, bench.plan.large_pulls, runtimes):
            settle()
            large(runtime, title, name, results)
        if title == LARGEST:
            for runtime in runtimes:
                weigh(runtime, name, bench.results)


def small(runtime: Runtime, name: str, results: Results) -> None:
    who, client = column(runtime), runtime.client
    timed = functools.partial(results.timed, "images")
    timed("PullImage, 1 MB", who, lambda: client.pull(name))
    timed("ImageStatus", who, lambda: client.image_status(name), STATUSES)
    timed("ListImages", who, client.list_images, STATUSES)
    timed("RemoveImage", who, lambda: client.remove_image(name))


def large(runtime: Runtime, title: str, name: str, results: Results) -> None:
    who, client = column(runtime), runtime.client
    results.timed("images", f"pull, {title}", who, lambda: client.pull(name))
    client.remove_image(name)


def weigh(runtime: Runtime, name: str, results: Results) -> None:
    """A pull of its own, since to look at memory takes time."""
    with Watch(runtime) as watch:
        runtime.client.pull(name)
    runtime.client.remove_image(name)
    results.add(operation("images", WEIGHED, "MB"), column(runtime), watch.most / MB)


class Watch:
    """The most memory that a daemon and what it starts have taken while watched."""

    def __init__(self, runtime: Runtime) -> None:
        self._roots = runtime.daemon_pids()
        self.most = self._now()  # bytes of PSS
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        return processes.pss(self._roots | processes.below(*self._roots))
