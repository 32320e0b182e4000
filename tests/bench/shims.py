"""What shims cost: memory of many at once, and the time of create, start and exec.

    .venv/bin/python -m tests.bench.shims [--shims 50] [--rounds 60]

Run as root. Prints, per shim, PSS and private memory in KiB, as a whole and by mapping (man 5 proc,
smaps), and the median milliseconds of each stage through a warm spawner.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from criserver.daemon import WORKERS
from runtimeshim.client import Rootfs, Shim, ShimOptions
from tests.integration import bundles, harness

FIELDS = ("Pss", "Private_Dirty", "Private_Clean")
SHOWN_MAPPINGS = 8
SLEEP = ["sleep", "1000"]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measure the memory and the speed of shims.")
    parser.add_argument("--shims", type=int, default=50, help="how many are up at once")
    parser.add_argument("--rounds", type=int, default=60, help="how many starts are timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        asyncio.run(measure(Path(directory), options.shims, options.rounds))


async def measure(directory: Path, shims: int, rounds: int) -> None:
    """Time one container after another, then look at many."""
    async with harness.runtime(directory, dict(WORKERS)) as rt:
        await print_times(rt, rounds)
        for number in range(shims):
            await rt.start(rt.spec(SLEEP, f"m{number}"), f"m{number}")
        pids = shims_of(rt.spawner.pid)
        print_memory("idle", pids)
        for shim in rt.shims[-shims:]:
            await run_true(rt, shim)
        print_memory("after one exec each", pids)
        print_memory("spawner", [rt.spawner.pid])


async def print_times(rt: harness.Runtime, rounds: int) -> None:
    """Print the median of create, start and exec, and of what their shims say of their stages."""
    times: dict[str, list[float]] = {}
    for number in range(rounds + 3):
        name = f"t{number}"
        spec = rt.spec(SLEEP, name)
        await prepare(rt, spec, name)
        began = time.perf_counter()
        shim = await spawn(rt, name)
        created = time.perf_counter()
        await shim.start()
        started = time.perf_counter()
        await run_true(rt, shim)
        ended = time.perf_counter()
        if number >= 3:  # the first ones warm the caches
            note(times, {"create + start": started - began, "create": created - began})
            note(times, {"start": started - created, "exec of true": ended - started})
            note(times, {f"  {name}": ns / 1e9 for name, ns in shim.timings.items()})
        await shim.delete()
    print(f"times, ms: median and 90th percentile of {rounds}")
    for name, values in times.items():
        ordered = sorted(values)
        print(
            f"  {name:24} {statistics.median(values) * 1000:8.2f} "
            f"{ordered[len(ordered) * 9 // 10] * 1000:8.2f}"
        )


def note(times: dict[str, list[float]], seconds: Mapping[str, float]) -> None:
    for name, value in seconds.items():
        times.setdefault(name, []).append(value)


async def prepare(rt: harness.Runtime, spec: dict[str, object], name: str) -> None:
    """Write what the daemon has written before it asks for a container."""
    bundles.write(rt.run_dir / "containers" / name, spec)
    bundles.overlay(rt.layer, rt.directory / f"rw-{name}")


async def spawn(rt: harness.Runtime, name: str) -> Shim:
    rw = rt.directory / f"rw-{name}"
    rootfs = Rootfs((str(rt.layer),), str(rw / "upper"), str(rw / "work"))
    options = ShimOptions(rootfs, rt.log(name))
    return await rt.spawner.spawn_shim(name, rt.run_dir / "containers" / name, options)


async def run_true(rt: harness.Runtime, shim: Shim) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        started = await shim.exec(rt.spec(["true"])["process"], (null, null, null))
        await started.wait()
    finally:
        os.close(null)


def shims_of(spawner: int) -> list[int]:
    """The children of the spawner that have named themselves as shims of containers do."""
    children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
    return [pid for pid in map(int, children) if name_of(pid).startswith("shim ")]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def print_memory(what: str, pids: Sequence[int]) -> None:
    """Print the mean of each figure, and of each mapping that costs anything."""
    totals: Counter[str] = Counter()
    by_mapping: dict[str, Counter[str]] = {}
    for pid in pids:
        for mapping, field, kib in smaps(pid):
            totals[field] += kib
            by_mapping.setdefault(mapping, Counter())[field] += kib
    count = len(pids)
    private = (totals["Private_Dirty"] + totals["Private_Clean"]) / count
    pss = totals["Pss"] / count
    print(f"{what}: {count} processes, KiB each: PSS {pss:.0f} private {private:.0f}")
    largest = sorted(by_mapping, key=lambda mapping: -by_mapping[mapping]["Pss"])
    for mapping in largest[:SHOWN_MAPPINGS]:
        figures = by_mapping[mapping]
        columns = "  ".join(f"{field} {figures[field] / count:6.0f}" for field in FIELDS)
        print(f"  {mapping[-44:]:44} {columns}")


def smaps(pid: int) -> Iterable[tuple[str, str, int]]:
    """The figures of a process: mapping, field, KiB."""
    mapping = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        parts = line.split()
        if not parts[0].endswith(":"):
            mapping = parts[5] if len(parts) > 5 else "anonymous"
        elif parts[0][:-1] in FIELDS:
            yield mapping, parts[0][:-1], int(parts[1])


if __name__ == "__main__":
    main()
