"""Containers on disk and in memory.

    reserve ──▶ (being made) ──created──▶ CREATED ──START──▶ RUNNING
                     │                       │                  │
                     │             START_FAILED, EXIT, LOST  EXIT, LOST
                     │                       └──────▶ EXITED ◀──┘
                     └─────────remove──────▶ gone ◀──remove── any

The state is derived from the times: created_at 0 is "being made", then CREATED until started_at or
finished_at is set. `NEXT` is the whole table; what is not in it is a bug and raises. CRI's UNKNOWN
is never used: what cannot be found out is EXITED with reason Unknown.
"""

from __future__ import annotations

import enum
import json
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from functools import cached_property
from typing import Any

from api.cri import api_pb2 as cri
from api.errors import AlreadyExistsError
from criserver.store.mirror import Mirror

TABLE = """
CREATE TABLE IF NOT EXISTS containers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id),
    config BLOB NOT NULL,              -- runtime.v1.ContainerConfig
    image_id TEXT NOT NULL,            -- the image's config digest; '' while being made
    log_path TEXT NOT NULL,            -- absolute; '' is no log
    stop_signal INTEGER NOT NULL,      -- the signal's number
    user TEXT NOT NULL,                -- JSON: uid, gid, groups
    created_at INTEGER NOT NULL,       -- ns since the epoch; 0 while being made
    started_at INTEGER NOT NULL,       -- ns since the epoch; 0 before
    finished_at INTEGER NOT NULL,      -- ns since the epoch; 0 before
    pid INTEGER NOT NULL,              -- of init on the host; 0 when there is none
    exit_code INTEGER NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    stop_signalled INTEGER NOT NULL    -- 1 when the stop signal has been sent
)
"""

START_ERROR_CODE = 128  # what the peers and the kubelet use for a container that never ran
UNKNOWN_CODE = 255  # what the peers report for a container whose end nobody saw

REASON_COMPLETED = "Completed"
REASON_ERROR = "Error"
REASON_OOM_KILLED = "OOMKilled"
REASON_START_ERROR = "StartError"
REASON_UNKNOWN = "Unknown"


class State(enum.IntEnum):
    """The states, numbered as runtime.v1.ContainerState."""

    CREATED = cri.CONTAINER_CREATED
    RUNNING = cri.CONTAINER_RUNNING
    EXITED = cri.CONTAINER_EXITED


# The same numbers, typed as protobuf's.
CRI_STATES: dict[State, cri.ContainerState] = {
    State.CREATED: cri.CONTAINER_CREATED,
    State.RUNNING: cri.CONTAINER_RUNNING,
    State.EXITED: cri.CONTAINER_EXITED,
}


class Event(enum.Enum):
    """What changes a state."""

    START = "start"
    START_FAILED = "start failed"
    EXIT = "exit"
    LOST = "lost"


NEXT = {
    (State.CREATED, Event.START): State.RUNNING,
    (State.CREATED, Event.START_FAILED): State.EXITED,
    (State.CREATED, Event.EXIT): State.EXITED,
    (State.CREATED, Event.LOST): State.EXITED,
    (State.RUNNING, Event.EXIT): State.EXITED,
    (State.RUNNING, Event.LOST): State.EXITED,
    # The exit of a short container, or of one that failed to start, may overtake start's answer.
    (State.EXITED, Event.START): State.EXITED,
    (State.EXITED, Event.START_FAILED): State.EXITED,
}


class TransitionError(Exception):
    """An event that the state does not allow: a bug of the daemon."""


def check_transition(state: State, event: Event) -> State:
    """Return the state after an event; raises TransitionError."""
    try:
        return NEXT[state, event]
    except KeyError:
        raise TransitionError(f"a container that is {state.name} cannot {event.value}") from None


@dataclass(frozen=True)
class Container:
    """One row, in the table's order; `config` is a serialised ContainerConfig."""

    id: str
    name: str
    sandbox_id: str
    config: bytes
    image_id: str = ""
    log_path: str = ""
    stop_signal: int = signal.SIGTERM
    user: str = ""
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    pid: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    stop_signalled: int = 0

    @property
    def made(self) -> bool:
        """Tell whether its creation has come to its end."""
        return self.created_at != 0

    @property
    def state(self) -> State:
        """The state that the times say."""
        if self.finished_at:
            return State.EXITED
        return State.RUNNING if self.started_at else State.CREATED

    @cached_property
    def message_config(self) -> cri.ContainerConfig:
        """The config, parsed once per record; nobody changes it."""
        return cri.ContainerConfig.FromString(self.config)

    @cached_property
    def listed(self) -> cri.Container:
        """The container as lists show it, put together once per record; nobody changes it."""
        config = self.message_config
        return cri.Container(
            id=self.id,
            pod_sandbox_id=self.sandbox_id,
            metadata=config.metadata,
            image=config.image,
            image_ref=self.image_id,
            image_id=self.image_id,
            state=CRI_STATES[self.state],
            created_at=self.created_at,
            labels=config.labels,
            annotations=config.annotations,
        )

    @cached_property
    def user_values(self) -> dict[str, Any]:
        """The user's JSON object; empty while the container is being made."""
        return json.loads(self.user) if self.user else {}


COLUMNS = tuple(field.name for field in fields(Container))


def container_name(metadata: cri.ContainerMetadata, sandbox: cri.PodSandboxMetadata) -> str:
    """Return the name that the CRI makes unique: container, pod, namespace, uid, attempt."""
    pod = (sandbox.name, sandbox.namespace, sandbox.uid)
    return "_".join((metadata.name, *pod, str(metadata.attempt)))


