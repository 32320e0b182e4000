"""Images, their names, layers and blobs in the database, and who needs what.

A layer is needed by the images, containers and views that have it on top, by layers above it, and
by pulls in progress. A view is an image seen read-only: an image volume of a container, or a mount.
A blob is needed by images and pulls in progress. What nobody needs is collected.

All of it is used on the event loop's thread, so a check and what follows from it are one step as
long as there is no await between them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imageservice import reference
from imageservice.health import Health
from imageservice.manifest import Descriptor, ImageConfig
from imageservice.objects import Garbage, Image, Layer
from imageservice.pinning import Pins

# Layers and blobs of a pull that was broken off are kept this long, for the pull to be repeated.
ORPHAN_SECONDS = 24 * 3600

_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    id TEXT PRIMARY KEY, config BLOB NOT NULL, chain_id TEXT NOT NULL, size INTEGER NOT NULL,
    pulled_at INTEGER NOT NULL, pinned INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS images_chain ON images (chain_id);
CREATE TABLE IF NOT EXISTS image_names (
    name TEXT PRIMARY KEY, image_id TEXT NOT NULL, target TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS image_names_image ON image_names (image_id);
CREATE TABLE IF NOT EXISTS image_blobs (
    image_id TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (image_id, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS image_blobs_digest ON image_blobs (digest);
CREATE TABLE IF NOT EXISTS layers (
    chain_id TEXT PRIMARY KEY, parent TEXT NOT NULL, diff_id TEXT NOT NULL,
    number INTEGER NOT NULL UNIQUE, size INTEGER NOT NULL, inodes INTEGER NOT NULL,
    created_at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS layers_parent ON layers (parent);
CREATE TABLE IF NOT EXISTS blobs (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, media_type TEXT NOT NULL,
    created_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
    container_id TEXT PRIMARY KEY, image_id TEXT NOT NULL, chain_id TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS snapshots_chain ON snapshots (chain_id);
CREATE TABLE IF NOT EXISTS views (
    holder TEXT NOT NULL, chain_id TEXT NOT NULL, image_id TEXT NOT NULL,
    PRIMARY KEY (holder, chain_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS views_chain ON views (chain_id);
"""


