"""After a start: what is true is asked of the shims, the exit records and the kernel.

The database says what there should be; evidence says what there is. What cannot be found out is
EXITED with reason Unknown; what belongs to nobody is removed. Nothing here disturbs a container
that runs.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any

from api.cri import api_pb2 as cri
from criserver.bundle import remove_bundle
from criserver.runtime import Runtime
from criserver.shims import kill_remains
from criserver.store import database
from criserver.store.containers import Container, State
from criserver.store.sandboxes import Sandbox
from podsandbox.pins import is_pinned
from runtimeshim import exit_record
from runtimeshim.client import Shim, ShimError, connect_shim

log = logging.getLogger(__name__)

# How many objects are looked after at once: each has a socket open.
PARALLEL = 32

# What a shim that does not answer is given before its container counts as lost.
SHIM_SECONDS = 10.0


async def recover(runtime: Runtime, connection: sqlite3.Connection) -> None:
    """Bring the database, the processes, the mounts, the files and the network into agreement."""
    boot = database.boot_id()
    rebooted = database.recorded_boot(connection) not in (None, boot)
    if rebooted:
        log.info("the machine has been restarted: all running state is void")
    containers, sandboxes = runtime.containers.mirror, runtime.sandboxes.mirror
    await _each(_undo_container(runtime, container.id) for container in containers.unmade())
    await _each(_recover_container(runtime, container) for container in containers.made())
    await _each(remove_bundle_of_nobody(path) for path in _bundles_of_nobody(runtime))
    await _each(_undo_sandbox(runtime, sandbox.id) for sandbox in sandboxes.unmade())
    for sandbox in sandboxes.made():
        _recover_sandbox(runtime, sandbox, rebooted)
    _offer_unused(runtime)
    await runtime.pods.reconcile([sandbox.id for sandbox in sandboxes.made()])
    await runtime.images.recover([container.id for container in containers.made()])
    if rebooted:
        runtime.images.admin.check_after_crash()
    database.record_boot(connection, boot)


async def _each(works: Iterable[Awaitable[Any]]) -> None:
    """Await all, some at a time; the first failure ends the start of the daemon."""
    gate = asyncio.Semaphore(PARALLEL)

    async def one(work: Awaitable[Any]) -> None:
        async with gate:
            await work

    await asyncio.gather(*(one(work) for work in works))


def _bundles_of_nobody(runtime: Runtime) -> list[Path]:
    """Return the bundles whose container is not in the database."""
    directory = runtime.config.run_dir / "containers"
    return [path for path in directory.iterdir() if path.name not in runtime.containers.mirror]


async def _recover_container(runtime: Runtime, container: Container) -> None:
    bundle = runtime.bundle(container.id)
    shim = await _living_shim(bundle)
    if container.state is State.EXITED:
        if shim is not None:  # its end was recorded, and then the daemon's own came
            await shim.delete()
        return
    if shim is not None:
        await _adopt(runtime, container, shim)
        return
    record = await asyncio.to_thread(_exit_record, bundle)
    if record is not None:
        runtime.containers.exited(container.id, *record)
        return
    log.warning("container %s is lost: its shim is gone without an exit record", container.id)
    await asyncio.to_thread(kill_remains, bundle)
    runtime.shims.lost(container.id)


async def _adopt(runtime: Runtime, container: Container, shim: Shim) -> None:
    if container.state is State.CREATED:
        state, _ = await shim.call("state")
        if state["running"]:  # the daemon died between the start and its record
            runtime.containers.started(container.id, time.time_ns())
    runtime.shims.adopt(container.id, shim)


async def _living_shim(bundle: Path) -> Shim | None:
    try:
        async with asyncio.timeout(SHIM_SECONDS):
            return await connect_shim(bundle)
    except ShimError:  # the usual case: the container is over
        return None
    except TimeoutError:
        log.warning("the shim of %s does not answer for %g s", bundle.name, SHIM_SECONDS)
        return None


def _exit_record(bundle: Path) -> exit_record.ExitRecord | None:
    try:
        return exit_record.read(bundle)
    except (ValueError, KeyError, OSError) as err:
        log.warning("the exit record of %s cannot be read: %s", bundle.name, err)
        return None


async def _undo_container(runtime: Runtime, container_id: str) -> None:
    """Remove what a CreateContainer that died with the daemon has left."""
    log.info("container %s was half made: removed", container_id)
    await remove_bundle_of_nobody(runtime.bundle(container_id))
    await runtime.images.remove_rootfs(container_id)
    runtime.containers.remove(container_id)


async def remove_bundle_of_nobody(bundle: Path) -> None:
    """End and remove what a bundle without a container stands for; idempotent."""
    shim = await _living_shim(bundle)
    if shim is not None:
        await shim.delete()
    await asyncio.to_thread(kill_remains, bundle)
    await asyncio.to_thread(remove_bundle, bundle)


async def _undo_sandbox(runtime: Runtime, sandbox_id: str) -> None:
    """Remove what a RunPodSandbox that died with the daemon has left."""
    log.info("pod sandbox %s was half made: removed", sandbox_id)
    await runtime.pods.remove(sandbox_id)
    runtime.sandboxes.remove(sandbox_id)


def _offer_unused(runtime: Runtime) -> None:
    """Offer what may have been made without an answer: nobody has done anything with it yet.

    Who has its id never asks for the same name and attempt again; who has not is the kubelet that
    the earlier daemon did not come to answer, and its retry would fail until the object is removed.
    """
    for container in runtime.containers.mirror.made():
        if container.state is State.CREATED:
            runtime.operations.offer(container.id)
    for sandbox in runtime.sandboxes.mirror.made():
        if sandbox.state == cri.SANDBOX_READY and not runtime.containers.of_sandbox(sandbox.id):
            runtime.operations.offer(sandbox.id)


def _recover_sandbox(runtime: Runtime, sandbox: Sandbox, rebooted: bool) -> None:
    if sandbox.state != cri.SANDBOX_READY:
        return
    pins = (sandbox.runtime_values or {}).get("namespaces", {})
    lost = [kind for kind, path in pins.items() if not is_pinned(Path(path))]
    if rebooted or lost:
        why = "the machine was restarted" if rebooted else f"namespaces {lost} are gone"
        log.warning("pod sandbox %s is not ready any more: %s", sandbox.id, why)
        runtime.sandboxes.stopped(sandbox.id, time.time_ns())
    else:
        runtime.sandbox_watch.add(sandbox)
