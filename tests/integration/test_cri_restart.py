"""kill -9 of the daemon at any moment: the next command works, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from tests.integration.adoption import shim_of
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry


@pytest.fixture
def pods(daemon: Daemon, registry: Registry) -> Pods:
    made = Pods(daemon)
    made.pull(registry)
    return made


def crash(pods: Pods) -> None:
    pods.daemon.kill9()
    pods.daemon.start()


def pid_of(pods: Pods, container: str) -> int:
    return int(json.loads(pods.verbose_status(container).info["info"])["pid"])


def test_a_crash_between_any_two_commands_disturbs_nothing(pods: Pods) -> None:
    before = pods.remains()
    crash(pods)
    config = pods.config(linux=cri.LinuxPodSandboxConfig())
    pod = pods.run_pod(config)
    status = pods.pod_status(pod)
    crash(pods)
    assert pods.pod_status(pod) == status
    script = "echo up; trap 'exit 9' TERM; while :; do sleep 0.1; done"
    container = pods.create(pod, "sh", "-c", script, linux=cri.LinuxContainerConfig())
    created = pods.status(container)
    crash(pods)
    assert pods.status(container) == created
    pods.start(container)
    running = pods.status(container)
    wait_for(lambda: pods.output(container) == ["up"], "the trap to be set")
    crash(pods)
    assert pods.status(container) == running
    assert pods.exec(container, "echo", "still").stdout == b"still\n"
    crash(pods)
    pods.stop(container, 60)
    ended = pods.status(container)
    assert ended.exit_code == 9
    crash(pods)
    assert pods.status(container) == ended
    pods.remove(container)
    crash(pods)
    refused("NOT_FOUND", pods.status, container)
    pods.stop_pod(pod)
    crash(pods)
    assert pods.pod_status(pod).state == cri.SANDBOX_NOTREADY
    pods.remove_pod(pod)
    crash(pods)
    assert pods.pods() == []
    pods.assert_remains(before)


def test_a_container_that_exits_while_the_daemon_is_dead_has_its_true_code(pods: Pods) -> None:
    pod = pods.run_pod()
    container = pods.run(
        pod, "sh", "-c", "trap 'exit 42' TERM; echo up; while :; do sleep 0.1; done"
    )
    created = pods.create(pod, "true")
    pid, init = pid_of(pods, container), pid_of(pods, created)
    wait_for(lambda: pods.output(container) == ["up"], "the trap to be set")
    pods.daemon.kill9()
    now = time.time_ns()
    os.kill(pid, signal.SIGTERM)
    os.kill(init, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the container's end")
    wait_for(lambda: not Path(f"/proc/{init}").exists(), "the init's end")
    died = time.time_ns()
    pods.daemon.start()
    status = pods.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 42, "Error")
    assert now <= status.finished_at <= died + 10**9
    assert pods.exited(created).exit_code == 137


def test_not_one_of_10000_lines_is_missing(pods: Pods) -> None:
    pod = pods.run_pod()
    script = "i=0; while [ $i -lt 10000 ]; do i=$((i+1)); echo line-$i; done"
    container = pods.run(pod, "sh", "-c", f"sleep 1; {script}; exit 3")
    pods.daemon.kill9()
    log = pods.daemon.log_directory
    wait_for(lambda: any("line-5 " in f"{t} " for t in _last_lines(log)) or _ended(log), "lines")
    pods.daemon.start()
    pods.daemon.kill9()
    wait_for(lambda: _ended(log), "the last line")
    pods.daemon.start()
    assert pods.exited(container).exit_code == 3
    assert pods.output(container) == [f"line-{number}" for number in range(1, 10001)]


def _last_lines(directory: Path) -> list[str]:
    return [line for path in directory.rglob("*.log") for line in path.read_text().splitlines()[:5]]


def _ended(directory: Path) -> bool:
    return any("line-10000\n" in path.read_text() for path in directory.rglob("*.log"))


def test_a_crash_during_a_command_leaves_it_done_or_undone(pods: Pods) -> None:
    """The daemon dies at ten different moments of a pod's making."""
    before = pods.remains()
    for milliseconds in range(0, 50, 5):
        config = pods.config(linux=cri.LinuxPodSandboxConfig())
        request = cri.RunPodSandboxRequest(config=config)
        call = pods.daemon.runtime.RunPodSandbox.future(request, timeout=RPC_SECONDS)
        time.sleep(milliseconds / 1000)
        pods.daemon.kill9()
        call.cancel()
        pods.daemon.start()
        left = pods.pods()
        assert len(left) <= 1
        if left:
            assert left[0].metadata == config.metadata
            assert left[0].state == cri.SANDBOX_READY
            pods.remove_pod(left[0].id)
        pods.remove_pod(pods.run_pod(config))  # the name is free
    pods.assert_remains(before)


def test_a_retry_after_a_crash_is_handed_what_it_has_missed(pods: Pods) -> None:
    config = pods.config()
    pod = pods.run_pod(config)
    crash(pods)
    assert pods.run_pod(config) == pod
    assert pod in refused("ALREADY_EXISTS", pods.run_pod, config)
    metadata = cri.ContainerMetadata(name="c")
    container = pods.create(pod, "sleep", "3600", metadata=metadata)
    crash(pods)
    assert pods.create(pod, "sleep", "3600", metadata=metadata) == container
    refused("ALREADY_EXISTS", pods.create, pod, "sleep", "3600", metadata=metadata)
    pods.start(container)
    pods.remove_pod(pod)


