"""Requests that cannot be carried out: the right code, a clear message, and nothing left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS
from tests.integration.pods import Pods, refused

UNKNOWN = "0" * 64


@pytest.fixture(scope="module")
def pod(pods: Pods) -> Iterator[str]:
    made = pods.run_pod()
    yield made
    pods.remove_pod(made)


SANDBOXES: list[tuple[str, dict[str, Any], str]] = [
    ("no metadata", {"metadata": None}, "metadata"),
    ("no uid", {"metadata": cri.PodSandboxMetadata(name="a", namespace="b")}, "uid"),
    ("relative log directory", {"log_directory": "logs"}, "absolute"),
    ("NUL in the log directory", {"log_directory": "/a\0b"}, "absolute"),
    ("long hostname", {"hostname": "h" * 100_000}, "hostname"),
]


@pytest.mark.parametrize(
    ("fields", "said"), [row[1:] for row in SANDBOXES], ids=[r[0] for r in SANDBOXES]
)
def test_sandboxes(pods: Pods, fields: dict[str, Any], said: str) -> None:
    config = pods.config(**{"linux": cri.LinuxPodSandboxConfig(), **fields})
    before = pods.remains()
    assert said in refused("INVALID_ARGUMENT", pods.run_pod, config)
    pods.assert_remains(before)


def test_an_unknown_runtime_handler(pods: Pods) -> None:
    said = refused("INVALID_ARGUMENT", pods.run_pod, pods.config(), "gvisor")
    assert "'gvisor' is not configured" in said


def test_a_name_that_failed_is_free_again(pods: Pods) -> None:
    config = pods.config(hostname="h" * 100, linux=cri.LinuxPodSandboxConfig())
    refused("INVALID_ARGUMENT", pods.run_pod, config)
    config.hostname = "h"
    pods.remove_pod(pods.run_pod(config))


def security(**fields: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**fields))


CONTAINERS: list[tuple[str, str, dict[str, Any], str]] = [
    ("no metadata", "INVALID_ARGUMENT", {"metadata": None}, "name"),
    ("no image", "INVALID_ARGUMENT", {"image": None}, "image"),
    ("unknown image", "NOT_FOUND", {"image": cri.ImageSpec(image="registry.test/none")}, "none"),
    ("malformed image", "NOT_FOUND", {"image": cri.ImageSpec(image=UNKNOWN)}, "0000"),
    ("log path up", "INVALID_ARGUMENT", {"log_path": "../x.log"}, "log_path"),
    ("log path up inside", "INVALID_ARGUMENT", {"log_path": "a/../../x.log"}, "log_path"),
    ("absolute log path", "INVALID_ARGUMENT", {"log_path": "/etc/x.log"}, "log_path"),
    ("log path that is the directory", "INVALID_ARGUMENT", {"log_path": "a/.."}, "log_path"),
    ("NUL in the log path", "INVALID_ARGUMENT", {"log_path": "a\0b"}, "log_path"),
    (
        "mount without a source",
        "INVALID_ARGUMENT",
        {"mounts": [cri.Mount(container_path="/data")]},
        "host_path",
    ),
    (
        "relative mount",
        "INVALID_ARGUMENT",
        {"mounts": [cri.Mount(container_path="data", host_path="/tmp")]},
        "container_path",
    ),
    (
        "writable image volume",
        "INVALID_ARGUMENT",
        {"mounts": [cri.Mount(container_path="/a", image=cri.ImageSpec(image="b"))]},
        "ImageVolumeMountFailed",
    ),
    (
        "CDI device that is not there",
        "FAILED_PRECONDITION",
        {"CDI_devices": [cri.CDIDevice(name="vendor.test/class=none")]},
        "vendor.test/class=none",
    ),
    ("malformed CDI device", "INVALID_ARGUMENT", {"CDI_devices": [cri.CDIDevice(name="x")]}, "CDI"),
    ("unknown user", "INVALID_ARGUMENT", {"linux": security(run_as_username="joe")}, "joe"),
    (
        "uid out of range",
        "INVALID_ARGUMENT",
        {"linux": security(run_as_user=cri.Int64Value(value=1 << 32))},
        "run_as_user",
    ),
    (
        "unknown capability",
        "INVALID_ARGUMENT",
        {"linux": security(capabilities=cri.Capability(add_capabilities=["FLY"]))},
        "FLY",
    ),
    (
        "privileged in a plain pod",
        "INVALID_ARGUMENT",
        {"linux": security(privileged=True)},
        "privileged",
    ),
    ("unknown signal", "INVALID_ARGUMENT", {"stop_signal": 999}, "stop_signal"),
    (
        "target that is no container",
        "NOT_FOUND",
        {
            "linux": security(
                namespace_options=cri.NamespaceOption(pid=cri.TARGET, target_id=UNKNOWN)
            )
        },
        UNKNOWN,
    ),
]


@pytest.mark.parametrize(
    ("code", "fields", "said"), [row[1:] for row in CONTAINERS], ids=[row[0] for row in CONTAINERS]
)
def test_containers(pods: Pods, pod: str, code: str, fields: dict[str, Any], said: str) -> None:
    before = pods.remains()
    assert said in refused(code, pods.create, pod, "true", **fields)
    assert pods.containers(pod_sandbox_id=pod) == []
    pods.assert_remains(before)


def test_a_log_directory_with_a_link_in_it(pods: Pods, tmp_path: Path) -> None:
    """The pod has mounted its log directory, and exchanged the container's for a link."""
    config = pods.config()
    pod = pods.run_pod(config)
    link = Path(config.log_directory) / "link"
    link.symlink_to(tmp_path)
    for path in ("link/0.log", "link/deep/0.log"):
        with pytest.raises(grpc.RpcError):
            pods.create(pod, "true", log_path=path)
    assert list(tmp_path.iterdir()) == []
    link.unlink()
    pods.remove_pod(pod)


