"""What needs an API server: a pod that is resized in place, and projected volumes."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubelet.api_server import ApiServer
from tests.kubelet.kubelet import NODE, Kubelet, containers, has_ended, is_running
from tests.kubelet.manifests import FOREVER, pod, shell

MEBI = 1 << 20
_number = itertools.count()


@pytest.fixture(scope="module")
def api(kubelet: Kubelet) -> Iterator[ApiServer]:
    server = ApiServer()
    node = {"name": NODE, "uid": NODE}
    server.put("nodes", {"apiVersion": "v1", "kind": "Node", "metadata": node, "spec": {}})
    try:
        kubelet.restart(kubeconfig=server.kubeconfig())
        yield server
    finally:
        kubelet.restart()
        server.close()


def create(api: ApiServer, manifest: dict[str, Any]) -> str:
    """Put a pod onto the node as the scheduler does; returns its name."""
    made = copy.deepcopy(manifest)
    made["metadata"]["uid"] = f"{os.getpid():08x}-0000-0000-0000-{next(_number):012x}"
    # What an API server fills in, as far as the kubelet relies on it.
    defaults = {"restartPolicy": "Always", "dnsPolicy": "Default", "enableServiceLinks": False}
    made["spec"] = {**defaults, "securityContext": {}, "nodeName": NODE, **made["spec"]}
    made["status"] = {"phase": "Pending"}
    api.put("pods", made)
    return str(made["metadata"]["name"])


def end(api: ApiServer, kubelet: Kubelet, name: str) -> None:
    """Delete a pod as kubectl does: with its grace, and then for good by the kubelet."""
    kubelet.pods()
    times = {"deletionTimestamp": "2020-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}
    api.merge("pods", "tests", name, {"metadata": times})
    kubelet.until_gone(name)


def resources(memory: int, cpu: int) -> dict[str, Any]:
    values = {"memory": f"{memory}Mi", "cpu": f"{cpu}m"}
    return {"limits": values, "requests": dict(values)}


def resize(api: ApiServer, name: str, wanted: dict[str, Any]) -> None:
    changed = {"spec": {"containers": [{"name": "main", "resources": wanted}]}}
    api.merge("pods", "tests", name, changed)


def cgroup_limits(kubelet: Kubelet, name: str) -> list[int]:
    """Memory and CPU quota, as the container's cgroup has them."""
    files = ("memory/memory.limit_in_bytes", "cpu/cpu.cfs_quota_us")
    if not Path("/sys/fs/cgroup/memory").exists():
        files = ("memory.max", "cpu.max")
    shown = kubelet.run(name, " ".join(["cat", *(f"/sys/fs/cgroup/{file}" for file in files)]))
    return [int(line.split()[0]) for line in shown.splitlines()]


def test_a_pod_is_resized_in_place(kubelet: Kubelet, api: ApiServer) -> None:
    first, more, less = resources(32, 100), resources(64, 200), resources(48, 50)
    name = create(api, pod(shell(FOREVER, resources=first)))
    before = containers(kubelet.until(name, is_running, "its start"))["main"]
    assert cgroup_limits(kubelet, name) == [32 * MEBI, 10_000]
    for wanted, limits in ((more, [64 * MEBI, 20_000]), (less, [48 * MEBI, 5_000])):
        resize(api, name, wanted)
        shown = kubelet.until(
            name,
            lambda one, wanted=wanted: containers(one)["main"]["resources"] == wanted,
            f"the new limits {wanted}",
        )
        assert cgroup_limits(kubelet, name) == limits
        after = containers(shown)["main"]
        assert after["restartCount"] == 0
        assert after["containerID"] == before["containerID"]
    end(api, kubelet, name)


def test_a_resize_that_asks_for_a_restart(kubelet: Kubelet, api: ApiServer) -> None:
    policy = [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    main = shell(FOREVER, resources=resources(32, 100), resizePolicy=policy)
    name = create(api, pod(main))
    before = containers(kubelet.until(name, is_running, "its start"))["main"]
    resize(api, name, resources(64, 100))
    after = kubelet.until(
        name,
        lambda one: containers(one)["main"]["restartCount"] == 1 and is_running(one),
        "a restart",
    )
    assert containers(after)["main"]["containerID"] != before["containerID"]
    assert cgroup_limits(kubelet, name) == [64 * MEBI, 10_000]
    end(api, kubelet, name)


def test_a_projected_volume(kubelet: Kubelet, api: ApiServer) -> None:
    api.put("configmaps", {"apiVersion": "v1", "kind": "ConfigMap",
                           "metadata": {"name": "settings", "namespace": "tests"},
                           "data": {"color": "green"}})  # fmt: skip
    field = {"path": "pod", "fieldRef": {"fieldPath": "metadata.name"}}
    sources = [
        {"configMap": {"name": "settings", "items": [{"key": "color", "path": "a/color"}]}},
        {"downwardAPI": {"items": [field]}},
    ]
    script = "cat /all/a/color; echo; cat /all/pod; echo; stat -L -c %a /all/pod"
    name = create(
        api,
        pod(
            shell(script, volumeMounts=[{"name": "all", "mountPath": "/all", "readOnly": True}]),
            volumes=[{"name": "all", "projected": {"sources": sources, "defaultMode": 0o440}}],
            restartPolicy="Never",
        ),
    )
    kubelet.until(name, has_ended, "its end")
    printed = kubelet.get(f"/containerLogs/tests/{name}/main").decode()
    assert printed.splitlines() == ["green", name, "440"]
    end(api, kubelet, name)
