"""Medians of `run` of /bin/true for runtimeshim and other OCI runtimes, on one and the same bundle.

    python -m tests.bench.oci_run [--rounds N] [RUNTIME…]

Run as root. RUNTIME are programs beside those of runc, crun and youki that are on PATH. runtimeshim
is measured as a package installs it: with bytecode, and without an editable install's finder. The
runtimes take turns, so that what else the machine does meets all of them; the least of each is
what it costs on an idle machine.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from tests.integration import bundles, harness

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = ("runc", "crun", "youki")


def install(directory: Path) -> Path:
    """Install runtimeshim into an environment of its own; returns its program."""
    venv.create(directory, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    package = directory / "lib" / version / "site-packages/runtimeshim"
    shutil.copytree(
        REPOSITORY / "runtimeshim", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    compileall.compile_dir(package, quiet=1)
    return Path(shutil.copy(package / "cli/bin/runtimeshim", directory / "bin/runtimeshim"))


def bundle(directory: Path, cgroup: str) -> Path:
    """Write a bundle of busybox whose program is true."""
    layer = bundles.make_layer(directory / "layer")
    spec = bundles.spec(["true"], f"{cgroup}/c") | {"root": {"path": str(layer)}}
    (directory / "config.json").write_text(json.dumps(spec))
    return directory


def run_once(runtime: str, root: Path, bundle: Path) -> float:
    """Run the bundle to its end; returns the milliseconds."""
    began = time.perf_counter()
    subprocess.run(
        [runtime, "--root", str(root), "run", "-b", str(bundle), "bench"],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("runtimes", nargs="*")
    options = parser.parse_args()
    cgroup = f"/crbench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "bundle").mkdir()
        prepared = bundle(directory / "bundle", cgroup)
        found = [path for peer in PEERS if (path := shutil.which(peer))]
        runtimes = [str(install(directory / "installed")), *found, *options.runtimes]
        times: dict[str, list[float]] = {runtime: [] for runtime in runtimes}
        for number in range(options.rounds + 1):
            for index, runtime in enumerate(runtimes):
                taken = run_once(runtime, directory / f"root-{index}", prepared)
                if number:  # the first fills caches
                    times[runtime].append(taken)
    harness.remove_cgroups(cgroup)
    show(times)


def show(times: dict[str, list[float]]) -> None:
    """Print the table; ratios are to runtimeshim, the first."""
    first, *_ = times.values()
    print(f"{'runtime':40} {'median ms':>10} {'least ms':>10} {'ours/its median':>16} {'least':>6}")
    for runtime, values in times.items():
        median, least = statistics.median(values), min(values)
        ratios = f"{statistics.median(first) / median:16.2f} {min(first) / least:6.2f}"
        print(f"{runtime[-40:]:40} {median:10.1f} {least:10.1f} {ratios}")


if __name__ == "__main__":
    main()