def test_after_a_crash_what_somebody_has_used_is_not_handed_over(pods: Pods) -> None:
    used, stopped, taken = (pods.config() for _ in range(3))
    full, halted, early = (pods.run_pod(config) for config in (used, stopped, taken))
    metadata = cri.ContainerMetadata(name="c")
    pods.run(full, "sleep", "3600", metadata=metadata)
    crash(pods)
    pods.stop_pod(halted)
    pods.remove(pods.create(early, "true"))
    for config in (used, stopped, taken):
        refused("ALREADY_EXISTS", pods.run_pod, config)
    refused("ALREADY_EXISTS", pods.create, full, "true", metadata=metadata)
    for pod in (full, halted, early):
        pods.remove_pod(pod)


def test_a_crash_during_create_and_start(pods: Pods) -> None:
    pod = pods.run_pod()
    before = pods.remains()
    for milliseconds in range(0, 40, 5):
        metadata = cri.ContainerMetadata(name=f"c{milliseconds}")
        config = cri.ContainerConfig(
            metadata=metadata,
            image=cri.ImageSpec(image="registry.test/cri/busybox:latest"),
            command=["sleep", "3600"],
        )
        create = cri.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        call = pods.daemon.runtime.CreateContainer.future(create, timeout=RPC_SECONDS)
        time.sleep(milliseconds / 1000)
        pods.daemon.kill9()
        call.cancel()
        pods.daemon.start()
        for container in pods.containers():
            assert container.state == cri.CONTAINER_CREATED
            start = cri.StartContainerRequest(container_id=container.id)
            starting = pods.daemon.runtime.StartContainer.future(start, timeout=RPC_SECONDS)
            time.sleep(milliseconds / 10_000)
            pods.daemon.kill9()
            starting.cancel()
            pods.daemon.start()
            status = pods.status(container.id)
            assert status.state in (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING)
            command = Path(f"/proc/{pid_of(pods, container.id)}/cmdline").read_bytes()
            assert (command == b"sleep\x003600\x00") == (status.state == cri.CONTAINER_RUNNING)
            pods.remove(container.id)
    pods.assert_remains(before)
    pods.remove_pod(pod)


def test_sigterm_leaves_containers_running(pods: Pods) -> None:
    pod = pods.run_pod()
    container = pods.run(pod, "sleep", "3600")
    pid = pid_of(pods, container)
    pods.daemon.restart()  # asserts exit code 0
    assert pods.status(container).state == cri.CONTAINER_RUNNING
    assert pid_of(pods, container) == pid


def test_a_lost_container_is_unknown_255(pods: Pods) -> None:
    """The spawner and the shim are killed while the daemon is away: nobody is left to adopt it."""
    pod = pods.run_pod()
    container = pods.run(pod, "sleep", "3600")
    pid = pid_of(pods, container)
    shim, spawner = shim_of(pid), pods.daemon.spawner_pid()
    pods.daemon.kill9()
    for process in (spawner, shim):
        os.kill(process, signal.SIGKILL)
        wait_for(lambda process=process: not Path(f"/proc/{process}").exists(), "its end")  # type: ignore[misc]
    pods.daemon.start()
    status = pods.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 255, "Unknown")
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the lost container's process to be killed")


@pytest.mark.parametrize("state", ["there", "away"])
def test_a_killed_shim_costs_nothing(pods: Pods, state: str) -> None:
    pod = pods.run_pod()
    container = pods.run(
        pod, "sh", "-c", "echo one; while [ ! -e /go ]; do sleep 0.05; done; exit 7"
    )
    pid = pid_of(pods, container)
    if state == "away":
        pods.daemon.kill9()
    shim = shim_of(pid)
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{shim}").exists(), "the shim's end")
    if state == "away":
        pods.daemon.start()
    assert pods.status(container).state == cri.CONTAINER_RUNNING
    assert pid_of(pods, container) == pid
    wait_for(lambda: succeeds(lambda: pods.exec(container, "touch", "/go")), "the successor")
    assert pods.exited(container).exit_code == 7


def succeeds(call: Callable[[], object]) -> bool:
    """Whether a call goes through: an exec while no shim is there is UNAVAILABLE."""
    try:
        call()
    except grpc.RpcError as err:
        assert err.code() == grpc.StatusCode.UNAVAILABLE
        return False
    return True


def test_the_spawner_outlives_the_daemon_and_its_loss_is_made_good(pods: Pods) -> None:
    spawner = pods.daemon.spawner_pid()
    crash(pods)
    assert pods.daemon.spawner_pid() == spawner
    pod = pods.run_pod()
    container = pods.run(pod, "sleep", "3600")
    os.kill(spawner, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{spawner}").exists(), "the spawner's end")
    assert pods.exec(container, "true").exit_code == 0
    other = pods.run(pod, "true")
    assert pods.exited(other).exit_code == 0
    assert pods.daemon.spawner_pid() != spawner
