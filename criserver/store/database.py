"""The daemon's SQLite database: opening, schema version, boot id, checkpoints.

WAL with synchronous=NORMAL: a commit does not wait for the disk, so that it costs microseconds on
the event loop; it survives the death of the daemon, and after a power loss the database is whole
but may lack the last commits. What has to survive a power loss is synced by its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from pathlib import Path

log = logging.getLogger(__name__)

FILE_NAME = "criserver.db"

# Raised when a table changes so that older code cannot use it.
SCHEMA_VERSION = 1

# How often the log is folded into the database, off the event loop: a checkpoint does fsync.
CHECKPOINT_SECONDS = 30.0

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class DatabaseError(Exception):
    """The database cannot be used; the message is one line for a person."""


def open_database(root: Path) -> sqlite3.Connection:
    """Open (or make) ROOT/criserver.db. Raises DatabaseError."""
    path = root / FILE_NAME
    try:
        connection = sqlite3.connect(path, isolation_level="IMMEDIATE")
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as err:
        raise DatabaseError(f"{path} cannot be used: {err}") from err
    path.chmod(0o600)
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA wal_autocheckpoint=0")  # see checkpoint_forever
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"{path} has schema version {version}, this daemon knows {SCHEMA_VERSION}: "
            "it was written by a newer criserver"
        )
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def check_writable(connection: sqlite3.Connection) -> None:
    """Write something. Raises sqlite3.Error when the disk is full, read-only or broken."""
    with connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('checked', '')")


def boot_id() -> str:
    """Return the kernel's id of this boot (man 4 random)."""
    return BOOT_ID.read_text().strip()


def recorded_boot(connection: sqlite3.Connection) -> str | None:
    """Return the boot id under which the running state was written; None in a new database."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'boot_id'").fetchone()
    return None if row is None else str(row[0])


def record_boot(connection: sqlite3.Connection, boot: str) -> None:
    """Say that the running state from here on is of this boot."""
    with connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('boot_id', ?)", (boot,))


async def checkpoint_forever(root: Path, interval: float = CHECKPOINT_SECONDS) -> None:
    """Fold the write-ahead log into the database now and then, on a thread."""
    while True:
        await asyncio.sleep(interval)
        try:
            await asyncio.to_thread(_checkpoint, root / FILE_NAME)
        except sqlite3.Error as err:  # a full disk: the log stays, and is as good
            log.warning("the database's log could not be folded in: %s", err)


def _checkpoint(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
