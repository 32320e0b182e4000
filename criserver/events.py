"""Changes of sandboxes and containers, for those that listen to them (GetContainerEvents).

A store publishes what it has just written. A change is kept as the records of that moment, which
nobody changes, so that publishing costs next to nothing; the messages are made when they are sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from api.cri import api_pb2 as cri
from api.errors import CRIError, ResourceExhaustedError, UnavailableError
from criserver.store.containers import Container, ContainerStore
from criserver.store.sandboxes import Sandbox, SandboxStore

# What may wait for one listener. containerd's hundred make the operations themselves wait; here
# they never do: a listener that is slower is told, and has to list everything anew.
MAX_PENDING = 1000

# What is kept while nobody listens, and for how long, as in containerd: a kubelet that is
# restarted hears what it has missed.
MAX_HELD = 1000
HELD_NS = 5 * 60 * 10**9


@dataclass(frozen=True)
class Change:
    """One change: of the sandbox itself when `subject` is its id, else of a container in it."""

    subject: str
    type: cri.ContainerEventType
    created_at: int  # ns since the epoch
    sandbox: Sandbox
    containers: tuple[Container, ...]  # of the sandbox, right after the change


class Listener:
    """The changes that one listener has not taken yet."""

    def __init__(self, held: Iterator[Change]) -> None:
        self._pending = deque(held)
        self._wake = asyncio.Event()
        self._end: CRIError | None = None

    def put(self, change: Change) -> bool:
        """Add a change; over MAX_PENDING it is lost, and the listener's stream ends (False)."""
        has_room = len(self._pending) < MAX_PENDING
        if has_room:
            self._pending.append(change)
            self._wake.set()
        else:
            self.end(
                ResourceExhaustedError(
                    f"the reader of the events is over {MAX_PENDING} behind: events are lost; "
                    "list sandboxes and containers, then listen again"
                )
            )
        return has_room

    @property
    def pending(self) -> int:
        """How many changes wait to be taken."""
        return len(self._pending)

    def end(self, reason: CRIError) -> None:
        """End the stream once what is pending has been taken."""
        self._end = self._end or reason
        self._wake.set()

    async def changes(self) -> AsyncIterator[Change]:
        """Return the changes as they come; raises the reason of the end."""
        while True:
            while self._pending:
                yield self._pending.popleft()
            if self._end is not None:
                raise self._end
            self._wake.clear()
            await self._wake.wait()


class Events:
    """Everyone who listens; used on the event loop's thread only."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._held: deque[Change] = deque(maxlen=MAX_HELD)
        self.observers: list[Callable[[Change], None]] = []
        """Called with each change, before the listeners."""
        self.dropped = 0
        """Changes that a listener has lost, or that nobody came for while there was room."""

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @property
    def backlog(self) -> int:
        """How many changes wait for the slowest listener, or are kept for the next one."""
        return max((each.pending for each in self._listeners), default=len(self._held))

    def publish(self, change: Change) -> None:
        """Hand a change to all listeners, or keep it for the next one."""
        for observer in self.observers:
            observer(change)
        self.dropped += sum(not listener.put(change) for listener in self._listeners)
        if not self._listeners:
            self.dropped += len(self._held) == MAX_HELD
            self._held.append(change)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Listen from now on; the first one hears what was held, too."""
        oldest = time.time_ns() - HELD_NS
        listener = Listener(each for each in self._held if each.created_at >= oldest)
        self._held.clear()
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

    def close(self) -> None:
        """End all streams: the daemon stops."""
        for listener in self._listeners:
            listener.end(UnavailableError("criserver is stopping; listen again"))


def publish_changes(events: Events, sandboxes: SandboxStore, containers: ContainerStore) -> None:
    """Have the two stores publish what they write."""

    def publish(subject: str, change: cri.ContainerEventType, sandbox: Sandbox) -> None:
        made = tuple(each for each in containers.of_sandbox(sandbox.id) if each.made)
        events.publish(Change(subject, change, time.time_ns(), sandbox, made))

    def of_container(change: cri.ContainerEventType, container: Container) -> None:
        publish(container.id, change, sandboxes.mirror.exact(container.sandbox_id))

    sandboxes.changed = lambda change, sandbox: publish(sandbox.id, change, sandbox)
    containers.changed = of_container
