"""Changes of the stores, and those who listen to them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator

import pytest

from api.cri import api_pb2 as cri
from api.errors import ResourceExhaustedError, UnavailableError
from criserver import events as hub
from criserver.container_events import message
from criserver.events import Change, Events, Listener, publish_changes
from criserver.store.containers import ContainerStore
from criserver.store.sandboxes import SandboxStore

CREATED, STARTED = cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT
STOPPED, DELETED = cri.CONTAINER_STOPPED_EVENT, cri.CONTAINER_DELETED_EVENT
POD = cri.PodSandboxConfig(
    metadata=cri.PodSandboxMetadata(name="p", namespace="ns", uid="u"),
    linux=cri.LinuxPodSandboxConfig(),
)
CONFIG = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"))
USER = '{"uid": 0, "gid": 0, "groups": [0]}'


class Stores:
    """Both stores on a database in memory, with a listener."""

    def __init__(self, connection: sqlite3.Connection, listener: Listener) -> None:
        self.events = Events()
        self.sandboxes = SandboxStore(connection)
        self.containers = ContainerStore(connection)
        publish_changes(self.events, self.sandboxes, self.containers)
        self.listener = listener

    def pod(self) -> None:
        self.sandboxes.reserve("s", POD, "")
        self.sandboxes.created("s", {"ips": ["10.0.0.1"]}, 1)

    def container(self, name: str = "c") -> None:
        self.containers.reserve(name, name, "s", CONFIG)
        self.containers.created(name, image_id="i", user=USER, created_at=2, pid=9)

    def told(self) -> list[tuple[str, int]]:
        pending = self.listener._pending
        return [(change.subject, int(change.type)) for change in pending]

    def last(self) -> cri.ContainerEventResponse:
        return message(self.listener._pending[-1], lambda image_id, _name: image_id)


@pytest.fixture
def stores() -> Iterator[Stores]:
    connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    made = Stores(connection, Listener(iter(())))
    with made.events.listen() as listener:
        made.listener = listener
        yield made
    connection.close()


def test_a_life(stores: Stores) -> None:
    stores.pod()
    stores.container()
    stores.containers.started("c", 3)
    stores.containers.exited("c", 0, 4, False)
    stores.sandboxes.stopped("s", 5)
    stores.sandboxes.stopped("s", 6)
    stores.containers.remove("c")
    stores.sandboxes.remove("s")
    assert stores.told() == [
        ("s", CREATED),
        ("s", STARTED),
        ("c", CREATED),
        ("c", STARTED),
        ("c", STOPPED),
        ("s", STOPPED),
        ("c", DELETED),
        ("s", DELETED),
    ]


def test_an_event_has_the_statuses_right_after_the_change(stores: Stores) -> None:
    stores.pod()
    stores.container()
    stores.containers.started("c", 3)
    event = stores.last()
    assert event.container_id == "c"
    assert event.pod_sandbox_status.network.ip == "10.0.0.1"
    assert [status.state for status in event.containers_statuses] == [cri.CONTAINER_RUNNING]
    assert event.created_at > 0
    stores.containers.exited("c", 7, 4, False)
    assert event.containers_statuses[0].state == cri.CONTAINER_RUNNING
    assert stores.last().containers_statuses[0].exit_code == 7


def test_the_newest_attempt_of_a_container_comes_first(stores: Stores) -> None:
    stores.pod()
    for attempt in range(3):
        stores.containers.reserve(f"c{attempt}", f"c{attempt}", "s", CONFIG)
        stores.containers.created(f"c{attempt}", image_id="i", user=USER, created_at=attempt + 2)
    assert [each.id for each in stores.last().containers_statuses] == ["c2", "c1", "c0"]


def test_the_end_of_a_sandbox_still_names_it(stores: Stores) -> None:
    """The kubelet clears its cache by it, and ignores an event without a status."""
    stores.pod()
    stores.sandboxes.remove("s")
    event = stores.last()
    assert (event.container_id, event.container_event_type) == ("s", DELETED)
    assert event.pod_sandbox_status.id == "s"


def test_the_end_of_a_container_leaves_the_others(stores: Stores) -> None:
    stores.pod()
    stores.container("c")
    stores.container("d")
    stores.containers.remove("c")
    assert [status.id for status in stores.last().containers_statuses] == ["d"]


def test_a_failed_start_and_a_lost_container_are_stops(stores: Stores) -> None:
    stores.pod()
    stores.container("c")
    stores.container("d")
    stores.containers.start_failed("c", "no such file", 3)
    stores.containers.exited("c", 1, 4, False)  # of the init, after its failure
    stores.containers.lost("d", "gone", 5)
    assert stores.told()[-2:] == [("c", STOPPED), ("d", STOPPED)]


def test_what_was_never_made_is_never_told(stores: Stores) -> None:
    stores.sandboxes.reserve("s", POD, "")
    stores.containers.reserve("c", "c", "s", CONFIG)
    stores.containers.remove("c")
    stores.sandboxes.remove("s")
    assert stores.told() == []


def change(number: int, created_at: int = 1 << 62) -> Change:
    return Change(str(number), CREATED, created_at, None, ())  # type: ignore[arg-type]


async def test_the_first_listener_hears_what_it_missed() -> None:
    events = Events()
    events.publish(change(0, created_at=1))  # long ago
    events.publish(change(1))
    with events.listen() as first, events.listen() as second:
        events.publish(change(2))
        assert [each.subject for each in first._pending] == ["1", "2"]
        assert [each.subject for each in second._pending] == ["2"]


async def test_a_listener_waits_and_is_woken() -> None:
    events = Events()
    with events.listen() as listener:
        changes = listener.changes()
        waiting = asyncio.create_task(anext(changes))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert not waiting.done()
        events.publish(change(1))
        assert (await waiting).subject == "1"


async def test_a_slow_listener_is_told_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "MAX_PENDING", 2)
    events = Events()
    with events.listen() as slow, events.listen() as quick:
        taking = quick.changes()
        for number in range(4):
            events.publish(change(number))
            assert (await anext(taking)).subject == str(number)
        seen = []
        with pytest.raises(ResourceExhaustedError, match="list sandboxes"):
            async for each in slow.changes():
                seen.append(each.subject)
        assert seen == ["0", "1"], "what came before the gap is delivered"


async def test_a_stop_ends_the_streams() -> None:
    events = Events()
    with events.listen() as listener:
        events.publish(change(1))
        events.close()
        changes = listener.changes()
        assert (await anext(changes)).subject == "1"
        with pytest.raises(UnavailableError, match="stopping"):
            await anext(changes)


async def test_without_listeners_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_HELD", 3)
    events = Events()
    for number in range(10):
        events.publish(change(number))
    with events.listen() as listener:
        assert [each.subject for each in listener._pending] == ["7", "8", "9"]
