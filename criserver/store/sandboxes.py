"""Sandboxes on disk and in memory.

    reserve ──▶ (being made) ──created──▶ READY ──stopped──▶ NOTREADY ──remove──▶ gone
                     └───────────────────remove──────────────────────────────────▶ gone

The state is derived from the times: created_at 0 is "being made", stopped_at 0 is READY. A sandbox
is NOTREADY from the moment its stop begins, so that nothing new is created in it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from api.cri import api_pb2 as cri
from api.errors import AlreadyExistsError
from criserver.store.mirror import Mirror

COLUMNS = "id, name, config, runtime_handler, runtime, created_at, stopped_at"

TABLE = """
CREATE TABLE IF NOT EXISTS sandboxes (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    config BLOB NOT NULL,           -- runtime.v1.PodSandboxConfig
    runtime_handler TEXT NOT NULL,  -- as requested: '' is the default
    runtime TEXT NOT NULL,          -- podsandbox's SandboxRuntime as JSON; '' while being made
    created_at INTEGER NOT NULL,    -- ns since the epoch; 0 while being made
    stopped_at INTEGER NOT NULL     -- ns since the epoch; 0 while ready
)
"""


@dataclass(frozen=True)
class Sandbox:
    """One row; `config` is a serialised PodSandboxConfig, times are ns since the epoch."""

    id: str
    name: str
    config: bytes
    runtime_handler: str
    runtime: str
    created_at: int
    stopped_at: int

    @property
    def made(self) -> bool:
        """Tell whether its creation has come to its end."""
        return self.created_at != 0

    @property
    def state(self) -> cri.PodSandboxState:
        """The state that the times say."""
        if self.made and not self.stopped_at:
            return cri.SANDBOX_READY
        return cri.SANDBOX_NOTREADY

    @cached_property
    def message(self) -> cri.PodSandboxConfig:
        """The config, parsed once per record; nobody changes it."""
        return cri.PodSandboxConfig.FromString(self.config)

    @cached_property
    def listed(self) -> cri.PodSandbox:
        """The sandbox as lists show it, put together once per record; nobody changes it."""
        return cri.PodSandbox(
            id=self.id,
            metadata=self.message.metadata,
            state=self.state,
            created_at=self.created_at,
            labels=self.message.labels,
            annotations=self.message.annotations,
            runtime_handler=self.runtime_handler,
        )

    @cached_property
    def runtime_values(self) -> dict[str, Any] | None:
        """The runtime's JSON object; None while the sandbox is being made."""
        return json.loads(self.runtime) if self.runtime else None


def sandbox_name(metadata: cri.PodSandboxMetadata) -> str:
    """Return the name that the CRI makes unique: name_namespace_uid_attempt."""
    return "_".join((metadata.name, metadata.namespace, metadata.uid, str(metadata.attempt)))


# Called after a change is on disk and in memory.
Observer = Callable[["cri.ContainerEventType", Sandbox], None]


def _nobody(_change: cri.ContainerEventType, _sandbox: Sandbox) -> None:
    """Observe nothing."""


class SandboxStore:
    """The table and its mirror; used on the event loop's thread only."""

    def __init__(self, connection: sqlite3.Connection, changed: Observer = _nobody) -> None:
        self._connection = connection
        self.changed = changed
        self.mirror: Mirror[Sandbox] = Mirror("pod sandbox")
        with connection:
            connection.execute(TABLE)
        for row in connection.execute(f"SELECT {COLUMNS} FROM sandboxes ORDER BY created_at"):
            self.mirror.put(Sandbox(*row))

    def reserve(self, sandbox_id: str, config: cri.PodSandboxConfig, handler: str) -> Sandbox:
        """Add a sandbox that is being made, and with it take its name; AlreadyExistsError."""
        name = sandbox_name(config.metadata)
        holder = self.mirror.by_name(name)
        if holder is not None:
            raise AlreadyExistsError(f"the pod sandbox name {name} belongs to {holder.id}")
        sandbox = Sandbox(sandbox_id, name, config.SerializeToString(), handler, "", 0, 0)
        values = (sandbox.id, name, sandbox.config, handler, "", 0, 0)
        with self._connection:
            self._connection.execute("INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        self.mirror.put(sandbox)
        return sandbox

    def created(self, sandbox_id: str, runtime: dict[str, Any], created_at: int) -> Sandbox:
        """Make a sandbox READY and visible."""
        made = self._update(sandbox_id, runtime=json.dumps(runtime), created_at=created_at)
        self.changed(cri.CONTAINER_CREATED_EVENT, made)
        self.changed(cri.CONTAINER_STARTED_EVENT, made)
        return made

    def stopped(self, sandbox_id: str, stopped_at: int) -> Sandbox:
        """Make a sandbox NOTREADY; the first time stays."""
        sandbox = self.mirror.exact(sandbox_id)
        if sandbox.stopped_at:
            return sandbox
        sandbox = self._update(sandbox_id, stopped_at=stopped_at)
        self.changed(cri.CONTAINER_STOPPED_EVENT, sandbox)
        return sandbox

    def configured(self, sandbox_id: str, config: cri.PodSandboxConfig) -> Sandbox:
        """Take new resources into the config of a sandbox."""
        return self._update(sandbox_id, config=config.SerializeToString())

    def remove(self, sandbox_id: str) -> None:
        """Remove a sandbox and free its name; its containers are gone before."""
        sandbox = self.mirror.exact(sandbox_id)
        with self._connection:
            self._connection.execute("DELETE FROM sandboxes WHERE id = ?", (sandbox_id,))
        self.mirror.drop(sandbox_id)
        if sandbox.made:
            self.changed(cri.CONTAINER_DELETED_EVENT, sandbox)

    def _update(self, sandbox_id: str, **changes: Any) -> Sandbox:
        sandbox = replace(self.mirror.exact(sandbox_id), **changes)
        columns = ", ".join(f"{column} = ?" for column in changes)
        with self._connection:
            self._connection.execute(
                f"UPDATE sandboxes SET {columns} WHERE id = ?", (*changes.values(), sandbox_id)
            )
        self.mirror.put(sandbox)
        return sandbox
