"""Measure criserver and the CRI runtimes on PATH side by side: hack/bench.

All of them are started in private directories, with networks, cgroups and a registry of their own,
asked by one client in turns, and taken away again, also after Ctrl-C. Run as root, on a machine
that does nothing else: what counts are the ratios within one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from api.cri import api_pb2 as cri
from tests.bench import budget, compare, interrupts, report
from tests.bench.groups import burst, density, faults, images, lifecycle, oci, streaming
from tests.bench.operations import BUILTIN, CNI, GROUPS
from tests.bench.peers import CRIO, Containerd
from tests.bench.plan import QUICK, Bench, Plan, progress
from tests.bench.results import Results
from tests.bench.runtimes import Criserver, Runtime
from tests.bench.shapes import Shelf
from tests.integration import leaks

MEASURES: dict[str, Callable[[Bench], None]] = {
    "lifecycle": lifecycle.measure,
    "parallel": lifecycle.measure_parallel,
    "burst": burst.measure,
    "images": images.measure,
    "streaming": streaming.measure,
    "density": density.measure,
    "oci": oci.measure,
    "faults": faults.measure,
}
PID_MODES = {"pod": cri.POD, "container": cri.CONTAINER}
# What can be measured: name -> the programs that it takes.
PEERS: dict[str, tuple[str, ...]] = {
    "containerd": ("containerd", "runc"),
    "crio": ("crio", "conmon", "runc"),
    "containerd+crun": ("containerd", "crun"),
    "crio+crun": ("crio", "conmon", "crun"),
}
DEFAULT_PEERS = ("containerd", "crio")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    options = parse(arguments)
    if options.budget:
        return hold_budget(options)
    if options.compare:
        return compare_runs(*options.compare)
    results = Results()
    began = time.time()
    for number in range(options.repeat):
        interrupts.heed()
        progress(f"run {number + 1} of {options.repeat}")
        with bench(options, results) as made:
            for group in (name for name in GROUPS if name in (options.only or GROUPS)):
                MEASURES[group](made)
            names = [runtime.name for runtime in made.runtimes]
            progress("taking everything away")
    for line in report.tables(results, machine()):
        print(line)
    print(f"\n{time.time() - began:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps(described(results, names), indent=1))
    if options.plot:
        from tests.bench.plot import draw  # it takes matplotlib a second

        draw(results, options.plot, machine())
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hack/bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    groups = "\n".join(f"  {name:10} {title}" for name, title in GROUPS.items())
    parser.add_argument(
        "--only", action="append", choices=GROUPS, metavar="GROUP", help=f"once or more:\n{groups}"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works")
    parser.add_argument(
        "--repeat", type=times, default=1, metavar="N",
        help="measure N times, each with runtimes started anew, and count all together:\n"
        "what one process happens to be quicker or slower than the next evens out, too",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--plot", type=Path, action="append", metavar="FILE", help="draw the ratios: .svg or .png"
    )
    parser.add_argument(
        "--peer", action="append", choices=PEERS, help="default: containerd and crio, if on PATH"
    )
    parser.add_argument(
        "--network", action="append", choices=(BUILTIN, CNI), help="of ours; default: both"
    )
    parser.add_argument(
        "--pid", choices=PID_MODES, default="pod",
        help="PID namespace of the pods: as crictl and critest have it (default),\n"
        "or a container's own, as the kubelet has it",
    )  # fmt: skip
    parser.add_argument(
        "--budget", choices=("check", "write"),
        help="instead: count the system calls of our operations by strace, and hold them against\n"
        "tests/bench/budget.toml, or make them the budget",
    )  # fmt: skip
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar="FILE",
        help="instead: how far the ratios of two runs, as --json wrote them, are from each other;\n"
        f"fails when one is more than {compare.ALLOWED:g} %% away",
    )  # fmt: skip
    return parser.parse_args(arguments)


def times(text: str) -> int:
    """A number of times, at least once."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number, at least 1")
    return int(text)


