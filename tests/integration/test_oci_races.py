"""Symbolic links that change places with directories while mounts are made below them.

CVE-2021-30465, CVE-2019-18837 (mount targets), CVE-2024-45310 (directories made on the way).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.client import CreateError
from tests.integration import harness

pytestmark = pytest.mark.integration

# Each of them a chance for the race; by hand it has been run with thousands.
STARTS = int(os.environ.get("OCI_RACE_STARTS", "60"))

# renameat2(…, RENAME_EXCHANGE), as fast as one process can
EXCHANGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
print(flush=True)
while True:
    libc.renameat2(-100, b"target", -100, b"link", 2)
"""


@contextmanager
def exchanging(volume: Path) -> Iterator[None]:
    """Exchange volume/target and volume/link all the time, as a neighbour in the pod could."""
    argv = [sys.executable, "-I", "-S", "-c", EXCHANGE, str(volume)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def volume_with_link(rt: harness.Runtime, target: Path) -> Path:
    volume = rt.directory / "volume"
    (volume / "target").mkdir(parents=True)
    (volume / "link").symlink_to(target)
    return volume


def bind(source: Path, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source),
            "options": ["rbind"]}  # fmt: skip


def mounts_of(rt: harness.Runtime) -> list[str]:
    """Return what the host has mounted of this test's: others mount things meanwhile."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    own = (str(rt.directory), " planted ", " masked ")
    return [line for line in lines if any(each in line for each in own)]


async def starts(rt: harness.Runtime, mounts: list[dict[str, Any]], args: list[str]) -> list[str]:
    """Run a container many times; returns the outputs of those that were not refused."""
    outputs = []
    for number in range(STARTS):
        name = f"n{number}"
        spec = rt.spec(args, name=name)
        spec["mounts"] += mounts
        try:
            _, output = await rt.run(spec, name)
        except CreateError:
            continue  # a walk that lost the race, or a link to nowhere
        outputs.append(output)
    return outputs


async def test_a_mount_on_an_exchanged_directory_stays_inside(rt: harness.Runtime) -> None:
    """Where the mount ends up is inside, by either name; outside, it would be gone by the pivot."""
    victim = rt.directory / "victim"
    victim.mkdir()
    (rt.layer / str(victim).lstrip("/")).mkdir(parents=True)  # the same path, inside
    volume = volume_with_link(rt, victim)
    before = mounts_of(rt)
    mounts = [
        bind(volume, "/vol"),
        {"destination": "/vol/target", "type": "tmpfs", "source": "planted", "options": []},
    ]
    with exchanging(volume):
        outputs = await starts(
            rt, mounts, ["grep", "-c", " - tmpfs planted ", "/proc/self/mountinfo"]
        )
    assert outputs
    assert set(outputs) == {"1\n"}
    assert mounts_of(rt) == before
    assert list(victim.iterdir()) == []


async def test_a_bind_below_an_exchanged_directory_makes_nothing_outside(
    rt: harness.Runtime,
) -> None:
    victim = rt.directory / "victim"
    victim.mkdir()
    source = rt.directory / "source"
    source.mkdir()
    file = rt.directory / "file"
    file.write_text("")
    volume = volume_with_link(rt, victim)
    mounts = [bind(volume, "/vol"), bind(source, "/vol/target/made/deep"),
              bind(file, "/vol/target/dir/file")]  # fmt: skip
    with exchanging(volume):
        await starts(rt, mounts, ["true"])
    assert list(victim.iterdir()) == []


async def test_a_working_directory_made_in_an_exchanged_one_stays_inside(
    rt: harness.Runtime,
) -> None:
    victim = rt.directory / "victim"
    victim.mkdir()
    volume = volume_with_link(rt, victim)
    with exchanging(volume):
        for number in range(STARTS):
            name = f"n{number}"
            spec = rt.spec(["true"], name=name, cwd="/vol/target/work")
            spec["mounts"].append(bind(volume, "/vol"))
            try:
                await rt.run(spec, name)
            except CreateError:
                continue
    assert list(victim.iterdir()) == []


async def test_an_exchanged_masked_path_is_masked_or_refused(rt: harness.Runtime) -> None:
    """CVE-2023-27561: the mask is inside, on what the path leads to at that moment, or nowhere."""
    victim = rt.directory / "victim"
    victim.mkdir()
    (rt.layer / str(victim).lstrip("/")).mkdir(parents=True)  # the same path, inside
    volume = volume_with_link(rt, victim)
    before = mounts_of(rt)
    outputs = []
    with exchanging(volume):
        for number in range(STARTS):
            name = f"n{number}"
            spec = rt.spec(["grep", "-c", " - tmpfs masked ", "/proc/self/mountinfo"], name=name)
            spec["mounts"].append(bind(volume, "/vol"))
            spec["linux"]["maskedPaths"] = ["/vol/target"]
            spec["linux"]["readonlyPaths"] = []
            try:
                outputs.append((await rt.run(spec, name))[1])
            except CreateError:
                continue
    assert outputs
    assert set(outputs) == {"1\n"}  # a mask of the host's directory would be gone by the pivot
    assert mounts_of(rt) == before
    assert os.access(victim, os.W_OK)
