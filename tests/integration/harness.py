"""A private spawner with busybox containers, for tests below the CRI.

Their cgroups are made by cgroupfs, or by the driver of CRISERVER_TEST_CGROUP_DRIVER:

    CRISERVER_TEST_CGROUP_DRIVER=systemd hack/vm test tests/integration/test_shim.py

"systemd" needs systemd as init and cgroup v2, so it is for the VM.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from runtimeshim.client import ExitRecord, Shim, ShimOptions, Spawner
from runtimeshim.linux import cgroups, systemd
from runtimeshim.linux.cgroups import units
from tests.integration import bundles

CGROUP_DRIVER = os.environ.get("CRISERVER_TEST_CGROUP_DRIVER", "cgroupfs")


class Runtime:
    """Containers of one test; `cgroup` is the parent of theirs."""

    def __init__(self, directory: Path, spawner: Spawner) -> None:
        self.directory = directory
        self.spawner = spawner
        self.cgroup_version = cgroups.manager().version
        self.cgroup = cgroup_parent(f"crtest-{os.getpid()}-{directory.name}")
        self.layer = bundles.make_layer(directory / "layer")
        self.shims: list[Shim] = []

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def spec(self, args: list[str], name: str = "c", **process: Any) -> dict[str, Any]:
        return bundles.spec(args, self.cgroup_of(name), **process)

    def cgroup_of(self, name: str) -> str:
        return cgroup_below(self.cgroup, name)

    async def create(self, spec: dict[str, Any], name: str = "c", **options: Any) -> Shim:
        bundle = bundles.write(self.run_dir / "containers" / name, spec)
        rootfs = bundles.overlay(self.layer, self.directory / f"rw-{name}")
        shim = await self.spawner.spawn_shim(
            name, bundle, ShimOptions(rootfs, self.log(name), **options)
        )
        self.shims.append(shim)
        return shim

    async def start(self, spec: dict[str, Any], name: str = "c", **options: Any) -> Shim:
        shim = await self.create(spec, name, **options)
        await shim.start()
        return shim

    async def run(self, spec: dict[str, Any], name: str = "c") -> tuple[ExitRecord, str]:
        """Run to the end; returns the record, and the output without the log's prefixes."""
        shim = await self.start(spec, name)
        record = await shim.wait()
        return record, self.output(name)

    def output(self, name: str = "c") -> str:
        lines = self.log(name).read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # it is being written
            lines.pop()
        texts = []
        for number, line in enumerate(lines):
            fields = line.split(" ", 3)
            assert len(fields) == 4, (
                f"line {number} is torn: {lines[max(0, number - 2) : number + 3]}"
            )
            texts.append(fields[3])
        return "".join(texts)


@asynccontextmanager
async def runtime(directory: Path, workers: dict[str, str] | None = None) -> AsyncIterator[Runtime]:
    """Start a spawner in `directory`; afterwards nothing of it is left, or the test fails."""
    (directory / "run/containers").mkdir(parents=True)
    spawner = await Spawner.connect(directory / "run", workers or {})
    made = Runtime(directory, spawner)
    async with AsyncExitStack() as undo:  # all of it, though a part fails
        undo.callback(lambda: remove_cgroups(made.cgroup))
        undo.push_async_callback(_end_spawner, made)
        undo.push_async_callback(_delete_containers, made)
        yield made
    assert_no_crash(made.run_dir)


async def _delete_containers(made: Runtime) -> None:
    async with AsyncExitStack() as undo:
        for shim in reversed(made.shims):  # the stack turns them round again
            undo.push_async_callback(shim.delete)


async def _end_spawner(made: Runtime) -> None:
    try:
        await made.spawner.retire()
    finally:
        await made.spawner.close()
    await until(lambda: not alive(made.spawner.pid))


def assert_no_crash(run_dir: Path) -> None:
    """Assert that no shim or worker ended by an error of its own: adoption would conceal it."""
    log = run_dir / "spawner.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    crashes = [line for line in lines if line.startswith("child ")]
    assert not crashes, f"a child of the spawner crashed: {crashes}"


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition; AssertionError when it has not come by then."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is the kernel's, nobody signals it
            await asyncio.sleep(0.01)


async def until_async(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait for a condition that has to be awaited itself."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def cgroup_file(v1: str, v2: str) -> str:
    """Return where a container sees a file of its cgroup: CONTROLLER/FILE on v1, FILE on v2."""
    return f"/sys/fs/cgroup/{v1 if cgroups.manager().version == 1 else v2}"


def cgroup_parent(name: str) -> str:
    """Name a cgroup that containers of a test go below, or a slice: "-" would nest it."""
    return f"{name.replace('-', '_')}.slice" if CGROUP_DRIVER == "systemd" else f"/{name}"


def cgroup_below(parent: str, name: str) -> str:
    """Name the cgroup of a container; systemd knows one scope of a name, wherever it is."""
    if CGROUP_DRIVER == "systemd":
        return f"{parent}:{parent.removesuffix('.slice')}:{name}"
    return f"{parent}/{name}"


def cgroup_dirs(path: str) -> list[Path]:
    """Return the directories of a cgroup, or of a unit, in every hierarchy."""
    relative = units.directory(path).lstrip("/")
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    found = [root / relative for root in roots if not root.is_symlink()]
    return [directory for directory in found if directory.is_dir()]


def remove_cgroups(path: str) -> None:
    """Remove a test's parent cgroup; children that are still there are the test's failure."""
    for directory in cgroup_dirs(path):
        assert not [child for child in directory.iterdir() if child.is_dir()], directory
        if not units.is_unit(path):
            directory.rmdir()
    if units.is_unit(path):
        systemd.stop(path)
    assert cgroup_dirs(path) == []


def alive(pid: int) -> bool:
    """Tell whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
