"""The kubelet that the runtime tells of changes (EventedPLEG), instead of it asking."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.kubelet.kubelet import (
    Kubelet,
    Runtime,
    containers,
    has_ended,
    has_restarted,
    is_ready,
    is_running,
)
from tests.kubelet.manifests import FOREVER, pod, shell


@pytest.fixture(scope="module")
def evented(kubelet: Kubelet) -> Iterator[Kubelet]:
    kubelet.restart(featureGates={"EventedPLEG": True})
    yield kubelet
    kubelet.restart()


def metric(kubelet: Kubelet, name: str) -> float:
    text = kubelet.get("/metrics").decode()
    found = re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_it_listens_to_events(evented: Kubelet) -> None:
    name = evented.put(pod())
    evented.until(name, is_ready, "readiness")
    assert metric(evented, "kubelet_evented_pleg_connection_success_count") >= 1
    assert metric(evented, "kubelet_evented_pleg_connection_error_count") == 0
    assert metric(evented, "kubelet_evented_pleg_connection_latency_seconds_count") >= 0


def test_a_life(evented: Kubelet) -> None:
    main, other = shell("sleep 2; exit 3"), shell("sleep 3", "other")
    init = shell("echo init", "init")
    name = evented.put(pod(main, other, initContainers=[init], restartPolicy="Never"))
    ended = evented.until(name, has_ended, "its end")
    assert containers(ended)["main"]["state"]["terminated"]["exitCode"] == 3
    assert containers(ended)["other"]["state"]["terminated"]["reason"] == "Completed"
    evented.remove(name)
    evented.until_gone(name)


def test_restarts_and_removal(evented: Kubelet) -> None:
    name = evented.put(pod(shell("sleep 1; exit 1"), shell(FOREVER, "other")))
    evented.until(name, has_restarted(2), "two restarts")
    evented.remove(name)
    evented.until_gone(name)


def test_the_runtimes_restart(evented: Kubelet, runtime: Runtime) -> None:
    name = evented.put(pod(shell("sleep 2; exit 1"), shell(FOREVER, "other")))
    evented.until(name, is_running, "its start")
    runtime.kill9()
    runtime.start()
    count = containers(evented.pods()[name])["main"]["restartCount"]
    evented.until(name, has_restarted(count + 1), "a restart")
