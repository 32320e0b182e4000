"""RuntimeReady says whether pods can be made, and what could not be recorded is made up for."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from runtimeshim.linux import mounts
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry

SLEEP = ("sleep", "3600")
BRIEF = 5.0  # less than it waits for the spawner where a caller has more time


def condition(daemon: Daemon, seconds: float = RPC_SECONDS) -> cri.RuntimeCondition:
    status = daemon.runtime.Status(cri.StatusRequest(), timeout=seconds).status
    (found,) = (each for each in status.conditions if each.type == "RuntimeReady")
    return found


def assert_ready(daemon: Daemon) -> None:
    found = condition(daemon)
    assert (found.status, found.reason, found.message) == (True, "", "")


def assert_not_ready(daemon: Daemon, reason: str, message: str, seconds: float = 30.0) -> None:
    found = condition(daemon, seconds)
    assert (found.status, found.reason) == (False, reason)
    assert message in found.message


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the spawner's end")


def test_a_spawner_that_died_is_back_before_anybody_asks(daemon: Daemon) -> None:
    assert_ready(daemon)
    end(daemon.spawner_pid())
    assert_ready(daemon)


def test_a_spawner_that_cannot_be_started(daemon: Daemon, registry: Registry) -> None:
    pods = Pods(daemon)
    pods.pull(registry)
    log = daemon.run_dir / "spawner.log"
    log.unlink(missing_ok=True)
    log.mkdir()  # what it writes to
    end(daemon.spawner_pid())
    assert_not_ready(daemon, "SpawnerNotReady", "cannot be started")
    assert_not_ready(daemon, "SpawnerNotReady", str(log))
    said = refused("UNAVAILABLE", pods.run_pod)
    assert "cannot be started" in said
    log.rmdir()
    assert_ready(daemon)
    pods.remove_pod(pods.run_pod())


def test_a_spawner_that_does_not_answer(daemon: Daemon) -> None:
    spawner = daemon.spawner_pid()
    os.kill(spawner, signal.SIGSTOP)
    try:
        assert_not_ready(daemon, "SpawnerNotReady", "does not answer", seconds=BRIEF)
        assert_not_ready(daemon, "SpawnerNotReady", f"(pid {spawner})", seconds=BRIEF)
    finally:
        os.kill(spawner, signal.SIGCONT)
    assert_ready(daemon)
    assert daemon.spawner_pid() == spawner


@pytest.fixture
def small(make_daemon: Callable[[], Daemon]) -> Iterator[Daemon]:
    """A daemon whose root is a small file system of its own."""
    daemon = make_daemon()
    daemon.root.mkdir()
    mounts.mount("small", str(daemon.root), "tmpfs", 0, "size=24m")
    try:
        daemon.start()
        yield daemon
        daemon.remove_pods()
        daemon.stop()
    finally:
        daemon.kill9()
        mounts.umount(str(daemon.root))


def fill(directory: Path) -> Path:
    """Fill a file system to its last byte; returns the file that does."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as err:
                assert err.errno == errno.ENOSPC
    return path


def until_full(daemon: Daemon) -> Path:
    """Fill the root until the database has used up what its log has of old space."""
    filler = fill(daemon.root)
    wait_for(lambda: not condition(daemon).status, "the database's log to be full")
    return filler


def test_a_full_disk(small: Daemon, registry: Registry) -> None:
    pods = Pods(small)
    pods.pull(registry)
    config = pods.config(linux=cri.LinuxPodSandboxConfig())  # with an init and a network
    pod, init = pods.run_pod(), pods.run_pod(config)
    code = pods.run(pod, "sh", "-c", "sleep 1; exit 7", linux=cri.LinuxContainerConfig())
    other = pods.config()
    filler = until_full(small)
    assert_not_ready(small, "DatabaseNotWritable", "full")
    for pid in namespace_init(pods, init):
        os.kill(pid, signal.SIGKILL)
    said = refused("UNAVAILABLE", pods.run_pod, other)
    assert "full" in said and "file system" in said
    time.sleep(1.5)  # the container ends meanwhile, and the watch has tried to say so
    assert pods.pod_status(pod).state == cri.SANDBOX_READY
    filler.unlink()
    assert_ready(small)
    assert pods.exited(code).exit_code == 7
    wait_for(lambda: pods.pod_status(init).state == cri.SANDBOX_NOTREADY, "the lost init to count")
    again = pods.run_pod(other)
    assert pods.pod_status(again).state == cri.SANDBOX_READY


def namespace_init(pods: Pods, pod: str) -> list[int]:
    pin = pods.daemon.run_dir / "sandboxes" / pod / "ns/pid"
    inode = pin.stat().st_ino
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/pid").stat().st_ino == inode:
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    assert found
    return found


def test_a_creation_that_could_not_be_undone_on_disk_frees_its_name(
    small: Daemon, registry: Registry
) -> None:
    pods = Pods(small)
    pods.pull(registry)
    pod = pods.run_pod()
    before = pods.remains()
    metadata = cri.ContainerMetadata(name="same")
    for _ in range(20):  # the log's old space is used up in one of these, at any place
        filler = fill(small.root)
        for _ in range(10):
            with contextlib.suppress(grpc.RpcError):
                pods.remove(pods.create(pod, *SLEEP, metadata=metadata))
        filler.unlink()
        for container in pods.containers():
            pods.remove(container.id)
        pods.remove(pods.create(pod, *SLEEP, metadata=metadata))
    pods.assert_remains(before)
