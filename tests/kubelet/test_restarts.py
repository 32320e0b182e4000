"""The runtime and the kubelet end and start again while pods run: no pod notices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.daemon import wait_for
from tests.kubelet.kubelet import (
    Kubelet,
    Runtime,
    containers,
    has_ended,
    is_ready,
    is_running,
    waits_for,
)
from tests.kubelet.manifests import FOREVER, pod, shell

COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done"
PROBE = {"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 5}

Restart = Callable[[], None]


@pytest.fixture(params=["runtime SIGTERM", "runtime SIGKILL", "kubelet SIGTERM", "kubelet SIGKILL"])
def restart(request: pytest.FixtureRequest, kubelet: Kubelet, runtime: Runtime) -> Restart:
    """End the one or the other in this way, and start it again."""
    who = runtime if request.param.startswith("runtime") else kubelet
    end = who.kill9 if request.param.endswith("SIGKILL") else who.stop

    def again() -> None:
        end()
        who.start()

    return again


def lines(kubelet: Kubelet, name: str) -> list[int]:
    text = kubelet.get(f"/containerLogs/tests/{name}/main").decode()
    if text.startswith("unable to retrieve container logs"):
        return []  # the kubelet connects again to a runtime that was away within 3 s
    return [int(line) for line in text.split()]


def identity(one: dict[str, Any]) -> tuple[Any, ...]:
    """What must not change."""
    statuses = {**containers(one), **containers(one, "initContainerStatuses")}
    parts = [(key, s["containerID"], s["restartCount"], s["state"]) for key, s in statuses.items()]
    return one["metadata"]["uid"], one["status"].get("podIP"), sorted(parts, key=lambda p: p[0])


def test_running_pods_are_not_disturbed(kubelet: Kubelet, restart: Restart) -> None:
    sidecar = shell(FOREVER, "sidecar", restartPolicy="Always")
    names = [
        kubelet.put(pod(shell(COUNT, readinessProbe=PROBE, livenessProbe=PROBE))),
        kubelet.put(pod(shell(COUNT), initContainers=[sidecar], hostNetwork=True)),
        kubelet.put(pod(shell(COUNT), shareProcessNamespace=True)),
        kubelet.put(pod(shell(COUNT), hostUsers=False)),
    ]
    before = {name: identity(kubelet.until(name, is_ready, "readiness")) for name in names}
    for _ in range(2):
        restart()
        for name in names:
            assert identity(kubelet.until(name, is_ready, "readiness")) == before[name]
            seen = len(lines(kubelet, name))
            wait_for(lambda name=name, seen=seen: len(lines(kubelet, name)) > seen, "more lines")
    for name in names:
        found = lines(kubelet, name)
        assert found == list(range(1, len(found) + 1))
        assert identity(kubelet.pods()[name]) == before[name]


def test_what_ends_meanwhile_is_known_after_it(
    kubelet: Kubelet, runtime: Runtime, tmp_path: Any
) -> None:
    mount = {"volumeMounts": [{"name": "events", "mountPath": "/events"}]}
    volumes = [{"name": "events", "hostPath": {"path": str(tmp_path)}}]
    script = "until [ -e /events/end ]; do sleep 0.1; done; echo last; touch /events/over; exit 7"
    name = kubelet.put(pod(shell(script, **mount), volumes=volumes, restartPolicy="Never"))
    kubelet.until(name, is_running, "its start")
    runtime.kill9()
    (tmp_path / "end").touch()
    wait_for(lambda: (tmp_path / "over").exists(), "its end")
    runtime.start()
    ended = containers(kubelet.until(name, has_ended, "its end"))["main"]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (7, "Error")
    assert kubelet.get(f"/containerLogs/tests/{name}/main") == b"last\n"


def test_a_pod_removed_while_the_runtime_is_down_ends(kubelet: Kubelet, runtime: Runtime) -> None:
    name = kubelet.put(pod())
    kubelet.until(name, is_running, "its start")
    runtime.kill9()
    kubelet.remove(name)
    runtime.start()
    kubelet.until_gone(name)


def test_a_pod_made_while_the_runtime_is_down_starts(kubelet: Kubelet, runtime: Runtime) -> None:
    runtime.stop()
    name = kubelet.put(pod())
    runtime.start()
    kubelet.until(name, is_running, "its start")


def test_kills_at_any_moment_of_a_pods_start(kubelet: Kubelet, runtime: Runtime) -> None:
    """In the end every pod runs once, with nothing of another attempt beside it."""
    init = shell("echo init", "init")
    names = [kubelet.put(pod(shell(COUNT), initContainers=[init])) for _ in range(4)]
    for _ in itertools.repeat(None, 5):
        runtime.kill9()
        runtime.start()
    for name in names:
        kubelet.until(name, is_running, "its start", 180.0)
    sandboxes = [one for one in kubelet.runtime_pods() if one.state == 0]
    ours = [one for one in sandboxes if one.metadata.name in names]
    assert sorted(one.metadata.name for one in ours) == sorted(names)


def test_a_crash_loop_goes_on(kubelet: Kubelet, runtime: Runtime) -> None:
    name = kubelet.put(pod(shell("exit 5")))
    before = kubelet.until(name, waits_for("CrashLoopBackOff"), "the back-off")
    runtime.kill9()
    runtime.start()
    count = containers(before)["main"]["restartCount"]
    kubelet.until(name, lambda one: containers(one)["main"]["restartCount"] > count, "a retry")