# Called after a change is on disk and in memory.
Observer = Callable[["cri.ContainerEventType", Container], None]


def _nobody(_change: cri.ContainerEventType, _container: Container) -> None:
    """Observe nothing."""


class ContainerStore:
    """The table and its mirror; used on the event loop's thread only."""

    def __init__(self, connection: sqlite3.Connection, changed: Observer = _nobody) -> None:
        self._connection = connection
        self.changed = changed
        self.mirror: Mirror[Container] = Mirror("container")
        with connection:
            connection.execute(TABLE)
        self._of_sandbox: dict[str, dict[str, None]] = {}
        rows = f"SELECT {', '.join(COLUMNS)} FROM containers ORDER BY created_at"
        for row in connection.execute(rows):
            self._add(Container(*row))

    def of_sandbox(self, sandbox_id: str) -> list[Container]:
        """Return the containers of a sandbox, those that are being made included."""
        return [self.mirror.exact(each) for each in self._of_sandbox.get(sandbox_id, ())]

    def _add(self, container: Container) -> None:
        self.mirror.put(container)
        self._of_sandbox.setdefault(container.sandbox_id, {})[container.id] = None

    def reserve(
        self, container_id: str, name: str, sandbox_id: str, config: cri.ContainerConfig
    ) -> Container:
        """Add a container that is being made, and with it take its name; AlreadyExistsError."""
        holder = self.mirror.by_name(name)
        if holder is not None:
            raise AlreadyExistsError(f"the container name {name} belongs to {holder.id}")
        container = Container(container_id, name, sandbox_id, config.SerializeToString())
        places = ", ".join("?" * len(COLUMNS))
        with self._connection:
            self._connection.execute(
                f"INSERT INTO containers ({', '.join(COLUMNS)}) VALUES ({places})",
                astuple(container),
            )
        self._add(container)
        return container

    def created(self, container_id: str, **values: Any) -> Container:
        """Make a container CREATED and visible; `values` are the columns that creation found."""
        return self._tell(cri.CONTAINER_CREATED_EVENT, self._update(container_id, **values))

    def started(self, container_id: str, started_at: int) -> Container:
        """Take the success of start."""
        check_transition(self.mirror.exact(container_id).state, Event.START)
        started = self._update(container_id, started_at=started_at)
        return self._tell(cri.CONTAINER_STARTED_EVENT, started)

    def start_failed(self, container_id: str, message: str, now: int) -> Container:
        """Take the failure of start: EXITED, StartError, 128."""
        check_transition(self.mirror.exact(container_id).state, Event.START_FAILED)
        failed = self._update(
            container_id,
            finished_at=now,
            pid=0,
            exit_code=START_ERROR_CODE,
            reason=REASON_START_ERROR,
            message=message,
        )
        return self._tell(cri.CONTAINER_STOPPED_EVENT, failed)

    def exited(self, container_id: str, exit_code: int, finished_at: int, oom: bool) -> Container:
        """Take the exit record; a container that has EXITED already keeps what it has."""
        container = self.mirror.exact(container_id)
        if container.state is State.EXITED:
            return container
        check_transition(container.state, Event.EXIT)
        reason = REASON_OOM_KILLED if oom else REASON_ERROR if exit_code else REASON_COMPLETED
        exited = self._update(
            container_id, finished_at=finished_at, pid=0, exit_code=exit_code, reason=reason
        )
        return self._tell(cri.CONTAINER_STOPPED_EVENT, exited)

    def lost(self, container_id: str, message: str, now: int) -> Container:
        """Take that nobody knows how the container ended: EXITED, Unknown, 255."""
        check_transition(self.mirror.exact(container_id).state, Event.LOST)
        lost = self._update(
            container_id,
            finished_at=now,
            pid=0,
            exit_code=UNKNOWN_CODE,
            reason=REASON_UNKNOWN,
            message=message,
        )
        return self._tell(cri.CONTAINER_STOPPED_EVENT, lost)

    def stop_signalled(self, container_id: str) -> Container:
        """Remember that the stop signal has been sent: it is sent once."""
        return self._update(container_id, stop_signalled=1)

    def remove(self, container_id: str) -> None:
        """Remove a container and free its name."""
        container = self.mirror.exact(container_id)
        with self._connection:
            self._connection.execute("DELETE FROM containers WHERE id = ?", (container_id,))
        self.mirror.drop(container_id)
        siblings = self._of_sandbox[container.sandbox_id]
        del siblings[container_id]
        if not siblings:
            del self._of_sandbox[container.sandbox_id]
        if container.made:
            self._tell(cri.CONTAINER_DELETED_EVENT, container)

    def configured(self, container_id: str, config: cri.ContainerConfig) -> Container:
        """Take new limits into the config of a container."""
        return self._update(container_id, config=config.SerializeToString())

    def _tell(self, change: cri.ContainerEventType, container: Container) -> Container:
        self.changed(change, container)
        return container

    def _update(self, container_id: str, **changes: Any) -> Container:
        container = replace(self.mirror.exact(container_id), **changes)
        columns = ", ".join(f"{column} = ?" for column in changes)
        with self._connection:
            self._connection.execute(
                f"UPDATE containers SET {columns} WHERE id = ?", (*changes.values(), container_id)
            )
        self.mirror.put(container)
        return container
