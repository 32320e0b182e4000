"""The counts of our own operations, and tests/bench/budget.toml, which they must not exceed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from tests.bench.client import SLEEP
from tests.bench.counts import COUNTED, OPTIONS, calls, count, without_checkpoint
from tests.bench.report import aligned
from tests.bench.runtimes import Criserver
from tests.bench.shapes import Shelf
from tests.integration import leaks
from tests.integration.daemon import wait_for

T = TypeVar("T")
During = Callable[[str, Callable[[], object]], object]
Counts = dict[str, dict[str, int]]  # operation -> what -> how often

FILE = Path(__file__).with_name("budget.toml")
ROUNDS = 3  # the least counts: what the daemon does now and then is not in all of them
# What an operation leaves to the background is its own too: it ends when nothing was traced for so
# long. Not later than the second, should the daemon never rest.
# (criserver.explain.history writes a second after an operation.)
QUIET_SECONDS = 1.3
LONGEST_SECONDS = 10.0
# podsandbox.network.builtin looks so long after a pod's end whether its link is gone.
LINK_SECONDS = 6.0
# Timestamps and identifiers differ in length, and wakeups in number.
BYTES_SLACK = 1.1
WELL_UNDER = 0.8  # worth a smaller budget

_HEAD = """\
# What each operation may ask of the kernel, one after another on an idle daemon with the built-in
# network: `hack/bench --budget write` writes it anew. bytes may be exceeded by a tenth.
"""


class Tracer:
    """strace on a daemon, its spawner and all that they start; and when each operation was."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._spans: list[tuple[str, float, float]] = []

    @contextlib.contextmanager
    def attached(self, pids: set[int]) -> Iterator[None]:
        """Trace these processes and their future children."""
        command = ["strace", *OPTIONS, "-o", str(self._output)]
        command += [word for pid in pids for word in ("-p", str(pid))]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as tracer:
            try:
                wait_for(lambda: all(map(_is_traced, pids)), "strace")
                yield
            finally:
                tracer.send_signal(signal.SIGINT)  # it detaches
                tracer.wait(30)

    def during(self, operation: str, call: Callable[[], T]) -> T:
        """Note when an operation was, with what it leaves to the background."""
        began = time.time()
        answer = call()
        if operation == "StopPodSandbox":
            time.sleep(LINK_SECONDS)
        self._until_quiet()
        self._spans.append((operation, began, time.time()))
        return answer

    def _until_quiet(self) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS
        size = -1
        while size != (size := self._output.stat().st_size) and time.monotonic() < deadline:
            time.sleep(QUIET_SECONDS)

    def counts(self) -> Counts:
        """The least of each count of each operation."""
        with self._output.open(errors="replace") as lines:
            made = list(calls(lines))
        found: dict[str, list[Mapping[str, int]]] = {}
        for operation, began, ended in self._spans:
            its_own = without_checkpoint(call for call in made if began <= call.began < ended)
            found.setdefault(operation, []).append(count(its_own))
        return {
            operation: {what: min(one[what] for one in counted) for what in COUNTED}
            for operation, counted in found.items()
        }


def _is_traced(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all("TracerPid:\t0\n" not in leaks.read(task / "status") for task in tasks)


def measure(daemon: Criserver, shelf: Shelf, directory: Path) -> Counts:
    """Count every operation some times; the first round, which nothing is counted of, warms up."""
    client = daemon.client
    client.pull(shelf.small)
    _round(daemon, shelf, lambda _, call: call())
    tracer = Tracer(directory / "trace")
    with tracer.attached(daemon.daemon_pids()):
        for _ in range(ROUNDS):
            _round(daemon, shelf, tracer.during)
    return tracer.counts()


def _round(daemon: Criserver, shelf: Shelf, during: During) -> None:
    client = daemon.client
    config = client.pod_config()
    pod = str(during("RunPodSandbox", lambda: client.run_pod(config)))
    container = str(during("CreateContainer", lambda: client.create(pod, shelf.small, *SLEEP)))
    during("StartContainer", lambda: client.start(container))
    during("ExecSync", lambda: client.exec_sync(container, "true"))
    during("ContainerStatus", lambda: client.status(container))
    during("StopContainer", lambda: client.stop(container))
    during("RemoveContainer", lambda: client.remove(container))
    during("StopPodSandbox", lambda: client.stop_pod(pod))
    during("RemovePodSandbox", lambda: client.remove_pod(pod))
    during("PullImage", lambda: client.pull(shelf.pulled))
    during("RemoveImage", lambda: client.remove_image(shelf.pulled))


def read(path: Path = FILE) -> Counts:
    """The budget."""
    found: Counts = tomllib.loads(path.read_text())
    return found


def write(counts: Counts, path: Path = FILE) -> None:
    """Make the counts the budget."""
    tables = (
        "\n".join([f"[{operation}]", *(f"{what} = {number}" for what, number in counted.items())])
        for operation, counted in counts.items()
    )
    path.write_text(_HEAD + "\n" + "\n\n".join(tables) + "\n")


def exceeded(counts: Counts, budget: Counts) -> list[str]:
    """What is above its budget, or has none; and budgets of nothing that is counted."""
    found = []
    for operation, counted in counts.items():
        for what, number in counted.items():
            allowed = budget.get(operation, {}).get(what)
            if allowed is None:
                found.append(f"{operation}: {what}: {number}, and no budget")
            elif number > allowed * (BYTES_SLACK if what == "bytes" else 1):
                found.append(f"{operation}: {what} rose from {allowed} to {number}")
    gone = {(o, w) for o in budget for w in budget[o]} - {(o, w) for o in counts for w in counts[o]}
    return found + [f"{operation}: {what} is not counted" for operation, what in sorted(gone)]


def well_under(counts: Counts, budget: Counts) -> list[str]:
    """What is so far below its budget that the budget should follow."""
    return [
        f"{operation}: {what} fell from {budget[operation][what]} to {number}"
        for operation, counted in counts.items()
        for what, number in counted.items()
        if number < budget.get(operation, {}).get(what, 0) * WELL_UNDER
    ]


def table(counts: Counts) -> Iterator[str]:
    """Yield the counts as a Markdown table."""
    lines = [["operation", *COUNTED]]
    lines += [[name, *(str(counted[what]) for what in COUNTED)] for name, counted in counts.items()]
    yield from aligned(lines)
