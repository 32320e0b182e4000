"""How much is measured, and the turns in which the runtimes take it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.operations import BUILTIN
from tests.bench.results import Column, Results
from tests.bench.runtimes import Runtime
from tests.bench.shapes import Shelf

# Between two turns, so that what the kernel does behind one is not in the time of the next.
PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Plan:
    """Numbers of rounds, pods and seconds; the whole of it takes some 18 minutes."""

    cycles: int = 30
    parallel: int = 48  # turns of 8 pods at a time
    bursts: int = 2
    burst_pods: int = 60
    small_pulls: int = 20
    large_pulls: int = 3
    large: bool = True
    density: tuple[int, ...] = (10, 100, 300)  # pods
    containers: tuple[int, ...] = (10, 100, 500)
    singles: int = 20  # pods that come and go beside the others
    asked: int = 25  # turns of statuses and lists of each kind at each density
    # Whole periods of what runtimes do by the clock: containerd's statistics every 10 s.
    idle_seconds: float = 30.0
    streams: int = 24
    stream_mib: int = 64
    oci: int = 25
    dead_seconds: float = 5.0
    lines: int = 20_000


QUICK = Plan(
    cycles=2, parallel=1, bursts=1, burst_pods=4, small_pulls=2, large=False, density=(2,),
    containers=(4,), singles=2, asked=2, idle_seconds=0.5, streams=1, stream_mib=8, oci=2,
    dead_seconds=0.5, lines=2_000,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What a group of measurements works with."""

    runtimes: Sequence[Runtime]
    shelf: Shelf
    results: Results
    plan: Plan
    directory: Path

    def one_of_ours(self) -> list[Runtime]:
        """The runtimes for what no pod network has a part in: one of ours, and the peers."""
        ours = [runtime for runtime in self.runtimes if runtime.is_ours]
        chosen = next((runtime for runtime in ours if runtime.kind == BUILTIN), *ours[:1])
        return [runtime for runtime in self.runtimes if not runtime.is_ours or runtime is chosen]

    def rounds(
        self,
        what: str,
        rounds: int,
        runtimes: Sequence[Runtime] | None = None,
        *,
        warm_up: bool = True,
    ) -> Iterator[tuple[Results, list[Runtime]]]:
        """Yield for each round its runtimes in the order of their turns: A B C, C B A, ….

        What is measured goes to the results that come with them, which is lost in a first round
        that only warms up.
        """
        chosen = list(runtimes or self.runtimes)
        for number in range(0 if warm_up else 1, rounds + 1):
            progress(f"{what}: {f'round {number} of {rounds}' if number else 'warming up'}")
            ordered = chosen if number % 2 else chosen[::-1]
            yield self.results if number else Results(), ordered

    def turns(
        self, what: str, rounds: int, runtimes: Sequence[Runtime] | None = None
    ) -> Iterator[tuple[Runtime, Results]]:
        """Yield each runtime in each round, with the results for what is measured."""
        for results, ordered in self.rounds(what, rounds, runtimes):
            for runtime in in_peace(ordered):
                yield runtime, results


def in_peace(runtimes: Iterable[Runtime]) -> Iterator[Runtime]:
    """Yield them, each after a pause."""
    for runtime in runtimes:
        time.sleep(PAUSE_SECONDS)
        yield runtime


def column(runtime: Runtime) -> Column:
    return Column(runtime.name, runtime.kind)


def progress(text: str) -> None:
    """Say on the standard error what is going on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def settle() -> None:
    """Let nothing of what one runtime wrote be written to the disk in the next one's time."""
    subprocess.run(["sync"], check=True)
    time.sleep(PAUSE_SECONDS)
