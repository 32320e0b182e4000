"""Medians of create, start and exit through a warm spawner, and of each stage of a creation.

    python -m tests.bench.oci_stages [--rounds N]

Run as root. The container is busybox's true with the default seccomp profile, in namespaces of its
own. The stages are the executor's; what `create` takes beyond their total is the shim's fork and
its messages.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from runtimeshim.client import ShimOptions
from runtimeshim.oci.seccomp_default import default_profile
from tests.integration import bundles, harness

WARM_UP = 5

Times = dict[str, list[float]]


async def one(rt: harness.Runtime, name: str, times: Times) -> None:
    """Run one container to its end, and note the milliseconds."""
    spec: dict[str, Any] = rt.spec(["true"], name)
    spec["linux"]["seccomp"] = default_profile(bundles.DEFAULT_CAPABILITIES, os.uname().machine)
    bundle = bundles.write(rt.run_dir / "containers" / name, spec)
    options = ShimOptions(bundles.overlay(rt.layer, rt.directory / f"rw-{name}"), rt.log(name))
    clock = [time.perf_counter()]
    shim = await rt.spawner.spawn_shim(name, bundle, options)
    clock.append(time.perf_counter())
    await shim.start()
    clock.append(time.perf_counter())
    await shim.wait()
    clock.append(time.perf_counter())
    await shim.delete()
    for label, (before, after) in {
        "create": (0, 1),
        "start": (1, 2),
        "create + start": (0, 2),
        "exit": (2, 3),
    }.items():
        times[label].append((clock[after] - clock[before]) * 1000)
    for stage, ns in shim.timings.items():
        times[f"  {stage}"].append(ns / 1e6)


async def measure(rounds: int) -> Times:
    """Run the containers one after the other."""
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        async with harness.runtime(Path(directory)) as rt:
            for number in range(WARM_UP):
                await one(rt, f"warm-{number}", defaultdict(list))
            for number in range(rounds):
                await one(rt, f"n{number}", times)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    times = asyncio.run(measure(parser.parse_args().rounds))
    print(f"{'ms':20} {'median':>8} {'least':>8} {'most':>8}")
    for label, values in times.items():
        figures = (statistics.median(values), min(values), max(values))
        print(f"{label:20} " + " ".join(f"{figure:8.2f}" for figure in figures))


if __name__ == "__main__":
    main()
