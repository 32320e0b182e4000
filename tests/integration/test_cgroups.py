"""Cgroups on the real kernel: limits hold, kills reach everyone, nothing is left."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtimeshim.linux import cgroups, syscalls
from runtimeshim.linux.cgroups import device_filter, devices, files

pytestmark = pytest.mark.integration

FORK_BOMB = "import os\nwhile True:\n    os.fork()\n"
HOG = "import mmap\nm = mmap.mmap(-1, 64 << 20)\nfor i in range(0, 64 << 20, 4096): m[i] = 1\n"
PAUSE = "import signal\nsignal.pause()\n"

Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def manager() -> cgroups.CgroupManager:
    return cgroups.manager()


@pytest.fixture
def path(manager: cgroups.CgroupManager) -> Iterator[str]:
    path = f"/criserver-test-{secrets.token_hex(4)}/pod/container"
    manager.create(path)
    yield path
    top = path[: path.index("/", 1)]
    manager.kill(top)
    manager.delete(top)
    assert not any(os.path.exists(directory) for _, directory in manager.directories(top))


@pytest.fixture
def spawn(manager: cgroups.CgroupManager, path: str) -> Iterator[Spawn]:
    """Start python programs that run only once they have joined the cgroup."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, inside: str | None = None, **options: object) -> subprocess.Popen[bytes]:
        gate = "import sys\nsys.stdin.buffer.read(1) or sys.exit(99)\n"
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", gate + code],
            stdin=subprocess.PIPE,
            **options,  # type: ignore[call-overload]
        )
        started.append(process)
        manager.join(inside or path, process.pid)
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.close()
        return process

    yield start
    manager.kill(path)
    for process in started:
        process.kill()  # one that could not join
        process.wait(timeout=10)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def membership(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":")[1]: line.split(":")[2] for line in lines}


def test_a_process_joins_every_hierarchy(
    manager: cgroups.CgroupManager, path: str, spawn: Spawn
) -> None:
    process = spawn(PAUSE)
    groups = membership(process.pid)
    if manager.version == 2:
        assert groups[""] == path
    else:
        groups.pop("", None)
        assert groups
        assert set(groups.values()) == {path}
    assert manager.pids(path) == [process.pid]
    assert manager.pids("/" + path.split("/")[1]) == [process.pid]


