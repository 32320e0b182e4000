"""The last operations of each pod, container and image, kept after the object is gone.

An observer of all operations. Nothing is written while one runs: what has ended is written a
moment later, all of it in one transaction, which waits for no disk (see store.database). So a
daemon that is killed loses the last second. While nothing happens, nothing is done.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any

from api.cri import api_pb2 as cri
from api.stages import Stage, Stages
from criserver.events import Change
from criserver.explain.record import operation_record
from criserver.explain.subjects import CONTAINER, IMAGE, Found, Subject, Subjects, describe

log = logging.getLogger(__name__)

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS history_operations (
        number INTEGER PRIMARY KEY,        -- in the order in which they ended
        key TEXT NOT NULL,                 -- the object's id, or the image's name
        name TEXT NOT NULL,
        outcome TEXT NOT NULL,
        cause TEXT NOT NULL,
        times INTEGER NOT NULL,            -- how often in a row it has ended like this
        first_at INTEGER NOT NULL,         -- when the first of them began, ns since the epoch
        record TEXT NOT NULL               -- JSON, of the last of them
    )
    """,
    "CREATE INDEX IF NOT EXISTS history_operations_key ON history_operations (key)",
    """
    CREATE TABLE IF NOT EXISTS history_subjects (
        key TEXT PRIMARY KEY,
        kind TEXT NOT NULL,                -- pod, container or image
        name TEXT NOT NULL,
        namespace TEXT NOT NULL,           -- of the pod
        pod TEXT NOT NULL,                 -- its name
        sandbox TEXT NOT NULL,             -- the pod's id
        seen_at INTEGER NOT NULL           -- ns since the epoch
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS history_pulls (
        image TEXT NOT NULL,
        pod TEXT NOT NULL,                 -- the sandbox that wanted it
        PRIMARY KEY (image, pod)
    ) WITHOUT ROWID
    """,
)

# How long what has ended may wait to be written: many operations make one transaction.
FLUSH_SECONDS = 1.0
# How many operations of one object are kept: a creation, a start, an end, and what was tried again.
KEPT_OPERATIONS = 20
# How long, and how many, objects are remembered that are gone; an image since it was pulled last.
KEPT_NS = 24 * 3600 * 10**9
KEPT_SUBJECTS = 2000
PRUNE_SECONDS = 600.0
# What waits in memory while the database cannot be written (a full disk).
MAX_PENDING = 1000

PULL = "PullImage"


