"""What kubelets rely on and what is easy to miss: one test for each of those contracts.

The contracts of streaming (tokens, protocols, exit statuses, port-forward) are held by
test_cri_streaming.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from criserver.handlers import FUNCTIONS, STREAMS
from tests.integration.adoption import shim_of
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.harness import CGROUP_DRIVER
from tests.integration.pods import IMAGE, Pods, refused
from tests.integration.registry import Registry

SLEEP = ("sleep", "3600")
UNKNOWN = "0" * 64
MIB = 1 << 20


def image_status(pods: Pods, name: str) -> cri.ImageStatusResponse:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
    return pods.daemon.images.ImageStatus(request, timeout=RPC_SECONDS)


def pull(daemon: Daemon, image: str, timeout: float = RPC_SECONDS) -> str:
    request = cri.PullImageRequest(image=cri.ImageSpec(image=image))
    return str(daemon.images.PullImage(request, timeout=timeout).image_ref)


# ---- codes and idempotency ----


def test_the_status_of_something_missing_is_exactly_not_found(pods: Pods) -> None:
    refused("NOT_FOUND", pods.status, UNKNOWN)
    refused("NOT_FOUND", pods.pod_status, UNKNOWN)


def test_stop_and_remove_of_something_missing_are_ok(pods: Pods, pod: str) -> None:
    for call in (pods.stop, pods.remove, pods.stop_pod, pods.remove_pod):
        call(UNKNOWN)
    request = cri.RemoveImageRequest(image=cri.ImageSpec(image="registry.test/no/such:image"))
    pods.daemon.images.RemoveImage(request, timeout=RPC_SECONDS)


def test_the_status_of_an_unknown_image_is_ok_and_has_no_image(pods: Pods) -> None:
    assert not image_status(pods, "registry.test/no/such:image").HasField("image")


def test_no_rpc_is_unimplemented_by_which_the_kubelet_would_switch_off_a_feature() -> None:
    meaningful = {
        "RuntimeConfig",
        "UpdatePodSandboxResources",
        "ContainerStats",
        "ListContainerStats",
        "PodSandboxStats",
        "ListPodSandboxStats",
        "ListMetricDescriptors",
        "ListPodSandboxMetrics",
        "GetContainerEvents",
        "StreamPodSandboxes",
        "StreamContainers",
        "StreamContainerStats",
        "StreamPodSandboxStats",
        "StreamPodSandboxMetrics",
        "StreamImages",
    }
    assert meaningful <= (FUNCTIONS | STREAMS).keys()


@pytest.mark.parametrize("method", sorted(STREAMS.keys() - {"GetContainerEvents"}))
def test_a_stream_ends_and_its_items_come_once(pods: Pods, pod: str, method: str) -> None:
    pods.run(pod, *SLEEP)
    service: Any = pods.daemon.images if method == "StreamImages" else pods.daemon.runtime
    request = getattr(cri, f"{method}Request")()
    pages = list(getattr(service, method)(request, timeout=RPC_SECONDS))
    items = [item for page in pages for _, field in page.ListFields() for item in field]
    assert items and all(page.ListFields() for page in pages)
    names = [_name(item) for item in items]
    assert len(set(names)) == len(names)


def _name(item: Any) -> str:
    if hasattr(item, "attributes"):
        return str(item.attributes.id)
    return str(getattr(item, "pod_sandbox_id", "") or item.id)


def test_while_it_loads_it_is_unavailable_and_not_gone(daemon: Daemon, registry: Registry) -> None:
    pods = Pods(daemon)
    pods.pull(registry)
    pod = pods.run_pod()
    container = pods.run(pod, *SLEEP)
    shim = shim_of(_pid(pods, container))
    daemon.kill9()
    os.kill(shim, signal.SIGSTOP)  # the daemon asks it at its start, and waits
    try:
        with subprocess.Popen(daemon.command(), stdout=subprocess.PIPE) as loading:
            try:
                with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
                    runtime = api_pb2_grpc.RuntimeServiceStub(channel)
                    request = cri.ContainerStatusRequest(container_id=container)
                    wait_for(lambda: _says_starting(runtime, request), "the answer")
                    os.kill(shim, signal.SIGCONT)
                    wait_for(lambda: _answers(runtime, request), "the end of the loading")
            finally:
                loading.terminate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(shim, signal.SIGCONT)
    daemon.start()
    assert pods.status(container).state == cri.CONTAINER_RUNNING


def _says_starting(runtime: api_pb2_grpc.RuntimeServiceStub, request: Any) -> bool:
    try:
        runtime.ContainerStatus(request, timeout=RPC_SECONDS)
    except grpc.RpcError as err:
        error: Any = err
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        return "criserver is starting" in error.details()
    return False


def _answers(runtime: api_pb2_grpc.RuntimeServiceStub, request: Any) -> bool:
    with contextlib.suppress(grpc.RpcError):
        runtime.ContainerStatus(request, timeout=RPC_SECONDS)
        return True
    return False


def _pid(pods: Pods, container: str) -> int:
    import json

    return int(json.loads(pods.verbose_status(container).info["info"])["pid"])


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """A registry that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_pull_past_the_clients_deadline(pods: Pods, silent_registry: str) -> None:
    pods.daemon.use_registry("silent.test", silent_registry)
    refused("DEADLINE_EXCEEDED", pull, pods.daemon, "silent.test/a:b", 1.0)