def test_zero_is_the_caller(manager: cgroups.CgroupManager, path: str) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            manager.join(path, 0)
            os._exit(0 if manager.pids(path) == [os.getpid()] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_create_is_repeatable(manager: cgroups.CgroupManager, path: str) -> None:
    manager.create(path)


def test_a_memory_limit_kills_and_is_counted(
    manager: cgroups.CgroupManager, path: str, spawn: Spawn
) -> None:
    limit = 32 << 20
    swap = {"swap": limit} if manager.swap else {}
    manager.apply(path, {"memory": {"limit": limit, **swap}})
    assert manager.oom_kills(path) == 0
    assert spawn(HOG).wait(timeout=60) == -signal.SIGKILL
    assert manager.oom_kills(path) == 1


def test_a_memory_limit_can_be_raised_and_lowered_with_its_swap(
    manager: cgroups.CgroupManager, path: str
) -> None:
    for limit in (32 << 20, 128 << 20, 16 << 20, -1, 64 << 20):
        manager.apply(path, {"memory": {"limit": limit, "swap": limit}})


def test_a_memory_limit_below_the_usage_says_what_is_in_use(
    manager: cgroups.CgroupManager, path: str, spawn: Spawn
) -> None:
    # An mlocked page cannot be reclaimed, so the kernel has to refuse the limit.
    code = (
        "import ctypes, mmap, signal, os\n"
        "m = mmap.mmap(-1, 8 << 20)\n"
        "for i in range(0, 8 << 20, 4096): m[i] = 1\n"
        "ctypes.CDLL(None).mlockall(3)\n"
        "os.write(1, b'x')\nsignal.pause()\n"
    )
    process = spawn(code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"x"
    with pytest.raises(cgroups.CgroupError, match="in use"):
        manager.apply(path, {"memory": {"limit": 1 << 20, "checkBeforeUpdate": True}})
    process.stdout.close()


def test_a_pids_limit_stops_forks(manager: cgroups.CgroupManager, path: str, spawn: Spawn) -> None:
    manager.apply(path, {"pids": {"limit": 2}})
    code = (
        "import os, signal\n"
        "if os.fork() == 0: signal.pause()\n"
        "try:\n    os.fork()\n"
        "except BlockingIOError:\n    os._exit(42)\n"
    )
    assert spawn(code).wait(timeout=10) == 42


def test_cpu_limits_reach_the_kernel(manager: cgroups.CgroupManager, path: str) -> None:
    manager.apply(
        path, {"cpu": {"shares": 512, "quota": 25000, "period": 50000, "cpus": "0", "mems": "0"}}
    )
    # A longer period with a smaller quota, and back: each order of writes must be accepted.
    manager.apply(path, {"cpu": {"quota": 1000, "period": 1000000}})
    manager.apply(path, {"cpu": {"quota": 25000, "period": 50000}})
    where = dict(manager.directories(path))
    if manager.version == 2:
        assert files.read(f"{where['']}/cpu.max") == "25000 50000"
        assert files.read(f"{where['']}/cpuset.cpus") == "0"
    else:
        assert files.read(f"{where['cpu']}/cpu.shares") == "512"
        assert files.read(f"{where['cpu']}/cpu.cfs_quota_us") == "25000"
        assert files.read(f"{where['cpu']}/cpu.cfs_period_us") == "50000"
        assert files.read(f"{where['cpuset']}/cpuset.cpus") == "0"


def test_only_allowed_devices_open(manager: cgroups.CgroupManager, path: str, spawn: Spawn) -> None:
    manager.apply(path, {"devices": [{"allow": False, "access": "rwm"}]})
    code = (
        "import os\n"
        "os.open('/dev/null', os.O_RDWR)\nos.open('/dev/urandom', os.O_RDONLY)\n"
        "try:\n    os.open('/dev/kmsg', os.O_RDONLY)\n"
        "except PermissionError:\n    os._exit(42)\n"
    )
    assert spawn(code).wait(timeout=10) == 42
    kmsg = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    manager.apply(path, {"devices": [{"allow": False, "access": "rwm"}, kmsg]})
    assert spawn(code).wait(timeout=10) == 0


def test_kill_reaches_a_fork_bomb_and_descendant_cgroups(
    manager: cgroups.CgroupManager, path: str, spawn: Spawn
) -> None:
    manager.apply(path, {"pids": {"limit": 200}})
    # Siblings: on v2 a cgroup with children that are limited holds no processes itself.
    for name in ("one", "two"):
        manager.create(f"{path}/{name}")
    bomb = spawn(FORK_BOMB, f"{path}/one", stderr=subprocess.DEVNULL)
    eventually(lambda: len(manager.pids(path)) > 50)
    manager.join(f"{path}/two", manager.pids(path)[-1])
    manager.kill(path)
    bomb.wait(timeout=10)
    eventually(lambda: manager.pids(path) == [])


def test_kill_reaches_frozen_processes(
    manager: cgroups.CgroupManager, path: str, spawn: Spawn
) -> None:
    process = spawn(PAUSE)
    where = dict(manager.directories(path))
    if manager.version == 2:
        files.write(f"{where['']}/cgroup.freeze", "1")
    else:
        files.write(f"{where['freezer']}/freezer.state", "FROZEN")
    manager.kill(path)
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_kill_and_delete_of_what_is_gone_do_nothing(manager: cgroups.CgroupManager) -> None:
    manager.kill("/criserver-test-never-made")
    manager.delete("/criserver-test-never-made")
    assert manager.pids("/criserver-test-never-made") == []


def test_delete_of_a_cgroup_in_use_names_its_processes(
    manager: cgroups.CgroupManager, path: str, spawn: Spawn
) -> None:
    process = spawn(PAUSE)
    with pytest.raises(cgroups.CgroupError, match=f"still in use .*{process.pid}"):
        manager.delete(path)


def test_delete_waits_for_an_exit_in_progress(
    manager: cgroups.CgroupManager, path: str, spawn: Spawn
) -> None:
    process = spawn(PAUSE)
    process.kill()
    process.wait()
    manager.delete(path)
    assert not any(os.path.exists(directory) for _, directory in manager.directories(path))


@pytest.fixture
def v2_cgroup() -> Iterator[str]:
    """A cgroup in the v2 tree, which a hybrid machine has beside its v1 hierarchies."""
    root = "/sys/fs/cgroup"
    if not os.path.exists(f"{root}/cgroup.controllers"):
        root += "/unified"
    directory = f"{root}/criserver-test-{secrets.token_hex(4)}"
    os.mkdir(directory)
    yield directory
    files.remove(directory)


def opens(directory: str, device: str) -> bool:
    """Tell whether a process in the v2 cgroup can open the device for reading."""
    pid = os.fork()
    if pid == 0:
        try:
            files.write(f"{directory}/cgroup.procs", "0")
            os.open(device, os.O_RDONLY)
            os._exit(0)
        except PermissionError:
            os._exit(1)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return code == 0


def test_the_v2_device_filter_is_enforced_and_replaced(v2_cgroup: str) -> None:
    assert opens(v2_cgroup, "/dev/kmsg")
    deny = [{"allow": False, "access": "rwm"}]
    device_filter.attach(v2_cgroup, device_filter.program(devices.allowlist(deny)))
    assert opens(v2_cgroup, "/dev/null")
    assert not opens(v2_cgroup, "/dev/kmsg")
    kmsg = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    device_filter.attach(v2_cgroup, device_filter.program(devices.allowlist([*deny, kmsg])))
    assert opens(v2_cgroup, "/dev/kmsg")
    allow = [{"allow": True, "access": "rwm"}]
    device_filter.attach(v2_cgroup, device_filter.program(devices.allowlist(allow)))
    assert opens(v2_cgroup, "/dev/kmsg")


def test_the_v2_kill_of_the_kernel(v2_cgroup: str) -> None:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", PAUSE])
    try:
        files.write(f"{v2_cgroup}/cgroup.procs", str(process.pid))
        root, _, name = v2_cgroup.rpartition("/")
        v2 = cgroups.manager(root)
        assert v2.version == 2
        assert v2.pids("/" + name) == [process.pid]
        v2.kill("/" + name)
        assert process.wait(timeout=10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_a_process_is_forked_into_a_v2_cgroup_of_its_own(v2_cgroup: str) -> None:
    root, _, name = v2_cgroup.rpartition("/")
    manager = cgroups.manager(root)
    opened = manager.open_own(f"/{name}", "exec-1")
    assert opened is not None
    path, directory = opened
    read, write = os.pipe()
    pid = syscalls.fork_into_cgroup(directory)
    if pid == 0:
        os.write(write, Path("/proc/self/cgroup").read_bytes())
        os._exit(0)
    os.close(write)
    os.close(directory)
    assert os.waitpid(pid, 0)[1] == 0
    assert f"0::{path}" in os.read(read, 4096).decode().splitlines()
    os.close(read)
    assert manager.remove_empty(path)


def test_a_fork_into_what_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    with pytest.raises(OSError, match=r"clone3\(CLONE_INTO_CGROUP\)"):
        syscalls.fork_into_cgroup(directory)
    os.close(directory)


def test_a_v2_cgroup_that_cannot_be_made_is_none(v2_cgroup: str) -> None:
    manager = cgroups.manager(v2_cgroup.rpartition("/")[0])
    assert manager.open_own("/there/is/none", "exec-1") is None
