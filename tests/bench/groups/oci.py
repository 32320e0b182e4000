"""`run` of /bin/true by OCI runtimes on one bundle, and the same through our warm spawner.

runtimeshim is measured as a package installs it: with bytecode, and without an editable install's
finder.
"""

from __future__ import annotations

import asyncio
import compileall
import json
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from runtimeshim.client import ShimOptions
from tests.bench.operations import COMMAND, SPAWNER, operation
from tests.bench.peers import version
from tests.bench.plan import Bench, progress
from tests.bench.results import Column, Results
from tests.integration import bundles, harness
from tests.integration.oci_cli import forget_interpreter

REPOSITORY = Path(__file__).resolve().parents[3]
PEERS = ("runc", "crun", "youki")
WARM_UP = 3
ROW = operation("oci", "run to its end")


def measure(bench: Bench) -> None:
    """Every runtime in turns, the spawner among them."""
    directory = bench.directory / "oci"
    directory.mkdir()
    try:
        asyncio.run(_measure(directory, bench.results, bench.plan.oci))
    finally:
        forget_interpreter(directory / "installed/bin")


async def _measure(directory: Path, results: Results, rounds: int) -> None:
    programs = {Column("runtimeshim", COMMAND): str(install(directory / "installed"))}
    for peer in PEERS:
        if path := shutil.which(peer):
            programs[Column(f"{peer} {version(path, 2)}")] = path
    async with harness.runtime(directory / "spawner") as rt:
        prepared = bundle(directory / "bundle", rt)
        leave_out_failing(programs, directory, prepared, results)
        for number in range(-WARM_UP, rounds):
            progress(f"oci: round {number + 1} of {rounds}" if number >= 0 else "oci: warming up")
            found = {who: run_once(path, directory, prepared) for who, path in programs.items()}
            found[Column("warm spawner", SPAWNER)] = await spawn_once(rt, f"n{number}")
            for who, seconds in found.items() if number >= 0 else ():
                results.add(ROW, who, seconds * 1000)


def leave_out_failing(
    programs: dict[Column, str], directory: Path, prepared: Path, results: Results
) -> None:
    """Drop peers that cannot run on this machine: crun has nothing for hybrid cgroups, for one."""
    for who, program in list(programs.items()):
        try:
            run_once(program, directory, prepared)
        except RuntimeError as err:
            if who.kind:
                raise
            progress(f"oci: {err}")
            results.say(ROW, who, "fails")
            del programs[who]


def install(directory: Path) -> Path:
    """Install runtimeshim into an environment of its own; returns its program."""
    venv.create(directory, symlinks=True)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    package = directory / "lib" / python / "site-packages/runtimeshim"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "runtimeshim", package, ignore=ignored)
    compileall.compile_dir(package, quiet=1)
    return Path(shutil.copy(package / "cli/bin/runtimeshim", directory / "bin/runtimeshim"))


def bundle(directory: Path, rt: harness.Runtime) -> Path:
    """Write a bundle of busybox whose program is true."""
    directory.mkdir()
    spec = rt.spec(["true"], "command") | {"root": {"path": str(rt.layer)}}
    spec["ociVersion"] = "1.0.2"  # Debian's crun takes none that is newer
    (directory / "config.json").write_text(json.dumps(spec))
    return directory


def run_once(program: str, directory: Path, prepared: Path) -> float:
    """Run the bundle to its end; returns the seconds."""
    root = directory / Path(program).name
    began = time.perf_counter()
    ran = subprocess.run(
        [program, "--root", str(root), "run", "-b", str(prepared), "bench"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if ran.returncode:
        raise RuntimeError(f"{program} run fails: {ran.stderr.decode(errors='replace')}")
    return seconds


async def spawn_once(rt: harness.Runtime, name: str) -> float:
    """Create, start, await and delete one container; returns the seconds."""
    spec = rt.spec(["true"], name)
    prepared = bundles.write(rt.run_dir / "containers" / name, spec)
    options = ShimOptions(bundles.overlay(rt.layer, rt.directory / f"rw-{name}"), rt.log(name))
    began = time.perf_counter()
    shim = await rt.spawner.spawn_shim(name, prepared, options)
    await shim.start()
    await shim.wait()
    await shim.delete()
    return time.perf_counter() - began
