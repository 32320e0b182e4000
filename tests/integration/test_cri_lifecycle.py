"""Sandboxes and containers from their making to their removal, and what their statuses say."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS, wait_for
from tests.integration.harness import CGROUP_DRIVER
from tests.integration.pods import IMAGE, Pods, refused
from tests.integration.registry import Registry

SLEEP = ("sleep", "3600")


def image_status(pods: Pods) -> cri.Image:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=IMAGE))
    return pods.daemon.images.ImageStatus(request, timeout=RPC_SECONDS).image


def image_id(pods: Pods) -> str:
    return image_status(pods).id


def test_version_is_what_the_kubelet_expects(pods: Pods) -> None:
    version = pods.daemon.runtime.Version(cri.VersionRequest(), timeout=RPC_SECONDS)
    assert version.version == "0.1.0"
    assert version.runtime_name == "criserver"
    assert version.runtime_api_version == "v1"
    assert version.runtime_version[0].isdigit()


def test_status_has_conditions_handlers_and_verbose_configuration(pods: Pods) -> None:
    status = pods.daemon.runtime.Status(cri.StatusRequest(verbose=True), timeout=RPC_SECONDS)
    assert {c.type: c.status for c in status.status.conditions} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }
    assert [handler.name for handler in status.runtime_handlers] == ["", "runtimeshim"]
    assert json.loads(status.info["config"])["run_dir"] == str(pods.daemon.run_dir)
    plain = pods.daemon.runtime.Status(cri.StatusRequest(), timeout=RPC_SECONDS)
    assert not plain.info


def test_the_kubelet_is_told_the_cgroup_driver(pods: Pods) -> None:
    config = pods.daemon.runtime.RuntimeConfig(cri.RuntimeConfigRequest(), timeout=RPC_SECONDS)
    assert config.HasField("linux")
    assert config.linux.cgroup_driver == cri.CgroupDriver.Value(CGROUP_DRIVER.upper())


def test_a_container_runs_from_create_to_its_exit(pods: Pods, pod: str) -> None:
    before = time.time_ns()
    container = pods.create(pod, "sh", "-c", "echo out; echo err >&2; read x < /dev/null; exit 7")
    created = pods.status(container)
    assert created.state == cri.CONTAINER_CREATED
    assert before <= created.created_at <= time.time_ns()
    assert (created.started_at, created.finished_at, created.reason) == (0, 0, "")
    pods.start(container)
    ended = pods.exited(container)
    assert (ended.exit_code, ended.reason) == (7, "Error")
    assert created.created_at <= ended.started_at <= ended.finished_at <= time.time_ns()
    assert sorted(pods.output(container)) == ["err", "out"]
    assert {line.split()[1] for line in pods.log(container)} == {"stdout", "stderr"}


def test_a_good_end_is_completed(pods: Pods, pod: str) -> None:
    ended = pods.exited(pods.run(pod, "true"))
    assert (ended.exit_code, ended.reason) == (0, "Completed")


def test_a_command_that_is_not_in_the_image_is_a_start_error(pods: Pods, pod: str) -> None:
    container = pods.create(pod, "/no/such/program")
    said = refused("INVALID_ARGUMENT", pods.start, container)
    assert "/no/such/program" in said
    status = pods.status(container)
    assert status.state == cri.CONTAINER_EXITED
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert "/no/such/program" in status.message
    assert status.finished_at >= status.started_at > 0
    pods.remove(container)


def test_the_status_echoes_what_was_asked_for(pods: Pods, pod: str) -> None:
    volume = pods.daemon.home / "made" / "by-the-runtime"
    mounts = [cri.Mount(container_path="/data", host_path=str(volume), readonly=True)]
    resources = cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 << 20)
    context = cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=1000),
        run_as_group=cri.Int64Value(value=1001),
        supplemental_groups=[5],
        namespace_options=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER),
    )
    container = pods.run(
        pod,
        *SLEEP,
        name="web",
        image=cri.ImageSpec(image=image_id(pods), user_specified_image=IMAGE),
        labels={"app": "web"},
        annotations={"note": "süß\n"},
        mounts=mounts,
        linux=cri.LinuxContainerConfig(resources=resources, security_context=context),
        stop_signal=cri.SIGNAL_SIGUSR1,
    )
    status = pods.status(container)
    assert status.metadata == cri.ContainerMetadata(name="web")
    assert status.image.image == IMAGE
    assert status.image_id == image_id(pods)
    (digest,) = image_status(pods).repo_digests
    assert status.image_ref == digest
    assert dict(status.labels) == {"app": "web"}
    assert dict(status.annotations) == {"note": "süß\n"}
    assert list(status.mounts) == mounts
    assert status.log_path == str(
        pods.daemon.log_directory / pods.pod_status(pod).metadata.name
    ) + ("/web.log")
    assert status.resources.linux == resources
    assert (status.user.linux.uid, status.user.linux.gid) == (1000, 1001)
    assert set(status.user.linux.supplemental_groups) == {5, 1001}
    assert status.stop_signal == cri.SIGNAL_SIGUSR1
    assert volume.is_dir()
    assert pods.exec(container, "id", "-u").stdout == b"1000\n"


def test_verbose_status_has_what_crictl_shows(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    info = pods.verbose_status(container).info
    shown = json.loads(info["info"])
    assert shown["sandboxID"] == pod
    assert Path(f"/proc/{shown['pid']}/cmdline").read_bytes() == b"sleep\x003600\x00"
    assert shown["runtimeSpec"]["process"]["args"] == list(SLEEP)
    assert shown["config"]["metadata"]["name"].startswith("ctr")
    timings = json.loads(info["timings"])
    assert timings["CreateContainer"]["total"] > 0
    assert timings["StartContainer"]["start"] > 0


def test_sandbox_status_echoes_its_config_and_has_an_address(pods: Pods) -> None:
    config = pods.config(
        labels={"l": "1"}, annotations={"a": "2"}, linux=cri.LinuxPodSandboxConfig()
    )
    pod = pods.run_pod(config, "runtimeshim")
    try:
        status = pods.pod_status(pod)
        assert status.metadata == config.metadata
        assert status.state == cri.SANDBOX_READY
        assert status.network.ip.startswith("10.")
        assert status.linux.namespaces.options == cri.NamespaceOption()
        assert (dict(status.labels), dict(status.annotations)) == ({"l": "1"}, {"a": "2"})
        assert status.runtime_handler == "runtimeshim"
        pods.stop_pod(pod)
        stopped = pods.pod_status(pod)
        assert (stopped.state, stopped.network.ip) == (cri.SANDBOX_NOTREADY, "")
    finally:
        pods.remove_pod(pod)
    refused("NOT_FOUND", pods.pod_status, pod)


def test_a_pod_on_the_hosts_network_has_no_address(pods: Pods, pod: str) -> None:
    status = pods.pod_status(pod)
    assert status.network.ip == ""
    assert status.linux.namespaces.options.network == cri.NODE


def test_lists_filter_by_id_state_pod_and_labels(pods: Pods, pod: str) -> None:
    other = pods.run_pod(pods.config(labels={"tier": "back"}))
    try:
        running = pods.run(pod, *SLEEP, labels={"app": "a", "tier": "1"})
        created = pods.create(other, *SLEEP, labels={"app": "a"})

        def ids(**wanted: object) -> set[str]:
            return {container.id for container in pods.containers(**wanted)} & {running, created}

        assert ids() == {running, created}
        assert ids(id=running) == ids(id=running[:13]) == {running}
        assert ids(pod_sandbox_id=other) == ids(pod_sandbox_id=other[:13]) == {created}
        assert ids(label_selector={"app": "a"}) == {running, created}
        assert ids(label_selector={"app": "a", "tier": "1"}) == {running}
        assert ids(state=cri.ContainerStateValue(state=cri.CONTAINER_CREATED)) == {created}
        assert ids(id=running, pod_sandbox_id=other) == set()
        assert ids(id="none") == set()
        assert [found.id for found in pods.pods(label_selector={"tier": "back"})] == [other]
        assert [found.id for found in pods.pods(id=other[:12])] == [other]
        not_ready = cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)
        assert other not in {found.id for found in pods.pods(state=not_ready)}
    finally:
        pods.remove_pod(other)


def test_ids_may_be_shortened_everywhere(pods: Pods, pod: str) -> None:
    container = pods.create(pod[:20], *SLEEP)
    pods.start(container[:20])
    assert pods.status(container[:12]).id == container
    assert pods.exec(container[:12], "true").exit_code == 0
    pods.stop(container[:12])
    pods.remove(container[:12])
    refused("NOT_FOUND", pods.status, container)


def test_stop_sends_the_stop_signal_of_the_request_then_of_the_image(
    pods: Pods, pod: str, registry: Registry
) -> None:
    image = pods.pull(registry, "cri/signal", StopSignal="SIGUSR2")
    traps = "trap 'exit 3' USR1; trap 'exit 4' USR2; trap 'exit 5' TERM"
    script = f"{traps}; echo up; while :; do sleep 0.1; done"
    for fields, code in (
        ({"stop_signal": cri.SIGNAL_SIGUSR1, "image": cri.ImageSpec(image=image)}, 3),
        ({"image": cri.ImageSpec(image=image)}, 4),
        ({}, 5),
    ):
        container = pods.run(pod, "sh", "-c", script, **fields)
        wait_for(lambda c=container: pods.output(c) == ["up"], "the trap to be set")
        pods.stop(container, 60)
        assert pods.status(container).exit_code == code


def test_timeout_0_kills_at_once(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
    wait_for(lambda: pods.output(container) == ["up"], "the trap to be set")
    pods.stop(container, 0)
    status = pods.status(container)
    assert (status.exit_code, status.reason) == (137, "Error")


def test_a_later_shorter_timeout_wins(pods: Pods, pod: str) -> None:
    container = pods.run(
        pod, "sh", "-c", "trap 'echo TERM' TERM; echo up; while :; do sleep 1; done"
    )
    wait_for(lambda: pods.output(container) == ["up"], "the trap to be set")
    patient = pods.daemon.runtime.StopContainer.future(
        cri.StopContainerRequest(container_id=container, timeout=3600), timeout=RPC_SECONDS
    )
    wait_for(lambda: "TERM" in pods.output(container), "the stop signal")
    pods.stop(container, 0)
    patient.result()
    assert pods.status(container).exit_code == 137
    assert pods.output(container).count("TERM") == 1


def test_stop_and_remove_may_be_repeated_and_know_no_missing_ids(pods: Pods) -> None:
    pod = pods.run_pod()
    container = pods.run(pod, *SLEEP)
    for _ in range(2):
        pods.stop(container)
    for _ in range(2):
        pods.remove(container)
    for _ in range(2):
        pods.stop_pod(pod)
    for _ in range(2):
        pods.remove_pod(pod)


def test_stopping_a_pod_ends_its_containers(pods: Pods) -> None:
    pod = pods.run_pod()
    running, created = pods.run(pod, *SLEEP), pods.create(pod, *SLEEP)
    pods.stop_pod(pod)
    assert pods.pod_status(pod).state == cri.SANDBOX_NOTREADY
    assert pods.status(running).exit_code == 137
    assert pods.status(created).state == cri.CONTAINER_EXITED
    refused("FAILED_PRECONDITION", pods.create, pod, *SLEEP)
    pods.remove_pod(pod)
    refused("NOT_FOUND", pods.status, running)


def test_a_pod_whose_shared_pid_1_dies_is_not_ready(pods: Pods) -> None:
    pod = pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
    try:
        container = pods.run(pod, *SLEEP, linux=cri.LinuxContainerConfig())
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        info = pods.daemon.runtime.PodSandboxStatus(request, timeout=RPC_SECONDS).info["info"]
        os.kill(json.loads(info)["pid"], signal.SIGKILL)
        wait_for(
            lambda: pods.pod_status(pod).state == cri.SANDBOX_NOTREADY,
            "the sandbox to be not ready",
        )
        assert pods.exited(container).exit_code == 137
        refused("FAILED_PRECONDITION", pods.create, pod, *SLEEP)
    finally:
        pods.remove_pod(pod)


def test_removing_a_running_pod_leaves_nothing(pods: Pods) -> None:
    pods.remove_pod(
        pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
    )  # makes the bridge
    before = pods.remains()
    for _ in range(3):
        config = pods.config(linux=cri.LinuxPodSandboxConfig())
        pod = pods.run_pod(config)
        for linux in (cri.LinuxContainerConfig(), None):
            pods.run(pod, *SLEEP, **({"linux": linux} if linux else {}))
        pods.create(pod, *SLEEP)
        refused("INVALID_ARGUMENT", pods.run, pod, "/none")
        pods.remove_pod(pod)
    pods.assert_remains(before)


def test_a_running_container_is_removed_by_force(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    pids = json.loads(pods.verbose_status(container).info["info"])["pid"]
    pods.remove(container)
    assert not Path(f"/proc/{pids}").exists()


def test_a_name_is_taken_until_its_object_is_removed(pods: Pods, pod: str) -> None:
    container = pods.create(pod, *SLEEP, name="same")
    said = refused("ALREADY_EXISTS", pods.create, pod, *SLEEP, name="same")
    assert container in said
    pods.remove(container)
    pods.create(pod, *SLEEP, name="same")
    config = pods.config()
    first = pods.run_pod(config)
    assert first in refused("ALREADY_EXISTS", pods.run_pod, config)
    pods.remove_pod(first)
    pods.remove_pod(pods.run_pod(config))


def test_creations_with_one_name_at_once_are_one(pods: Pods) -> None:
    config = pods.config()
    request = cri.RunPodSandboxRequest(config=config)
    calls = [
        pods.daemon.runtime.RunPodSandbox.future(request, timeout=RPC_SECONDS) for _ in range(5)
    ]
    made = {call.result().pod_sandbox_id for call in calls if call.exception() is None}
    assert len(made) == 1
    pods.remove_pod(made.pop())


def test_a_container_can_be_started_once(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    assert "RUNNING" in refused("FAILED_PRECONDITION", pods.start, container)
    pods.stop(container)
    assert "EXITED" in refused("FAILED_PRECONDITION", pods.start, container)


def test_the_log_is_reopened_after_a_rotation(pods: Pods, pod: str) -> None:
    script = "echo one; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo two; sleep 3600"
    container = pods.run(pod, "sh", "-c", script)
    wait_for(lambda: pods.output(container) == ["one"], "the first line")
    log = Path(pods.status(container).log_path)
    rotated = log.rename(log.with_suffix(".1"))
    request = cri.ReopenContainerLogRequest(container_id=container)
    pods.daemon.runtime.ReopenContainerLog(request, timeout=RPC_SECONDS)
    assert log.exists()
    pods.exec(container, "touch", "/tmp/go")
    wait_for(lambda: pods.output(container) == ["two"], "the second line")
    assert len(rotated.read_text().splitlines()) == 1
    pods.stop(container)
    reopen = pods.daemon.runtime.ReopenContainerLog
    refused("FAILED_PRECONDITION", reopen, request, timeout=RPC_SECONDS)


def test_a_container_without_a_log_path_has_no_log(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "echo", "unheard", log_path="")
    assert pods.exited(container).log_path == ""


def test_a_memory_hog_is_oom_killed(pods: Pods, pod: str) -> None:
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=32 << 20)
    context = cri.LinuxContainerSecurityContext(
        namespace_options=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    )
    linux = cri.LinuxContainerConfig(resources=resources, security_context=context)
    container = pods.run(pod, "tail", "/dev/zero", linux=linux)
    ended = pods.exited(container)
    assert (ended.reason, ended.exit_code) == ("OOMKilled", 137)


def test_sleep_starts_in_6_mib(pods: Pods, pod: str) -> None:
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=6 << 20)
    container = pods.run(pod, *SLEEP, linux=cri.LinuxContainerConfig(resources=resources))
    assert pods.status(container).state == cri.CONTAINER_RUNNING
    pid = json.loads(pods.verbose_status(container).info["info"])["pid"]
    assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