def test_a_registry_that_is_away_has_the_prefix_that_the_kubelet_knows(pods: Pods) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    pods.daemon.use_registry("away.test", address)
    said = refused("UNKNOWN", pull, pods.daemon, "away.test/a:b")
    assert said.startswith("RegistryUnavailable")


def test_a_failed_image_volume_has_the_prefix_that_the_kubelet_knows(pods: Pods, pod: str) -> None:
    mount = cri.Mount(
        container_path="/v", image=cri.ImageSpec(image="registry.test/none"), readonly=True
    )
    said = refused("FAILED_PRECONDITION", pods.create, pod, *SLEEP, mounts=[mount])
    assert said.startswith("ImageVolumeMountFailed")


def test_a_refused_signature_has_the_prefix_that_the_kubelet_knows(
    make_daemon: Callable[[], Daemon], registry: Registry
) -> None:
    daemon = make_daemon()
    policy = daemon.home / "policy.toml"
    policy.write_text('default = "reject"\n')
    with daemon.config.open("a") as config:
        config.write(f'[images]\nsignature_policy = "{policy}"\n')
    daemon.start()
    said = refused("UNKNOWN", Pods(daemon).pull, registry)
    assert said.startswith("SignatureValidationFailed")
    policy.write_text('default = "accept"\n')  # it is read anew for each pull
    assert Pods(daemon).pull(registry) == IMAGE


def test_recursive_read_only_that_cannot_be_has_the_prefix_that_the_kubelet_knows(
    make_daemon: Callable[[], Daemon], registry: Registry, tmp_path: Path
) -> None:
    daemon = make_daemon()
    binary = tmp_path / "runtime"
    binary.write_text("#!/bin/sh\nexit 1\n")  # it does not know `features`
    binary.chmod(0o755)
    with daemon.config.open("a") as config:
        config.write(f'[runtimes.old]\npath = "{binary}"\n')
    daemon.start()
    pods = Pods(daemon)
    pods.pull(registry)
    pod = pods.run_pod(handler="old")
    mount = cri.Mount(
        container_path="/v", host_path=str(tmp_path), readonly=True, recursive_read_only=True
    )
    said = refused("INVALID_ARGUMENT", pods.create, pod, *SLEEP, mounts=[mount])
    assert said.startswith("RROUnsupported")


def test_what_outlasts_its_deadline_says_where_it_is_and_a_retry_joins_it(daemon: Daemon) -> None:
    pods = Pods(daemon)
    config = pods.config()
    os.kill(daemon.spawner_pid(), signal.SIGSTOP)
    try:
        wait_for(lambda: _names_its_stage(daemon, config), "an answer before the deadline")
    finally:
        os.kill(daemon.spawner_pid(), signal.SIGCONT)
    pod = pods.run_pod(config)
    assert [each.id for each in pods.pods()] == [pod]


def _names_its_stage(daemon: Daemon, config: cri.PodSandboxConfig) -> bool:
    request = cri.RunPodSandboxRequest(config=config)
    said = refused("DEADLINE_EXCEEDED", daemon.runtime.RunPodSandbox, request, timeout=1.0)
    return "RunPodSandbox" in said and "in stage 'namespaces'" in said


