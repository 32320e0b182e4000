"""Attacks on the shim: its log's path, and clients that come and go (EXECUTOR.md, section 2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtimeshim.client import CreateError, Shim, ShimError, ShimOptions, connect_shim
from tests.integration import bundles, harness
from tests.integration.adoption import shim_of

pytestmark = pytest.mark.integration

ROUNDS = 1000
# What an allocator may come to hold without a leak; 1000 leaks of 100 bytes are more.
SLACK_KIB = 96


# A log directory that the pod has mounted: what is in it, the container may exchange


async def test_a_link_in_the_place_of_the_log_is_not_followed(rt: harness.Runtime) -> None:
    victim = rt.directory / "victim"
    victim.write_text("untouched\n")
    rt.log("c").symlink_to(victim)
    with pytest.raises(CreateError, match=r"the log .* cannot be opened"):
        await rt.create(rt.spec(["echo", "x"]))
    assert victim.read_text() == "untouched\n"


async def test_a_link_to_nowhere_in_the_place_of_the_log_makes_no_file(
    rt: harness.Runtime,
) -> None:
    victim = rt.directory / "victim"
    rt.log("c").symlink_to(victim)
    with pytest.raises(CreateError, match=r"the log .* cannot be opened"):
        await rt.create(rt.spec(["echo", "x"]))
    assert not victim.exists()


async def test_a_link_on_the_way_to_the_log_is_not_followed(rt: harness.Runtime) -> None:
    """kubelet's logs are in a directory of each container's below the pod's."""
    victim = rt.directory / "victim"
    victim.mkdir()
    logs = rt.directory / "logs"
    logs.mkdir()
    (logs / "c").symlink_to(victim)
    bundle = bundles.write(rt.run_dir / "containers/c", rt.spec(["echo", "x"]))
    rootfs = bundles.overlay(rt.layer, rt.directory / "rw")
    options = ShimOptions(rootfs, logs / "c/0.log", log_directory=logs)
    with pytest.raises(CreateError, match=r"the log .* cannot be opened"):
        await rt.spawner.spawn_shim("c", bundle, options)
    assert list(victim.iterdir()) == []


async def test_a_link_that_comes_with_a_rotation_is_not_followed(rt: harness.Runtime) -> None:
    victim = rt.directory / "victim"
    victim.write_text("untouched\n")
    shim = await rt.start(rt.spec(["sh", "-c", "echo before; read x; echo after"]), stdin=True)
    await harness.until(lambda: "before" in rt.log("c").read_text())
    old = rt.log("c").rename(rt.directory / "old.log")
    rt.log("c").symlink_to(victim)
    with pytest.raises(ShimError):
        await shim.reopen_log()
    read, write = os.pipe()
    await shim.attach(stdin=read)
    os.close(read)
    os.write(write, b"go\n")
    await shim.wait()
    os.close(write)
    assert victim.read_text() == "untouched\n"
    assert old.read_text().endswith(" stdout F after\n")


# Clients that come and go


def held(pid: int) -> tuple[list[str], int, int]:
    """Return the fds and the number of threads of a process, and its private memory in KiB."""
    fds = sorted(os.listdir(f"/proc/{pid}/fd"))
    threads = len(os.listdir(f"/proc/{pid}/task"))
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    memory = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return fds, threads, memory


async def attach_and_leave(shim: Shim, *, speak: bool) -> None:
    """Attach to all three streams, and go; the shim learns of it by the pipes alone."""
    stdin, out = os.pipe(), os.pipe()
    await shim.attach(stdin=stdin[0], stdout=out[1], stderr=out[1])
    if speak:
        os.write(stdin[1], b"said\n")
    for fd in (*stdin, *out):
        os.close(fd)


@pytest.mark.parametrize("speak", [False, True])
async def test_a_thousand_attaches_leave_nothing(rt: harness.Runtime, speak: bool) -> None:
    shim = await rt.start(rt.spec(["cat"]), stdin=True)
    pid = shim_of(shim.pid)

    async def settled() -> None:
        await harness.until(lambda: held(pid)[:2] == calm)

    calm = held(pid)[:2]
    for _ in range(100):
        await attach_and_leave(shim, speak=speak)
    await settled()
    before = held(pid)[2]
    for _ in range(ROUNDS):
        await attach_and_leave(shim, speak=speak)
    await settled()
    assert held(pid)[2] - before < SLACK_KIB


async def test_a_thousand_connections_leave_nothing(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    pid = shim_of(shim.pid)
    calm, before = held(pid)[:2], 0
    for number in range(ROUNDS + 100):
        (await connect_shim(shim.bundle)).close()
        if number == 99:
            before = held(pid)[2]
    await harness.until(lambda: held(pid)[:2] == calm)
    assert held(pid)[2] - before < SLACK_KIB