def compare_runs(first: Path, second: Path) -> int:
    """Print how far the second run is from the first; 1 when a row is too far."""
    try:
        ratios = compare.read(first), compare.read(second)
    except (OSError, ValueError) as err:
        sys.exit(f"hack/bench: {err}")
    for line in compare.lines(*ratios):
        print(line)
    return int(any(pair.is_above for pair in compare.pairs(*ratios)))


def hold_budget(options: argparse.Namespace) -> int:
    """Count; 1 when something exceeds its budget."""
    options.network, options.peer = [BUILTIN], []
    interrupts.heed()
    with bench(options, Results()) as made:
        (ours,) = made.runtimes
        assert isinstance(ours, Criserver)
        counts = budget.measure(ours, made.shelf, made.directory)
    if options.budget == "write":
        budget.write(counts)
    for line in budget.table(counts):
        print(line)
    above, below = budget.exceeded(counts, budget.read()), budget.well_under(counts, budget.read())
    for line in (*above, *below):
        print(line)
    return 1 if above else 0


@contextlib.contextmanager
def bench(options: argparse.Namespace, results: Results) -> Iterator[Bench]:
    """Everything started; afterwards nothing of it is left."""
    if os.geteuid() != 0:
        sys.exit("hack/bench: must run as root: it starts container runtimes")
    with contextlib.ExitStack() as stack:
        with interrupts.put_off():
            directory = Path(tempfile.mkdtemp(prefix=leaks.SESSION, dir="/var/lib"))
            stack.callback(shutil.rmtree, directory)
            run = stack.enter_context(run_directory())
            shelf = Shelf(directory / "registry")
            stack.callback(shelf.close)
            stack.push(interrupts.ignore)
        runtimes: list[Runtime] = []
        for make in makers(options, shelf, run):
            with interrupts.put_off():
                runtime = make()
                stack.callback(runtime.close)
                stack.push(interrupts.ignore)
                progress(f"starting {runtime.name}")
                runtime.start()
            runtime.client.pull(shelf.small)
            runtimes.append(runtime)
        yield Bench(runtimes, shelf, results, QUICK if options.quick else Plan(), directory)


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """A tmpfs for what the runtimes keep in /run, which is one on every machine with systemd."""
    directory = Path(tempfile.mkdtemp(prefix=leaks.SESSION, dir="/run"))
    mount = ["mount", "-t", "tmpfs", leaks.SESSION, str(directory)]
    try:
        subprocess.run(mount, check=True, start_new_session=True)  # Ctrl-C is for us
        try:
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True, start_new_session=True)
    finally:
        directory.rmdir()


def makers(options: argparse.Namespace, shelf: Shelf, run: Path) -> Iterator[Callable[[], Runtime]]:
    """Yield a maker of each runtime."""
    pid = PID_MODES[options.pid]
    for kind in options.network or (BUILTIN, CNI):
        yield lambda kind=kind: Criserver(kind, shelf.registry, pid, run)  # type: ignore[misc]
    for number, name in enumerate(DEFAULT_PEERS if options.peer is None else options.peer):
        if missing := [program for program in PEERS[name] if not shutil.which(program)]:
            text = f"{name} is left out: not on PATH: {', '.join(missing)}"
            if options.peer:
                sys.exit(f"hack/bench: {text}")
            progress(text)
            continue
        maker, oci_runtime = Containerd if "containerd" in PEERS[name] else CRIO, PEERS[name][-1]
        yield lambda m=maker, o=oci_runtime, n=number: m(  # type: ignore[misc]
            o, n, shelf, pid, run
        )


def machine() -> str:
    """The date and what the figures depend on."""
    version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"{platform.machine()}, cgroup {version}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def described(results: Results, names: Sequence[str]) -> dict[str, Any]:
    """The results for a machine."""
    return {
        "machine": machine(),
        "runtimes": list(names),
        "results": results.as_json(),
        "stages": results.stages,
    }


if __name__ == "__main__":
    sys.exit(main())
