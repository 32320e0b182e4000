"""What is done to shims and spawners in tests of adoption, and how its outcome is found."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from runtimeshim.client import Shim, ShimError, connect_shim
from tests.integration import harness

SETTLE_SECONDS = 20.0


def shim_pid(shim: Shim) -> int:
    """Return the process that holds the container's socket now: the one that named itself so."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "comm").read_text().strip()
                log = os.readlink(entry / "fd/2")
            except OSError:  # it has gone meanwhile
                continue
            if name == f"shim {shim.container_id}"[:15] and log.startswith(str(run_of(shim))):
                return int(entry.name)
    raise LookupError(f"no shim of {shim.container_id}")


def shim_of(init: int) -> int:
    """Return the shim of a container that has had no other, by its init.

    For a moment the init's parent is the process that has created it, and is at its end.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        parent = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{parent}/comm").read_text().startswith("shim "):
                return parent
        time.sleep(0.001)
    raise LookupError(f"no shim is the parent of {init}")


def run_of(shim: Shim) -> Path:
    return shim.bundle.parent.parent


async def killed(rt: harness.Runtime, shim: Shim) -> Shim:
    """Kill a shim and return the connection to its successor."""
    old = shim_pid(shim)
    os.kill(old, signal.SIGKILL)
    found: list[Shim] = []

    async def look() -> bool:
        try:
            found.append(await connect_shim(shim.bundle))
        except ShimError:
            return False
        return True

    await harness.until_async(look)
    rt.shims.append(found[0])
    return found[0]


async def kill_spawner(rt: harness.Runtime) -> None:
    old = rt.spawner.pid
    os.kill(old, signal.SIGKILL)
    await harness.until(lambda: rt.spawner.pid != old and harness.alive(rt.spawner.pid))


def is_ward(rt: harness.Runtime, shim: int) -> bool:
    """Whether the spawner holds a duplicate of one of the shim's pipes."""

    def pipes(pid: int) -> set[str]:
        links = set()
        try:
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                links.add(os.readlink(fd))
        except OSError:  # closed, or the process has gone, meanwhile
            return set()
        return {link for link in links if link.startswith("pipe:")}

    return len(pipes(rt.spawner.pid) & pipes(shim)) >= 2
