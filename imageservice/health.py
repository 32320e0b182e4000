"""Which layers are known to be damaged, which directories they leave behind, and what heals them.

A damaged layer counts as missing: its image has to be pulled again, and the pull makes the layer
anew, in another directory. The old directory stays while a container stands on the layer, since its
mount may be of the old one.

Part of imageservice.store, whose transactions these methods run in.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS damaged_layers (chain_id TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS retired_layers (number INTEGER PRIMARY KEY, chain_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS layer_blobs (
    chain_id TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (chain_id, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS layer_blobs_digest ON layer_blobs (digest);
"""

# Every layer below a container's root filesystem or a read-only view.
_USED = """
WITH RECURSIVE used (chain_id) AS (
    SELECT chain_id FROM snapshots UNION SELECT chain_id FROM views
    UNION SELECT l.parent FROM layers AS l JOIN used ON l.chain_id = used.chain_id)
"""


class Health:
    """The tables of damage; `damaged` is also kept in memory: chain id -> reason."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.executescript(_SCHEMA)
        self.damaged: dict[str, str] = dict(
            database.execute("SELECT chain_id, reason FROM damaged_layers")
        )

    def is_whole(self, chain_ids: Iterable[str]) -> bool:
        """Tell whether none of these layers is known to be damaged."""
        return not self.damaged or self.damaged.keys().isdisjoint(chain_ids)

    def mark(self, chain_id: str, reason: str) -> None:
        """Note that a layer is damaged."""
        with self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO damaged_layers VALUES (?, ?)", (chain_id, reason)
            )
        self.damaged[chain_id] = reason

    def retire(self, chain_id: str) -> None:
        """Set the layer's directory aside, for a new one takes its place in this transaction."""
        self._database.execute(
            "INSERT OR IGNORE INTO retired_layers SELECT number, chain_id FROM layers"
            " WHERE chain_id = ?",
            (chain_id,),
        )
        self._database.execute("DELETE FROM damaged_layers WHERE chain_id = ?", (chain_id,))

    def forget(self, chain_id: str) -> None:
        """Drop what is noted of a layer that leaves the database in this transaction."""
        for table in ("damaged_layers", "layer_blobs"):
            self._database.execute(f"DELETE FROM {table} WHERE chain_id = ?", (chain_id,))
        self.damaged.pop(chain_id, None)

    def link(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Note which blobs unpack to which layers: (chain id, digest)."""
        self._database.executemany("INSERT OR IGNORE INTO layer_blobs VALUES (?, ?)", pairs)

    def blobs_of(self, chain_id: str) -> list[str]:
        """Return the digests of blobs on disk that the layer can be compared with."""
        rows = self._database.execute(
            "SELECT digest FROM layer_blobs JOIN blobs USING (digest) WHERE chain_id = ?",
            (chain_id,),
        )
        return [row[0] for row in rows]

    def retired_numbers(self) -> set[int]:
        """Return the numbers of directories that were set aside."""
        return {row[0] for row in self._database.execute("SELECT number FROM retired_layers")}

    def collect_retired(self) -> list[int]:
        """Forget the retired directories that no container can have mounted; returns them."""
        if not self.retired_numbers():
            return []
        rows = self._database.execute(
            f"{_USED} DELETE FROM retired_layers WHERE chain_id NOT IN (SELECT chain_id FROM used)"
            " RETURNING number"
        )
        return [row[0] for row in rows]
