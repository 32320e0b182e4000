"""GetContainerEvents: what a kubelet hears of pods and containers."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS, Daemon
from tests.integration.pods import Pods
from tests.integration.registry import Registry

CREATED, STARTED = cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT
STOPPED, DELETED = cri.CONTAINER_STOPPED_EVENT, cri.CONTAINER_DELETED_EVENT


@pytest.fixture
def pods(daemon: Daemon, registry: Registry) -> Pods:
    made = Pods(daemon)
    made.pull(registry)
    return made


class Ear:
    """Reads the stream on a thread, as a kubelet does."""

    def __init__(self, pods: Pods) -> None:
        self._call: Any = pods.daemon.runtime.GetContainerEvents(cri.GetEventsRequest())
        self._heard: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for event in self._call:
                self._heard.put(event)
        except grpc.RpcError as err:
            self._heard.put(err)

    def next(self) -> Any:
        return self._heard.get(timeout=RPC_SECONDS)

    def take(self, count: int) -> list[cri.ContainerEventResponse]:
        return [self.next() for _ in range(count)]

    def close(self) -> None:
        self._call.cancel()
        self._thread.join(RPC_SECONDS)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def ear(pods: Pods) -> Iterator[Ear]:
    made = Ear(pods)
    try:
        yield made
    finally:
        made.close()


def told(events: list[cri.ContainerEventResponse]) -> list[tuple[str, int]]:
    return [(event.container_id, int(event.container_event_type)) for event in events]


def test_the_life_of_a_pod_and_a_container(pods: Pods) -> None:
    with ear(pods) as listening:
        pod = pods.run_pod()
        container = pods.run(pod, "sh", "-c", "read x < /dev/null; exit 7")
        events = listening.take(5)
        assert told(events[:2]) == [(pod, CREATED), (pod, STARTED)]
        assert told(events[2:3]) == [(container, CREATED)]
        # The end of a short container may be seen before the answer to its start.
        assert sorted(told(events[3:])) == [(container, STARTED), (container, STOPPED)]
        stopped = next(e for e in events if e.container_event_type == STOPPED)
        (status,) = stopped.containers_statuses
        assert (status.id, status.exit_code, status.reason) == (container, 7, "Error")
        assert stopped.pod_sandbox_status.id == pod
        assert stopped.pod_sandbox_status.metadata.uid
        assert all(event.created_at > 0 for event in events)
        times = [event.created_at for event in events]
        assert times == sorted(times)
        pods.stop_pod(pod)
        pods.remove_pod(pod)
        last = listening.take(3)
        assert told(last) == [(pod, STOPPED), (container, DELETED), (pod, DELETED)]
        assert last[0].pod_sandbox_status.state == cri.SANDBOX_NOTREADY
        assert list(last[1].containers_statuses) == []
        # The kubelet ignores events without it, and clears its cache by this one.
        assert last[2].pod_sandbox_status.id == pod


def test_every_listener_hears_everything(pods: Pods) -> None:
    with ear(pods) as first, ear(pods) as second:
        pods.daemon.runtime.Version(cri.VersionRequest(), timeout=RPC_SECONDS)
        pod = pods.run_pod()
        pods.remove_pod(pod)
        expected = [(pod, CREATED), (pod, STARTED), (pod, STOPPED), (pod, DELETED)]
        assert told(first.take(4)) == expected
        # The second may have come after the first event was sent; it misses no later one.
        assert told(second.take(1))[0] in expected


def test_what_happened_while_nobody_listened_is_told(pods: Pods) -> None:
    pod = pods.run_pod()
    container = pods.run(pod, "sleep", "3600")
    with ear(pods) as listening:
        assert told(listening.take(4)) == [
            (pod, CREATED),
            (pod, STARTED),
            (container, CREATED),
            (container, STARTED),
        ]
    pods.remove_pod(pod)


def test_a_stop_of_the_daemon_ends_the_stream_at_once_and_says_why(pods: Pods) -> None:
    with ear(pods) as listening:
        pod = pods.run_pod()
        listening.take(2)
        pods.daemon.stop()
        end = listening.next()
        assert end.code() == grpc.StatusCode.UNAVAILABLE
        assert "stopping" in end.details()
    pods.daemon.start()
    pods.remove_pod(pod)


def test_a_container_that_ends_while_the_daemon_is_dead_is_told_afterwards(pods: Pods) -> None:
    pod = pods.run_pod()
    container = pods.run(pod, "sh", "-c", "sleep 1; exit 3")
    pods.daemon.kill9()
    pods.daemon.start()
    with ear(pods) as listening:
        (event,) = listening.take(1)
        assert told([event]) == [(container, STOPPED)]
        assert event.containers_statuses[0].exit_code == 3
    pods.remove_pod(pod)


def test_a_listener_that_leaves_is_forgotten(pods: Pods) -> None:
    for _ in range(50):
        with ear(pods):
            pass
    pod = pods.run_pod()
    with ear(pods) as listening:
        assert len(listening.take(2)) == 2
    pods.remove_pod(pod)
