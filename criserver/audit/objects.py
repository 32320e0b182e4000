"""Checks of what carries the id of a pod or container.

An id is 256 random bits of ours, so what carries the id of an object that this daemon remembers to
have removed is this daemon's own; another daemon's is never touched. What is below our run
directory is ours by its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

from api.cri import api_pb2 as cri
from criserver.audit.stray import Stray
from criserver.recovery import remove_bundle_of_nobody
from criserver.runtime import Runtime
from criserver.store.containers import State
from podsandbox.pins import is_pinned
from runtimeshim.linux import mounts, process_state

ID = re.compile(r"[0-9a-f]{64}")
LINKS_OF_A_LEAF = 2  # of a cgroup without cgroups in it
SHIM = re.compile(r"shim ([0-9a-f]{10})")  # runtimeshim.shim.supervisor names them


class Bundles:
    """RUN/containers/ID, with the shim and the processes behind it."""

    kinds = ("bundle",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._directory = runtime.config.run_dir / "containers"

    async def find(self) -> list[Stray]:
        """Find the bundles whose container is in no record."""
        there = _entries(self._directory)
        known = self._runtime.containers.mirror
        return [
            Stray("bundle", str(self._directory / name), mark, name)
            for name, mark in there
            if name not in known
        ]

    async def remove(self, stray: Stray) -> None:
        """End what is left of the container, as a start of the daemon would."""
        if stray.owner not in self._runtime.containers.mirror:
            await remove_bundle_of_nobody(Path(stray.name))


class Sandboxes:
    """RUN/sandboxes/ID: pins, files, a pid 1, and the network of a pod."""

    kinds = ("sandbox",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._directory = runtime.config.run_dir / "sandboxes"

    async def find(self) -> list[Stray]:
        """Find the directories whose pod is in no record."""
        there = _entries(self._directory)
        known = self._runtime.sandboxes.mirror
        return [
            Stray("sandbox", str(self._directory / name), mark, name)
            for name, mark in there
            if name not in known
        ]

    async def remove(self, stray: Stray) -> None:
        """Remove what a sandbox has."""
        if stray.owner not in self._runtime.sandboxes.mirror:
            await self._runtime.pods.remove(stray.owner)


class Mounts:
    """Mounts below RUN/containers/ID and RUN/sandboxes/ID of nobody."""

    kinds = ("mount",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._run_dir = runtime.config.run_dir

    async def find(self) -> list[Stray]:
        """Find the mounts that no pod has."""
        points = await asyncio.to_thread(_mount_points)
        return [
            Stray("mount", str(point), mark, owner)
            for point, mark in points
            if (owner := self._owner(point)) and self._runtime.history.alive.find(owner) is None
        ]

    def _owner(self, point: Path) -> str:
        for kind in ("containers", "sandboxes"):
            with contextlib.suppress(ValueError):
                parts = point.relative_to(self._run_dir / kind).parts
                return parts[0] if parts else ""
        return ""

    async def remove(self, stray: Stray) -> None:
        """Unmount it."""
        if self._runtime.history.alive.find(stray.owner) is None:
            await asyncio.to_thread(
                mounts.umount, stray.name, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW
            )


class Cgroups:
    """Cgroups named by the id of an object that is gone, with the processes in them."""

    kinds = ("cgroup",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def find(self) -> list[Stray]:
        """Find them in all hierarchies."""
        roots = [directory for _, directory in self._runtime.cgroups.directories("/")]
        there = await asyncio.to_thread(_named_by_id, roots)
        gone = self._runtime.history.gone(there.values())
        return [Stray("cgroup", path, "", key) for path, key in there.items() if key in gone]

    async def remove(self, stray: Stray) -> None:
        """Kill who is in it, and remove it."""
        if self._runtime.history.gone([stray.owner]):
            await asyncio.to_thread(self._runtime.cgroups.kill, stray.name)
            await asyncio.to_thread(self._runtime.cgroups.delete, stray.name)


class Shims:
    """Shims of containers that are gone, or that have ended without their shim's knowledge."""

    kinds = ("shim",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def find(self) -> list[Stray]:
        """Find the processes that are called so."""
        there = await asyncio.to_thread(lambda: list(_shims()))
        gone = self._runtime.history.gone_containers([prefix for _, prefix, _ in there])
        alive = {
            container.id[:10]: container
            for container in self._runtime.containers.mirror.made()
            if container.state is not State.EXITED or self._runtime.shims.get(container.id)
        }
        return [
            Stray("shim", f"process {pid}", start, gone[prefix])
            for pid, prefix, start in there
            if prefix in gone and prefix not in alive
        ]

    async def remove(self, stray: Stray) -> None:
        """Kill it, unless its pid is another process's by now."""
        pid = int(stray.name.split()[1])
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if process_state.start_time(pid) == stray.mark:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


class Losses:
    """The reverse: what a record says should be there and is not. Nothing is removed."""

    kinds = ("container without shim", "pod without namespace")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def find(self) -> list[Stray]:
        """Find running containers without a shim, and ready pods without their namespaces."""
        runtime = self._runtime
        lost = [
            Stray("container without shim", container.id, owner=container.id, removable=False)
            for container in runtime.containers.mirror.made()
            if container.state is not State.EXITED and runtime.shims.get(container.id) is None
        ]
        for sandbox in runtime.sandboxes.mirror.made():
            pins = (sandbox.runtime_values or {}).get("namespaces", {})
            missing = [kind for kind, path in pins.items() if not is_pinned(Path(path))]
            if sandbox.state == cri.SANDBOX_READY and missing:
                name = f"{sandbox.id} ({', '.join(missing)})"
                lost.append(Stray("pod without namespace", name, "", sandbox.id, removable=False))
        return lost

    async def remove(self, stray: Stray) -> None:
        """Do nothing: whoever asked for it has to remove it and ask again."""


def _entries(directory: Path) -> list[tuple[str, str]]:
    """Return the names in a directory that are ids, each with its inode."""
    try:
        with os.scandir(directory) as entries:
            return [(e.name, str(e.inode())) for e in entries if ID.fullmatch(e.name)]
    except FileNotFoundError:  # no pod since boot
        return []


def _mount_points() -> list[tuple[Path, str]]:
    """Return where something is mounted, and the mount's id (man 5 proc, mountinfo)."""
    with Path("/proc/self/mountinfo").open("rb") as lines:
        fields = [line.split(b" ", 5) for line in lines]
    return [
        (Path(os.fsdecode(point.decode("unicode_escape").encode("latin-1"))), mount.decode())
        for mount, _, _, _, point, _ in fields
    ]


def _named_by_id(roots: Collection[str]) -> dict[str, str]:
    """Return {path within its hierarchy: id} of the cgroups whose name has an id in it."""
    found: dict[str, str] = {}
    for root in dict.fromkeys(roots):
        _collect(root, "", found)
    return found


def _collect(root: str, path: str, found: dict[str, str]) -> None:
    """Go down to the cgroups with an id; a leaf, which has forty files, is not listed."""
    for name, is_leaf in _children(root + path):
        below = f"{path}/{name}"
        match = ID.search(name)
        if match is not None:
            found[below] = match[0]
        if not is_leaf:
            _collect(root, below, found)


def _children(directory: str) -> Iterator[tuple[str, bool]]:
    """Give the names of a cgroup's children, and whether they have none; gone ones are left out."""
    try:
        with os.scandir(directory) as entries:
            children = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return
    for child in children:
        with contextlib.suppress(FileNotFoundError):
            yield child.name, child.stat(follow_symlinks=False).st_nlink <= LINKS_OF_A_LEAF


def _shims() -> Iterator[tuple[int, str, str]]:
    """Give the pid, the begin of the container's id, and the start time of each shim."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/comm", encoding="ascii", errors="replace") as file:
                match = SHIM.fullmatch(file.read().rstrip("\n"))
            if match is not None:
                yield int(name), match[1], process_state.start_time(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