def test_a_container_of_an_unknown_sandbox(pods: Pods) -> None:
    refused("NOT_FOUND", pods.create, UNKNOWN, "true")


def calls(pods: Pods) -> dict[str, Callable[[str], Any]]:
    return {
        "ContainerStatus": pods.status,
        "StartContainer": pods.start,
        "ExecSync": lambda i: pods.exec(i, "true"),
        "ReopenContainerLog": lambda i: pods.daemon.runtime.ReopenContainerLog(
            cri.ReopenContainerLogRequest(container_id=i), timeout=RPC_SECONDS
        ),
        "PodSandboxStatus": pods.pod_status,
        "CreateContainer": lambda i: pods.create(i, "true"),
    }


IDEMPOTENT: dict[str, Callable[[Pods], Callable[[str], Any]]] = {
    "StopContainer": lambda pods: pods.stop,
    "RemoveContainer": lambda pods: pods.remove,
    "StopPodSandbox": lambda pods: pods.stop_pod,
    "RemovePodSandbox": lambda pods: pods.remove_pod,
}


@pytest.mark.parametrize("unknown", [UNKNOWN, "nonsense", "../..", "a\0b", "x" * 1_000_000, "é"])
def test_unknown_ids(pods: Pods, unknown: str) -> None:
    for call in calls(pods).values():
        assert len(refused("NOT_FOUND", call, unknown)) < 1000
    for idempotent in IDEMPOTENT.values():
        idempotent(pods)(unknown)


def test_empty_ids(pods: Pods) -> None:
    for call in [*calls(pods).values(), *(make(pods) for make in IDEMPOTENT.values())]:
        assert "is empty" in refused("INVALID_ARGUMENT", call, "")


def test_ids_of_the_wrong_kind(pods: Pods, pod: str) -> None:
    container = pods.create(pod, "true")
    refused("NOT_FOUND", pods.status, pod)
    refused("NOT_FOUND", pods.pod_status, container)
    pods.stop_pod(container)
    pods.remove(pod)
    assert pods.pod_status(pod).state == cri.SANDBOX_READY
    pods.remove(container)


def test_ambiguous_ids(pods: Pods, pod: str) -> None:
    made = [pods.create(pod, "true") for _ in range(17)]  # 16 first digits
    try:
        first = next(c for c in "0123456789abcdef" if sum(i[0] == c for i in made) > 1)
        assert "several" in refused("INVALID_ARGUMENT", pods.remove, first)
        assert pods.containers(id=first) == []
    finally:
        for container in made:
            pods.remove(container)


def test_a_negative_timeout(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "sleep", "3600")
    refused("INVALID_ARGUMENT", pods.stop, container, -1)
    pods.stop(container, 0)
    pods.stop(container, (1 << 63) - 1)
    pods.remove(container)


def test_checkpoints_are_refused_with_the_reason(pods: Pods) -> None:
    runtime = pods.daemon.runtime
    for call, request in (
        (runtime.CheckpointContainer, cri.CheckpointContainerRequest(container_id=UNKNOWN)),
        (runtime.CheckpointPod, cri.CheckpointPodRequest(pod_sandbox_id=UNKNOWN)),
        (runtime.RestorePod, cri.RestorePodRequest(checkpoint_path="/nowhere")),
    ):
        assert "CRIU" in refused("UNIMPLEMENTED", call, request, timeout=RPC_SECONDS)