def test_another_attempt_is_another_object(pods: Pods) -> None:
    config = pods.config()
    first = pods.run_pod(config)
    refused("ALREADY_EXISTS", pods.run_pod, config)
    config.metadata.attempt = 1
    second = pods.run_pod(config)
    assert pods.pod_status(second).metadata.attempt == 1

    def create(attempt: int) -> str:
        metadata = cri.ContainerMetadata(name="c", attempt=attempt)
        return pods.create(first, *SLEEP, metadata=metadata)

    container = create(0)
    refused("ALREADY_EXISTS", create, 0)
    assert create(1) != container
    for pod in (first, second):
        pods.remove_pod(pod)


# ---- required values ----


def test_version_has_all_four(pods: Pods) -> None:
    version = pods.daemon.runtime.Version(cri.VersionRequest(), timeout=RPC_SECONDS)
    assert (version.version, version.runtime_api_version) == ("0.1.0", "v1")
    assert version.runtime_name == "criserver"
    major, minor, *_ = version.runtime_version.split(".")
    assert major.isdigit() and minor.isdigit()


def test_image_fs_info_works_before_the_first_image(daemon: Daemon) -> None:
    info = daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=RPC_SECONDS)
    (images,) = info.image_filesystems
    assert images.fs_id.mountpoint == str(daemon.root)
    assert images.timestamp > 0
    assert images.HasField("used_bytes") and images.HasField("inodes_used")
    assert len(info.container_filesystems) == 1


def conditions(daemon: Daemon) -> dict[str, cri.RuntimeCondition]:
    status = daemon.runtime.Status(cri.StatusRequest(), timeout=RPC_SECONDS).status
    return {condition.type: condition for condition in status.conditions}


def test_status_has_both_conditions_and_the_reason_that_the_kubelet_knows(daemon: Daemon) -> None:
    assert {name: each.status for name, each in conditions(daemon).items()} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }
    (daemon.cni_conf_dir / "10-broken.conflist").write_text("{")
    wait_for(lambda: not conditions(daemon)["NetworkReady"].status, "the broken configuration")
    network = conditions(daemon)["NetworkReady"]
    assert network.reason == "NetworkPluginNotReady"
    assert "10-broken" in network.message
    assert conditions(daemon)["RuntimeReady"].status


def test_statuses_have_what_the_kubelet_needs(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    sandbox, status = pods.pod_status(pod), pods.status(container)
    assert sandbox.id == pod and sandbox.created_at > 0
    assert sandbox.metadata.name and sandbox.metadata.namespace and sandbox.metadata.uid
    assert status.id == container and status.created_at > 0
    assert status.metadata.name and status.image.image == IMAGE
    image = image_status(pods, IMAGE).image
    assert image.id and image.size > 0


def test_an_images_id_is_the_same_everywhere(pods: Pods, pod: str) -> None:
    reference = pull(pods.daemon, IMAGE)
    container = pods.run(pod, *SLEEP)
    status = pods.status(container)
    (listed,) = pods.containers(id=container)
    found = {
        reference,
        image_status(pods, IMAGE).image.id,
        status.image_id,
        listed.image_ref,
        listed.image_id,
    }
    assert found == {reference}


def test_the_cgroup_driver_is_told(pods: Pods) -> None:
    config = pods.daemon.runtime.RuntimeConfig(cri.RuntimeConfigRequest(), timeout=RPC_SECONDS)
    assert config.HasField("linux")


# ---- what makes the kubelet recreate a sandbox ----


def test_what_a_sandbox_is_known_by_outlives_the_daemon(pods: Pods) -> None:
    options = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)
    linux = cri.LinuxPodSandboxConfig(
        security_context=cri.LinuxSandboxSecurityContext(namespace_options=options)
    )
    pod = pods.run_pod(pods.config(linux=linux))
    before = pods.pod_status(pod)
    assert before.state == cri.SANDBOX_READY
    assert before.network.ip
    assert before.linux.namespaces.options == options
    pods.daemon.kill9()
    pods.daemon.start()
    assert pods.pod_status(pod) == before
    pods.remove_pod(pod)