class History:
    """The operations under way, and those that have ended; used on the event loop's thread."""

    def __init__(self, connection: sqlite3.Connection, subjects: Subjects) -> None:
        self._connection = connection
        self.alive = subjects
        self._open: dict[Stages, None] = {}
        self._seen: dict[str, Found | None] = {}  # whom what is open or pending is about
        self._pending: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MAX_PENDING)
        self._pulls: set[tuple[str, str]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._pruned = time.monotonic()
        with connection:
            for statement in TABLES:
                connection.execute(statement)

    # -- what it is told ----------------------------------------------------------------------

    def operation_began(self, operation: Stages) -> None:
        """Keep it in view, and note whom it is about while that is known."""
        self._open[operation] = None
        self._note_subject(operation.key, operation.name)

    def operation_ended(self, operation: Stages) -> None:
        """Take it into what is to be written."""
        self._open.pop(operation, None)
        self._add(operation.key, operation_record(operation))

    def stage_began(self, stage: Stage) -> None:
        """Nothing: the operation has its stages."""

    def stage_ended(self, stage: Stage) -> None:
        """Nothing: the operation has its stages."""

    def changed(self, change: Change) -> None:
        """Note the end of a container or a pod, and how it ended."""
        if change.type != cri.CONTAINER_STOPPED_EVENT:
            return
        for container in change.containers:
            if container.id == change.subject:
                words = f"exited with {container.exit_code}"
                cause = " ".join(filter(None, [container.reason, container.message]))
                failed = container.exit_code != 0
                self._note_subject(container.id, "")
                self._add(container.id, _instant(words, container.finished_at, cause, failed))

    def pulled_for(self, image: str, sandbox_id: str) -> None:
        """Note which pod an image is pulled for."""
        self._pulls.add((image, sandbox_id))

    def _note_subject(self, key: str, operation: str) -> None:
        if operation == PULL:
            self._seen[key] = None
        elif (found := self.alive.find(key)) is not None:
            self._seen[key] = found

    def _seen_subjects(self) -> list[Subject]:
        return [
            Subject(key, IMAGE, key) if found is None else describe(found)
            for key, found in self._seen.items()
        ]

    def _add(self, key: str, record: dict[str, Any]) -> None:
        self._pending.append((key, record))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    # -- what it tells ------------------------------------------------------------------------

    def under_way(self, key: str) -> list[Stages]:
        """Return the operations on an object that go on, the oldest first."""
        return [operation for operation in self._open if operation.key == key]

    def operations(self, key: str) -> list[dict[str, Any]]:
        """Return the records of an object's last operations, as operation_record and more.

        The oldest first; with `times` and `first_at`: how often in a row it ended like this, and
        when (ns since the epoch) the first of them began.
        """
        self.flush()
        rows = self._connection.execute(
            "SELECT record, times, first_at FROM history_operations WHERE key = ? ORDER BY number",
            (key,),
        )
        stored = [json.loads(record) | {"times": n, "first_at": at} for record, n, at in rows]
        waiting = [record for name, record in self._pending if name == key]  # a full disk
        return stored + [
            record | {"times": 1, "first_at": record["started_at"]} for record in waiting
        ]

    def subjects(self) -> list[Subject]:
        """Return all that is remembered, what was seen last first."""
        self.flush()
        rows = self._connection.execute(
            "SELECT key, kind, name, namespace, pod, sandbox FROM history_subjects "
            "ORDER BY seen_at DESC"
        )
        current = self._seen_subjects()[::-1]
        known = {subject.key for subject in current}
        return current + [Subject(*row) for row in rows if row[0] not in known]

    def images_of(self, sandbox_id: str) -> list[str]:
        """Return the names of the images that were pulled for a pod."""
        self.flush()
        rows = self._connection.execute(
            "SELECT image FROM history_pulls WHERE pod = ? ORDER BY image", (sandbox_id,)
        )
        return sorted({row[0] for row in rows} | {i for i, pod in self._pulls if pod == sandbox_id})

    def gone(self, keys: Iterable[str]) -> set[str]:
        """Return those ids of pods and containers that were this daemon's and are no more."""
        wanted = {key for key in keys if self.alive.find(key) is None}
        if not wanted:
            return set()
        return {one.key for one in self.subjects() if one.key in wanted and one.kind != IMAGE}

    def gone_containers(self, prefixes: Iterable[str]) -> dict[str, str]:
        """Return {begin of an id: the id} of containers that are no more, or that have ended."""
        wanted = set(prefixes)
        known = {one.key for one in self.subjects() if one.kind == CONTAINER} if wanted else set()
        return {key[:10]: key for key in known if key[:10] in wanted}

    # -- writing ------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Write what has ended; what cannot be written stays in memory, as much as is bounded."""
        if not self._pending and not self._pulls:
            return
        try:
            with self._connection:
                self._write()
        except sqlite3.Error as err:  # a full disk
            log.warning("the history of operations cannot be written: %s", err)
            return
        self._pending.clear()
        self._pulls.clear()
        opened = {operation.key for operation in self._open}
        self._seen = {key: found for key, found in self._seen.items() if key in opened}

    def close(self) -> None:
        """Write what is left."""
        if self._timer is not None:
            self._timer.cancel()
        self.flush()

    def _write(self) -> None:
        now = time.time_ns()
        self._connection.executemany(
            "INSERT OR REPLACE INTO history_subjects VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*astuple(subject), now) for subject in self._seen_subjects()],
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO history_pulls VALUES (?, ?)", self._pulls
        )
        for key, record in self._pending:
            self._write_operation(key, record)
        self._bound({key for key, _ in self._pending})
        if time.monotonic() - self._pruned > PRUNE_SECONDS:
            self._pruned = time.monotonic()
            self._prune(now)

    def _write_operation(self, key: str, record: dict[str, Any]) -> None:
        """Write one; one that ended as the one before it is counted with that."""
        same = (record["name"], record["outcome"], record["cause"])
        last = self._connection.execute(
            "SELECT number, name, outcome, cause, times, first_at FROM history_operations "
            "WHERE key = ? ORDER BY number DESC LIMIT 1",
            (key,),
        ).fetchone()
        times, first_at = 1, record["started_at"]
        if last is not None and last[1:4] == same:
            self._connection.execute("DELETE FROM history_operations WHERE number = ?", last[:1])
            times, first_at = last[4] + 1, last[5]
        self._connection.execute(
            "INSERT INTO history_operations (key, name, outcome, cause, times, first_at, record) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, *same, times, first_at, json.dumps(record, separators=(",", ":"))),
        )

    def _bound(self, keys: Iterable[str]) -> None:
        self._connection.executemany(
            "DELETE FROM history_operations WHERE key = :key AND number <= (SELECT number FROM "
            "history_operations WHERE key = :key ORDER BY number DESC LIMIT 1 OFFSET :kept)",
            [{"key": key, "kept": KEPT_OPERATIONS} for key in keys],
        )

    def _prune(self, now: int) -> None:
        """Forget what has been gone for long, and the oldest of too many."""
        rows = self._connection.execute(
            "SELECT key, seen_at FROM history_subjects ORDER BY seen_at DESC"
        ).fetchall()
        gone = [row for row in rows if self.alive.find(row[0]) is None]
        old = [key for n, (key, at) in enumerate(gone) if n >= KEPT_SUBJECTS or now - at > KEPT_NS]
        for table, column in (
            ("history_operations", "key"),
            ("history_subjects", "key"),
            ("history_pulls", "image"),
            ("history_pulls", "pod"),
        ):
            statement = f"DELETE FROM {table} WHERE {column} = ?"
            self._connection.executemany(statement, [(key,) for key in old])


def _instant(name: str, at: int, cause: str, failed: bool) -> dict[str, Any]:
    return {
        "name": name,
        "started_at": at,
        "duration": 0,
        "outcome": "failed" if failed else "ok",
        "code": "",
        "cause": cause if failed else "",
        "stages": [],
        "left_out": 0,
    }