class ImageStore:
    """The tables of images; the images themselves are also kept in memory."""

    def __init__(self, database: sqlite3.Connection, pinned: Pins | None = None) -> None:
        self._database = database
        database.executescript(_SCHEMA)
        self.health = Health(database)
        self._pinned = pinned or Pins()
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._pins: Counter[str] = Counter()
        self._load()

    def _load(self) -> None:
        for row in self._database.execute("SELECT id, config, size FROM images"):
            self._images[row[0]] = _image(*row)
        for name, image_id in self._database.execute("SELECT name, image_id FROM image_names"):
            self._names[name] = image_id
        for image_id in self._images:
            self._name_again(image_id)

    def use_pins(self, pinned: Pins) -> None:
        """Have other names pinned from now on."""
        self._pinned = pinned
        for image_id in self._images:
            self._name_again(image_id)

    def _name_again(self, image_id: str) -> None:
        """Recompute the names that the image in memory has."""
        image = self._images.get(image_id)
        if image is None:
            return
        names = sorted(name for name, owner in self._names.items() if owner == image_id)
        self._images[image_id] = replace(
            image,
            repo_tags=tuple(name for name in names if "@" not in name),
            repo_digests=tuple(name for name in names if "@" in name),
            pinned=self._pinned.matches(names),
        )

    # -- look-up ------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        """Return all images."""
        return list(self._images.values())

    def get(self, image_id: str) -> Image | None:
        """Return the image with this id."""
        return self._images.get(image_id)

    def resolve(self, text: str) -> Image:
        """Return the image that a tag, a digest, an id or a unique beginning of an id names.

        Raises NotFoundError, InvalidArgumentError for what can be none of them, and
        FailedPreconditionError for a beginning that several ids have.
        """
        image = self._images.get(text)
        if image is not None:
            return image
        prefix = reference.id_prefix(text)
        if prefix is None or not text.startswith("sha256:"):
            if prefix is None or len(prefix) < 64:
                image_id = self._names.get(str(reference.parse(text)))
                if image_id is not None:
                    return self._images[image_id]
            if prefix is None:
                raise NotFoundError("image", text)
        return self._by_prefix(text, prefix)

    def repo_digest(self, image_id: str, name: str) -> str:
        """Return the `repository@digest` of an image: of the repository in `name`, else the first.

        The id itself for an image that has none, or is not there.
        """
        image = self._images.get(image_id)
        digests = image.repo_digests if image else ()
        if len(digests) > 1:
            with suppress(InvalidArgumentError):  # a name may be an id as well
                of_name = f"{reference.parse(name).repository}@"
                digests = tuple(sorted(digests, key=lambda one: not one.startswith(of_name)))
        return digests[0] if digests else image_id

    def _by_prefix(self, text: str, prefix: str) -> Image:
        found = [i for i in self._images.values() if i.id.startswith(f"sha256:{prefix}")]
        if not found:
            raise NotFoundError("image", text)
        if len(found) > 1:
            raise FailedPreconditionError(f"{text!r} is the beginning of {len(found)} image ids")
        return found[0]

    def has_layer(self, chain_id: str) -> bool:
        """Tell whether the layer is unpacked, complete and not known to be damaged."""
        return self.health.is_whole((chain_id,)) and self.layer(chain_id) is not None

    def layer(self, chain_id: str) -> Layer | None:
        """Return the layer with this chain id."""
        row = self._database.execute(
            "SELECT chain_id, parent, diff_id, number, size, inodes FROM layers WHERE chain_id = ?",
            (chain_id,),
        ).fetchone()
        return None if row is None else Layer(*row)

    def blobs_of(self, image_id: str) -> set[str]:
        """Return the digests of the image's blobs; one that was found damaged is not among them."""
        return {blob.digest for blob in self.descriptors_of(image_id)}

    def descriptors_of(self, image_id: str) -> list[Descriptor]:
        """Return the image's blobs, as `blobs_of`."""
        rows = self._database.execute(
            "SELECT media_type, digest, size FROM image_blobs JOIN blobs USING (digest)"
            " WHERE image_id = ?",
            (image_id,),
        )
        return [Descriptor(*row) for row in rows]

    def digests_needed_by(self, image_id: str) -> list[str]:
        """Return the digests of the image's blobs, whether they are on disk or not."""
        rows = self._database.execute(
            "SELECT digest FROM image_blobs WHERE image_id = ?", (image_id,)
        )
        return [row[0] for row in rows]

    def targets_of(self, image_id: str) -> dict[str, str]:
        """Return the image's names, and the digest that each stood for when it was pulled."""
        rows = self._database.execute(
            "SELECT name, target FROM image_names WHERE image_id = ?", (image_id,)
        )
        return dict(rows)

    def known_blobs(self) -> dict[str, int]:
        """Return the digests of all blobs that are safely on disk, with their sizes."""
        return dict(self._database.execute("SELECT digest, size FROM blobs"))

    def layers(self) -> list[Layer]:
        """Return all layers."""
        rows = self._database.execute(
            "SELECT chain_id, parent, diff_id, number, size, inodes FROM layers ORDER BY number"
        )
        return [Layer(*row) for row in rows]

    def recent_layers(self, seconds: int) -> list[str]:
        """Return the chain ids of the layers made within `seconds` of the last one."""
        rows = self._database.execute(
            "SELECT chain_id FROM layers"
            " WHERE created_at >= (SELECT max(created_at) FROM layers) - ?",
            (seconds,),
        )
        return [row[0] for row in rows]

    def tag_named(self, text: str) -> str:
        """Return the full name if `text` is the name and tag of an image, else ""."""
        prefix = reference.id_prefix(text)
        name = "" if prefix and len(prefix) == 64 else str(reference.parse(text))
        return name if name in self._names and "@" not in name else ""

    def layer_numbers(self) -> set[int]:
        """Return the numbers of all directories of layers, those of retired ones included."""
        numbers = {row[0] for row in self._database.execute("SELECT number FROM layers")}
        return numbers | self.health.retired_numbers()

    def usage(self) -> tuple[int, int]:
        """Return bytes and inodes of all layers and blobs."""
        size, inodes = self._database.execute(
            "SELECT coalesce(sum(size), 0), coalesce(sum(inodes), 0) FROM layers"
        ).fetchone()
        blobs, count = self._database.execute(
            "SELECT coalesce(sum(size), 0), count(*) FROM blobs"
        ).fetchone()
        return size + blobs, inodes + count

    # -- additions ----------------------------------------------------------------------------

    @contextmanager
    def pin(self, keys: Iterable[str]) -> Iterator[None]:
        """Keep layers (by chain id) and blobs (by digest) from being collected."""
        held = list(keys)
        self._pins.update(held)
        try:
            yield
        finally:
            self._pins.subtract(held)
            self._pins = +self._pins

    def commit_layer(self, layer: Layer, *blobs: Descriptor) -> None:
        """Add a layer that is complete and synced, with the blobs that it came from."""
        now = int(time.time())
        with self._database:
            self.health.retire(layer.chain_id)
            self._database.execute(
                "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    layer.chain_id,
                    layer.parent,
                    layer.diff_id,
                    layer.number,
                    layer.size,
                    layer.inodes,
                    now,
                ),
            )
            self._add_blobs(blobs, now)
            self.health.link((layer.chain_id, blob.digest) for blob in blobs)
        self.health.damaged.pop(layer.chain_id, None)

    def _add_blobs(self, blobs: Sequence[Descriptor], now: int) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)",
            [(blob.digest, blob.size, blob.media_type, now) for blob in blobs],
        )

    def commit_image(
        self,
        image_id: str,
        config: ImageConfig,
        size: int,
        blobs: Sequence[Descriptor],
        names: Mapping[str, str],
    ) -> Image:
        """Add or update an image all of whose layers and blobs are complete and synced.

        names: normalised name -> digest of the manifest or index that it stands for.
        """
        now = int(time.time())
        chain = config.chain_ids
        raw = json.dumps(config.raw, separators=(",", ":")).encode()
        with self._database:
            self._database.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (id) DO NOTHING",
                (image_id, raw, chain[-1] if chain else "", size, now),
            )
            self._add_blobs(blobs, now)
            self._database.executemany(
                "INSERT OR IGNORE INTO image_blobs VALUES (?, ?)",
                [(image_id, blob.digest) for blob in blobs],
            )
            if not config.is_artifact:
                # The last blobs are the layers', the base first, as many as there are chain ids.
                layers = blobs[len(blobs) - len(chain) :]
                self.health.link(zip(chain, (blob.digest for blob in layers), strict=True))
            self._write_names(image_id, names)
        self._images.setdefault(image_id, Image(image_id, config.raw, chain, size))
        return self._take_names(image_id, names)

    def add_names(self, image_id: str, names: Mapping[str, str]) -> Image:
        """Give an image that is there more names, taken from other images if they have them."""
        if any(self._names.get(name) != image_id for name in names):
            with self._database:
                self._write_names(image_id, names)
        return self._take_names(image_id, names)

    def _write_names(self, image_id: str, names: Mapping[str, str]) -> None:
        self._database.executemany(
            "INSERT OR REPLACE INTO image_names VALUES (?, ?, ?)",
            [(name, image_id, target) for name, target in names.items()],
        )

    def _take_names(self, image_id: str, names: Mapping[str, str]) -> Image:
        losers = {self._names[name] for name in names if name in self._names}
        for name in names:
            self._names[name] = image_id
        for changed in losers | {image_id}:
            self._name_again(changed)
        return self._images[image_id]

    # -- snapshots ----------------------------------------------------------------------------

    def add_snapshot(self, container_id: str, image: Image) -> None:
        """Note that a container's root filesystem stands on the image's layers."""
        with self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)",
                (container_id, image.id, image.chain_id),
            )

    def remove_snapshot(self, container_id: str) -> Garbage:
        """Forget a container's root filesystem; returns layers that it alone held."""
        row = self._database.execute(
            "SELECT chain_id FROM snapshots WHERE container_id = ?", (container_id,)
        ).fetchone()
        if row is None:
            return Garbage()
        with self._database:
            self._database.execute("DELETE FROM snapshots WHERE container_id = ?", (container_id,))
            return self._collect([row[0], *self._drop_views(container_id)], [])

    def add_view(self, holder: str, image: Image) -> None:
        """Note that a container, or a mount, shows the image read-only."""
        with self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO views VALUES (?, ?, ?)", (holder, image.chain_id, image.id)
            )

    def remove_views(self, holder: str) -> Garbage:
        """Forget what a holder shows; returns layers that it alone held."""
        with self._database:
            return self._collect(self._drop_views(holder), [])

    def _drop_views(self, holder: str) -> list[str]:
        rows = self._database.execute(
            "DELETE FROM views WHERE holder = ? RETURNING chain_id", (holder,)
        )
        return [row[0] for row in rows]

    def view_holders(self) -> set[str]:
        """Return everyone who shows an image read-only."""
        return {row[0] for row in self._database.execute("SELECT DISTINCT holder FROM views")}

    def users_of(self, image_id: str) -> list[str]:
        """Return the containers and mounts that use the image."""
        rows = self._database.execute(
            "SELECT container_id FROM snapshots WHERE image_id = :i"
            " UNION SELECT holder FROM views WHERE image_id = :i",
            {"i": image_id},
        )
        return [row[0] for row in rows]

    def snapshots(self) -> set[str]:
        """Return the ids of containers that have a root filesystem."""
        return {row[0] for row in self._database.execute("SELECT container_id FROM snapshots")}

    def has_snapshot(self, container_id: str) -> bool:
        """Tell whether a container has a root filesystem."""
        row = self._database.execute(
            "SELECT EXISTS (SELECT 1 FROM snapshots WHERE container_id = ?)", (container_id,)
        ).fetchone()
        return bool(row[0])

    # -- removal ------------------------------------------------------------------------------

    def remove_image(self, image: Image) -> Garbage:
        """Remove the image with all its names; returns what nobody needs any more."""
        blobs = self.blobs_of(image.id)
        with self._database:
            for table, column in (("images", "id"), ("image_names", "image_id")):
                self._database.execute(f"DELETE FROM {table} WHERE {column} = ?", (image.id,))
            self._database.execute("DELETE FROM image_blobs WHERE image_id = ?", (image.id,))
            garbage = self._collect([image.chain_id], blobs)
        del self._images[image.id]
        for name in (*image.repo_tags, *image.repo_digests):
            del self._names[name]
        return garbage

    def drop_blob(self, digest: str) -> Garbage:
        """Forget a damaged blob: the next pull of an image that has it fetches it again."""
        with self._database:
            self._database.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
        return Garbage(blobs=(digest,))

    def collect(self, chain_ids: Iterable[str], blobs: Iterable[str]) -> Garbage:
        """Remove those of these layers (with their parents) and blobs that nobody needs."""
        with self._database:
            return self._collect(chain_ids, blobs)

    def collect_orphans(self, older_than: float) -> Garbage:
        """Remove what nobody has needed for `older_than` seconds."""
        limit = int(time.time() - older_than)
        layers = self._database.execute(
            "SELECT chain_id FROM layers AS l WHERE created_at <= ?"
            " AND NOT EXISTS (SELECT 1 FROM layers WHERE parent = l.chain_id)",
            (limit,),
        ).fetchall()
        blobs = self._database.execute(
            "SELECT digest FROM blobs AS b WHERE created_at <= ?"
            " AND NOT EXISTS (SELECT 1 FROM image_blobs WHERE digest = b.digest)",
            (limit,),
        ).fetchall()
        with self._database:
            return self._collect([row[0] for row in layers], [row[0] for row in blobs])

    def _collect(self, chain_ids: Iterable[str], blobs: Iterable[str]) -> Garbage:
        numbers: list[int] = []
        for chain_id in chain_ids:
            numbers.extend(self._collect_chain(chain_id))
        numbers.extend(self.health.collect_retired())
        return Garbage(tuple(numbers), tuple(self._collect_blobs(blobs)))

    def _collect_chain(self, chain_id: str) -> Iterator[int]:
        """Delete layers from the top down, as far as nobody needs them."""
        while chain_id and not self._is_needed(chain_id):
            layer = self.layer(chain_id)
            if layer is None:
                return
            self._database.execute("DELETE FROM layers WHERE chain_id = ?", (chain_id,))
            self.health.forget(chain_id)
            yield layer.number
            chain_id = layer.parent

    def _is_needed(self, chain_id: str) -> bool:
        if self._pins[chain_id]:
            return True
        row = self._database.execute(
            "SELECT EXISTS (SELECT 1 FROM images WHERE chain_id = :c)"
            " OR EXISTS (SELECT 1 FROM snapshots WHERE chain_id = :c)"
            " OR EXISTS (SELECT 1 FROM views WHERE chain_id = :c)"
            " OR EXISTS (SELECT 1 FROM layers WHERE parent = :c)",
            {"c": chain_id},
        ).fetchone()
        return bool(row[0])

    def _collect_blobs(self, digests: Iterable[str]) -> Iterator[str]:
        for digest in digests:
            row = self._database.execute(
                "SELECT EXISTS (SELECT 1 FROM image_blobs WHERE digest = ?)", (digest,)
            ).fetchone()
            if not row[0] and not self._pins[digest]:
                self._database.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
                yield digest


def _image(image_id: str, raw: bytes, size: int) -> Image:
    config: dict[str, Any] = json.loads(raw)
    diff_ids = tuple((config.get("rootfs") or {}).get("diff_ids") or ())
    return Image(image_id, config, ImageConfig(config, diff_ids).chain_ids, size)