def test_a_pod_on_the_hosts_network_says_so_and_has_no_address(pods: Pods, pod: str) -> None:
    status = pods.pod_status(pod)
    assert status.linux.namespaces.options.network == cri.NODE
    assert not status.network.ip


def test_lists_are_sorted_by_their_making_and_stay_so(pods: Pods) -> None:
    made = [pods.run_pod() for _ in range(3)]
    before = [(each.id, each.created_at) for each in pods.pods()]
    assert [each for each, _ in before if each in made] == made
    pods.daemon.restart()
    assert [(each.id, each.created_at) for each in pods.pods()] == before
    for pod in made:
        pods.remove_pod(pod)


# ---- states, reasons, exit codes ----


def oom(pods: Pods, pod: str) -> str:
    linux = pods_linux(memory_limit_in_bytes=16 * MIB)
    return pods.run(pod, "sh", "-c", "exec tail /dev/zero", linux=linux)


def pods_linux(**resources: Any) -> cri.LinuxContainerConfig:
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    return cri.LinuxContainerConfig(
        resources=cri.LinuxContainerResources(**resources),
        security_context=cri.LinuxContainerSecurityContext(namespace_options=options),
    )


def unstartable(pods: Pods, pod: str) -> str:
    container = pods.create(pod, "/no/such/program")
    refused("INVALID_ARGUMENT", pods.start, container)
    return container


ENDS: dict[str, tuple[Callable[[Pods, str], str], int, str]] = {
    "good": (lambda pods, pod: pods.run(pod, "true"), 0, "Completed"),
    "bad": (lambda pods, pod: pods.run(pod, "sh", "-c", "exit 3"), 3, "Error"),
    "killed": (lambda pods, pod: pods.run(pod, "sh", "-c", "kill -9 $$"), 137, "Error"),
    "out of memory": (oom, 137, "OOMKilled"),
    "never started": (unstartable, 128, "StartError"),
}


@pytest.mark.parametrize("end", ENDS)
def test_ends(pods: Pods, end: str) -> None:
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    config = pods.config(linux=cri.LinuxPodSandboxConfig(security_context=context))
    pod = pods.run_pod(config)
    make, code, reason = ENDS[end]
    if end == "killed":  # pid 1 of a namespace is immune to its own signals
        container = pods.run(pod, *SLEEP)
        pods.stop(container, 0)
    else:
        container = make(pods, pod)
    status = pods.exited(container)
    assert (status.exit_code, status.reason) == (code, reason)
    assert 0 < status.created_at <= status.started_at <= status.finished_at <= time.time_ns()
    pods.remove_pod(pod)


def test_times_say_how_far_a_container_has_come(pods: Pods, pod: str) -> None:
    container = pods.create(pod, *SLEEP)
    created = pods.status(container)
    assert created.created_at and not created.started_at and not created.finished_at
    pods.start(container)
    running = pods.status(container)
    assert running.created_at and running.started_at and not running.finished_at


# ---- labels, mounts, resources ----


def test_labels_and_annotations_come_back_unaltered(pods: Pods, pod: str) -> None:
    odd = {"a.b/c-d": "", "x": " ä\n\t=,", "long": "v" * 10_000}
    container = pods.run(pod, *SLEEP, labels=odd, annotations=odd)
    for found in (pods.status(container), *pods.containers(id=container)):
        assert dict(found.labels) == dict(found.annotations) == odd
    other = pods.run_pod(pods.config(labels=odd, annotations=odd))
    for sandbox in (pods.pod_status(other), *pods.pods(id=other)):
        assert dict(sandbox.labels) == dict(sandbox.annotations) == odd
    pods.remove_pod(other)


def test_filters_are_exact_and_all_of_them_count(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP, labels={"a": "1", "b": "2"})
    rows: list[tuple[dict[str, Any], bool]] = [
        ({"label_selector": {"a": "1"}}, True),
        ({"label_selector": {"a": "1", "b": "2"}}, True),
        ({"label_selector": {"a": "1", "b": "3"}}, False),
        ({"label_selector": {"a": ""}}, False),
        ({"pod_sandbox_id": pod, "label_selector": {"a": "1"}}, True),
        ({"pod_sandbox_id": UNKNOWN, "label_selector": {"a": "1"}}, False),
        ({"id": container, "state": cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)}, True),
        ({"id": container, "state": cri.ContainerStateValue(state=cri.CONTAINER_CREATED)}, False),
    ]
    for wanted, expected in rows:
        found = [each.id for each in pods.containers(**wanted)]
        assert (container in found) == expected, wanted


