"""Every mode of NamespaceOption, for pods and their containers, by what /proc says."""

from __future__ import annotations

import json
import os

import pytest

from api.cri import api_pb2 as cri
from tests.integration.pods import Pods, refused

KINDS = ("net", "ipc", "uts", "pid", "mnt")


def pod_of(pods: Pods, **modes: int) -> str:
    context = cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(**modes))
    return pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig(security_context=context)))


def container_of(pods: Pods, pod: str, **modes: object) -> str:
    context = cri.LinuxContainerSecurityContext(namespace_options=cri.NamespaceOption(**modes))
    linux = cri.LinuxContainerConfig(security_context=context)
    return pods.run(pod, "sleep", "3600", linux=linux)


def namespaces(pods: Pods, container: str) -> dict[str, int]:
    pid = json.loads(pods.verbose_status(container).info["info"])["pid"]
    return {kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in KINDS}


HOST = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in KINDS}


@pytest.mark.parametrize("network", [cri.POD, cri.NODE])
@pytest.mark.parametrize("ipc", [cri.POD, cri.NODE])
@pytest.mark.parametrize("pid", [cri.POD, cri.CONTAINER, cri.NODE])
def test_what_containers_share_is_what_was_asked_for(
    pods: Pods, network: int, ipc: int, pid: int
) -> None:
    modes = {"network": network, "ipc": ipc, "pid": pid}
    pod = pod_of(pods, **modes)
    first, second = (namespaces(pods, container_of(pods, pod, **modes)) for _ in range(2))
    for kind, mode in (("net", network), ("uts", network), ("ipc", ipc), ("pid", pid)):
        assert (first[kind] == HOST[kind]) == (mode == cri.NODE), kind
        assert (first[kind] == second[kind]) == (mode != cri.CONTAINER), kind
    assert len({first["mnt"], second["mnt"], HOST["mnt"]}) == 3
    pods.remove_pod(pod)


def test_target_is_the_pid_namespace_of_another_container(pods: Pods) -> None:
    pod = pod_of(pods, pid=cri.CONTAINER)
    app = container_of(pods, pod, pid=cri.CONTAINER)
    debugger = container_of(pods, pod, pid=cri.TARGET, target_id=app)
    assert namespaces(pods, debugger)["pid"] == namespaces(pods, app)["pid"]
    listed = pods.exec(debugger, "ps", "-o", "pid,args").stdout.decode()
    assert listed.count("sleep 3600") == 2
    other = pod_of(pods, pid=cri.CONTAINER)
    message = refused(
        "FAILED_PRECONDITION", container_of, pods, other, pid=cri.TARGET, target_id=app
    )
    assert "the same pod sandbox" in message
    # The target's end is that of its namespace, and so the debugger's.
    pods.stop(app)
    assert pods.exited(debugger).exit_code == 137
    for one in (pod, other):
        pods.remove_pod(one)


@pytest.mark.parametrize(
    "modes",
    [{"network": cri.CONTAINER}, {"ipc": cri.TARGET}, {"pid": cri.TARGET}, {"network": 9}],
)
def test_a_mode_that_a_pod_cannot_have_is_refused(pods: Pods, modes: dict[str, int]) -> None:
    refused("INVALID_ARGUMENT", pod_of, pods, **modes)


def test_a_container_cannot_leave_its_pod_for_the_host(pods: Pods) -> None:
    pod = pod_of(pods, pid=cri.CONTAINER)
    refused("INVALID_ARGUMENT", container_of, pods, pod, pid=cri.NODE)
    # Network and IPC are the pod's, whatever a container asks for.
    container = container_of(pods, pod, network=cri.NODE, ipc=cri.NODE, pid=cri.CONTAINER)
    found = namespaces(pods, container)
    assert all(found[kind] != HOST[kind] for kind in ("net", "ipc", "uts", "pid"))
    pods.remove_pod(pod)