def test_the_mounts_of_the_request_are_in_the_status(pods: Pods, pod: str) -> None:
    log = pods.daemon.home / "termination-log"
    log.touch()
    mounts = [
        cri.Mount(container_path="/dev/termination-log", host_path=str(log)),
        cri.Mount(container_path="/image", image=cri.ImageSpec(image=IMAGE), readonly=True),
    ]
    container = pods.run(pod, "sh", "-c", "echo bye > /dev/termination-log", mounts=mounts)
    status = pods.exited(container)
    mounts[1].image.image_ref = image_status(pods, IMAGE).image.id
    assert list(status.mounts) == mounts
    assert log.read_text() == "bye\n", "the kubelet reads it by the mount's host path"


def test_resources_come_back_and_zero_leaves_them(pods: Pods, pod: str) -> None:
    linux = pods_linux(cpu_shares=300, cpu_period=50_000, cpu_quota=25_000)
    container = pods.run(pod, *SLEEP, linux=linux)
    resources = cri.LinuxContainerResources(cpu_shares=400, cpuset_cpus="")
    request = cri.UpdateContainerResourcesRequest(container_id=container, linux=resources)
    pods.daemon.runtime.UpdateContainerResources(request, timeout=RPC_SECONDS)
    found = pods.status(container).resources.linux
    assert (found.cpu_shares, found.cpu_period, found.cpu_quota) == (400, 50_000, 25_000)


# ---- stop ----

TRAPS = "trap 'echo term' TERM; echo ready; while :; do sleep 0.02; done"


def ready(pods: Pods, pod: str) -> str:
    container = pods.run(pod, "sh", "-c", TRAPS)
    wait_for(lambda: "ready" in pods.output(container), "the trap")
    return container


def test_the_stop_signal_is_sent_once_and_then_sigkill(pods: Pods, pod: str) -> None:
    container = ready(pods, pod)
    pods.stop(container, 1)
    status = pods.status(container)
    assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 137)
    pods.stop(container, 1)
    assert pods.output(container) == ["ready", "term"]


def test_a_timeout_of_zero_kills_without_a_signal_before(pods: Pods, pod: str) -> None:
    container = ready(pods, pod)
    pods.stop(container, 0)
    assert pods.status(container).exit_code == 137
    assert pods.output(container) == ["ready"]


def test_a_later_shorter_timeout_wins(pods: Pods, pod: str) -> None:
    container = ready(pods, pod)
    request = cri.StopContainerRequest(container_id=container, timeout=3600)
    slow = pods.daemon.runtime.StopContainer.future(request, timeout=RPC_SECONDS)
    wait_for(lambda: "term" in pods.output(container), "the stop signal")
    pods.stop(container, 0)
    slow.result()
    assert pods.status(container).exit_code == 137


def test_stopping_a_pod_stops_its_containers_and_may_be_repeated(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    pods.stop_pod(pod)
    assert pods.status(container).state == cri.CONTAINER_EXITED
    assert pods.pod_status(pod).state == cri.SANDBOX_NOTREADY
    pods.stop_pod(pod)


# ---- logs ----


def test_the_log_is_where_the_kubelet_looks_and_has_its_form(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "sh", "-c", "echo out; echo err >&2; printf tail", name="logs")
    status = pods.exited(container)
    assert status.log_path.startswith("/") and status.log_path.endswith("/logs.log")
    lines = [line.split(" ", 3) for line in pods.log(container)]
    assert sorted((stream, tag, said) for _, stream, tag, said in lines) == [
        ("stderr", "F", "err"),
        ("stdout", "F", "out"),
        ("stdout", "P", "tail"),
    ]
    for stamp, *_ in lines:
        date, _, fraction = stamp.partition(".")
        time.strptime(date, "%Y-%m-%dT%H:%M:%S")
        assert fraction[:9].isdigit()
    pods.remove(container)
    assert Path(status.log_path).exists(), "the kubelet deletes logs"


def test_after_a_rotation_the_new_file_is_there_on_return(pods: Pods, pod: str) -> None:
    script = "while :; do echo x; sleep 0.01; done"
    container = pods.run(pod, "sh", "-c", script)
    log = Path(pods.status(container).log_path)
    rotated = log.with_suffix(".1")
    log.rename(rotated)
    request = cri.ReopenContainerLogRequest(container_id=container)
    pods.daemon.runtime.ReopenContainerLog(request, timeout=RPC_SECONDS)
    assert log.exists()
    wait_for(lambda: log.stat().st_size > 0, "the first line in the new file")
    pods.stop(container)
    refused(
        "FAILED_PRECONDITION",
        pods.daemon.runtime.ReopenContainerLog,
        request,
        timeout=RPC_SECONDS,
    )
    log.unlink()
    refused(
        "FAILED_PRECONDITION",
        pods.daemon.runtime.ReopenContainerLog,
        request,
        timeout=RPC_SECONDS,
    )
    assert not log.exists(), "an error makes no new file"


# ---- stats ----


def test_a_containers_cgroup_ends_in_its_id_and_ids_have_no_dash(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    assert "-" not in container + pod
    cgroups = Path(f"/proc/{_pid(pods, container)}/cgroup").read_text().splitlines()
    leaves = {
        line.split(":", 2)[2].rsplit("/", 1)[-1]
        for line in cgroups
        if ":memory:" in line or line.startswith("0::")  # the one of a version 2 machine
    }
    expected = f"cri-criserver-{container}.scope" if CGROUP_DRIVER == "systemd" else container
    assert leaves - {""} == {expected}


def test_metrics_are_declared_and_their_labels_in_order(pods: Pods, pod: str) -> None:
    pods.run(pod, *SLEEP)
    runtime = pods.daemon.runtime
    descriptors = runtime.ListMetricDescriptors(
        cri.ListMetricDescriptorsRequest(), timeout=RPC_SECONDS
    ).descriptors
    keys = {each.name: list(each.label_keys) for each in descriptors}
    metrics = runtime.ListPodSandboxMetrics(
        cri.ListPodSandboxMetricsRequest(), timeout=RPC_SECONDS
    ).pod_metrics
    for each in metrics:
        for container in each.container_metrics:
            for metric in container.metrics:
                labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
                assert labels["id"] == container.container_id


def test_a_status_that_has_its_containers_says_when_that_was(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    before = time.time_ns()
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
    answer = pods.daemon.runtime.PodSandboxStatus(request, timeout=RPC_SECONDS)
    assert [each.id for each in answer.containers_statuses] == [container]
    assert before <= answer.timestamp <= time.time_ns()


def test_the_newest_attempt_of_a_container_comes_first(pods: Pods, pod: str) -> None:
    """The kubelet takes the first of a name, and asks for the attempt after it."""
    made = [
        pods.create(pod, *SLEEP, metadata=cri.ContainerMetadata(name="web", attempt=attempt))
        for attempt in range(3)
    ]
    pods.daemon.restart()
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
    answer = pods.daemon.runtime.PodSandboxStatus(request, timeout=RPC_SECONDS)
    assert [each.id for each in answer.containers_statuses] == made[::-1]


# ---- handlers, messages ----


def test_an_unknown_handler_is_refused_and_the_default_has_two_names(pods: Pods) -> None:
    refused("INVALID_ARGUMENT", pods.run_pod, pods.config(), "no-such-handler")
    status = pods.daemon.runtime.Status(cri.StatusRequest(), timeout=RPC_SECONDS)
    names = [handler.name for handler in status.runtime_handlers]
    assert "" in names and len(names) == len(set(names)) >= 2
    for name in names:
        pods.remove_pod(pods.run_pod(pods.config(), name))


def test_an_exec_whose_streams_overflow_a_message_still_answers(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    script = "head -c 12000000 /dev/zero & head -c 12000000 /dev/zero >&2; wait"
    request = cri.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script])
    limit = [("grpc.max_receive_message_length", 16 * MIB)]
    with grpc.insecure_channel(pods.daemon.endpoint, options=limit) as channel:
        answer = api_pb2_grpc.RuntimeServiceStub(channel).ExecSync(request, timeout=RPC_SECONDS)
    assert answer.exit_code == 0
    assert 15 * MIB < answer.ByteSize() <= 16 * MIB
