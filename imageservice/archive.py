"""Import of OCI and docker archives (`docker save`, `skopeo copy`), plain or compressed.

The file is read once, forwards. Every larger member goes into the content store under its digest,
JSON is kept in memory; what belongs together is found out at the end. A docker archive has no
manifest of the registry's kind: one is made, as `containerd` does, so that it is an image like any.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.errors import ImagePullError, InvalidArgumentError
from imageservice import manifest as m
from imageservice import reference, tar
from imageservice.compression import CompressionError, decompressed, is_gzip, is_zstd
from imageservice.content import ContentStore
from imageservice.errors import BadContentError
from imageservice.layer_stream import LayerStream
from imageservice.manifest import Descriptor
from imageservice.pull import Assembler, Document, Parts, make_parts
from imageservice.tar import Entry, TarError
from imageservice.tar_reader import TarReader

# What an archive may unpack to; the same as for a single layer.
MAX_ARCHIVE = 256 << 30
# Members up to this size may be JSON, and are looked at in memory.
MAX_JSON = m.MAX_CONFIG
# All of them together.
MAX_JSON_TOTAL = 256 << 20
MAX_MEMBERS = 100_000
_READ_SIZE = 1 << 20
_BLOBS = "blobs/sha256/"
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True)
class Member:
    """A file of the archive: its digest, its size, and the first bytes."""

    digest: str
    size: int
    head: bytes


@dataclass
class Contents:
    """What is in an archive, by path; `stored` are digests that this import has added."""

    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)  # digest -> what may be JSON
    links: dict[str, str] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    text_size: int = 0

    def member(self, path: str) -> Member:
        """Return a member, through one link: old `docker save` links layers that it repeats."""
        found = self.members.get(path) or self.members.get(self.links.get(path, ""))
        if found is None:
            raise BadContentError(f"the archive has no {path}")
        return found

    def text(self, digest: str, what: str) -> bytes:
        """Return a small member by its digest."""
        try:
            return self.texts[digest]
        except KeyError:
            raise BadContentError(f"the archive has no {what} {digest}") from None


@dataclass(frozen=True)
class Found:
    """An image in an archive and its normalised names."""

    parts: Parts
    names: tuple[str, ...]


class ArchiveImporter:
    """Reads archives into the content store and has their images made."""

    def __init__(self, content: ContentStore, assembler: Assembler) -> None:
        self._content = content
        self._assembler = assembler
        self._platform = m.host()

    async def load(self, path: Path) -> list[str]:
        """Import all images of the archive; returns their names, or ids where there is none.

        Raises InvalidArgumentError or ImagePullError.
        """
        contents = Contents()
        reading = asyncio.create_task(asyncio.to_thread(self._read, path, contents))
        try:
            await asyncio.shield(reading)
            names: list[str] = []
            for found in self._images(contents, str(path)):
                target = found.parts.documents[0].descriptor.digest
                image = await self._assembler.assemble(
                    found.parts, dict.fromkeys(found.names, target), None
                )
                names.extend(found.names or (image.id,))
            return names
        except (TarError, CompressionError) as err:
            raise ImagePullError(f"cannot import {path}: {err}") from err
        except OSError as err:
            raise InvalidArgumentError(f"cannot import {path}: {err}") from err
        finally:
            await asyncio.wait((reading,))
            await asyncio.shield(self._assembler.drop_unused(contents.stored))

    # -- reading ------------------------------------------------------------------------------

    def _read(self, path: Path, contents: Contents) -> None:
        """Go through the archive, in a thread."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            stream = LayerStream(decompressed(lambda: os.read(fd, _READ_SIZE)), MAX_ARCHIVE)
            reader = TarReader(stream, max_entries=MAX_MEMBERS)
            for entry in reader:
                self._take(entry, reader, contents)
            stream.drain()  # the checksum of a compressed archive comes last
        finally:
            os.close(fd)

    def _take(self, entry: Entry, reader: TarReader, contents: Contents) -> None:
        path = os.fsdecode(tar.clean_path(entry.name))
        if entry.kind in (tar.SYMLINK, tar.HARDLINK):
            base = os.path.dirname(path) if entry.kind == tar.SYMLINK else ""
            contents.links[path] = os.path.normpath(os.path.join(base, os.fsdecode(entry.linkname)))
        elif entry.kind == tar.REGULAR:
            contents.members[path] = self._store_member(entry, reader, contents)

    def _store_member(self, entry: Entry, reader: TarReader, contents: Contents) -> Member:
        ingest = self._content.new_ingest_path()
        digest = hashlib.sha256()
        head = b""
        with ingest.open("xb") as file:
            try:
                for piece in reader.data():
                    head = head or bytes(piece[:8])
                    digest.update(piece)
                    file.write(piece)
            except BaseException:
                ingest.unlink()
                raise
        member = Member(f"sha256:{digest.hexdigest()}", entry.size, head)
        if entry.size <= MAX_JSON and head.lstrip()[:1] in (b"{", b"["):
            contents.text_size += entry.size
            if contents.text_size > MAX_JSON_TOTAL:
                ingest.unlink()
                raise TarError(f"the archive has more than {MAX_JSON_TOTAL} bytes of JSON")
            contents.texts[member.digest] = ingest.read_bytes()
        if self._content.has(member.digest):
            ingest.unlink()
        else:
            contents.stored.add(member.digest)
            ingest.rename(self._content.path(member.digest))
        return member

    # -- what is in it ------------------------------------------------------------------------

    def _images(self, contents: Contents, what: str) -> Iterator[Found]:
        if "index.json" in contents.members:
            yield from self._oci_images(contents, what)
        elif "manifest.json" in contents.members:
            yield from self._docker_images(contents, what)
        else:
            raise BadContentError(
                f"{what} is neither an OCI nor a docker archive: "
                "it has no index.json and no manifest.json"
            )

    def _oci_images(self, contents: Contents, what: str) -> Iterator[Found]:
        body = contents.text(contents.member("index.json").digest, "index.json")
        index = m.parse_document(body, "index.json")
        candidates = m.parse_index(index, "index.json")
        fitting = [c for c in candidates if c.platform in (None, *m.acceptable(self._platform))]
        if not fitting:
            raise BadContentError(f"{what} has no image for {self._platform}")
        for candidate in fitting:
            parts = self._oci_parts(contents, candidate.descriptor, what)
            yield Found(parts, _names_of(candidate.annotations))

    def _oci_parts(self, contents: Contents, top: Descriptor, what: str) -> Parts:
        documents: list[Document] = []
        for _ in range(m.MAX_INDEX_DEPTH):
            body = contents.text(top.digest, "manifest")
            parsed = m.parse_document(body, f"{what} ({top.digest})")
            media_type = m.media_type_of(parsed, top.media_type)
            documents.append(Document(Descriptor(media_type, top.digest, len(body)), body))
            if media_type not in m.INDEX_TYPES:
                return self._parts(contents, documents, parsed, what)
            top = m.choose(m.parse_index(parsed, top.digest), self._platform, what)
        raise BadContentError(f"{what} nests indexes more than {m.MAX_INDEX_DEPTH} deep")

    def _parts(
        self, contents: Contents, documents: list[Document], parsed: dict[str, Any], what: str
    ) -> Parts:
        manifest = m.parse_manifest(parsed, what)
        config = contents.text(manifest.config.digest, "configuration")
        return make_parts(what, documents, parsed, config)

    def _docker_images(self, contents: Contents, what: str) -> Iterator[Found]:
        body = contents.text(contents.member("manifest.json").digest, "manifest.json")
        try:
            images = json.loads(body)
        except (ValueError, RecursionError) as err:
            raise BadContentError(f"manifest.json of {what} is not JSON: {err}") from err
        for image in images if isinstance(images, list) else [images]:
            if not isinstance(image, dict):
                raise BadContentError(f"manifest.json of {what} lists something else than images")
            yield self._docker_image(contents, image, what)

    def _docker_image(self, contents: Contents, image: dict[str, Any], what: str) -> Found:
        config_path, layer_paths = image.get("Config"), image.get("Layers") or []
        tags = image.get("RepoTags") or []
        paths = [config_path, *layer_paths] if isinstance(layer_paths, list) else [None]
        if not isinstance(tags, list) or not all(isinstance(p, str) for p in (*paths, *tags)):
            raise BadContentError(f"manifest.json of {what} is not as docker writes it")
        config = contents.member(os.path.normpath(str(config_path)))
        layers = [contents.member(os.path.normpath(path)) for path in layer_paths]
        parsed = {
            "schemaVersion": 2,
            "mediaType": m.OCI_MANIFEST,
            "config": Descriptor(m.OCI_CONFIG, config.digest, config.size).to_json(),
            "layers": [
                Descriptor(_layer_type(layer), layer.digest, layer.size).to_json()
                for layer in layers
            ],
        }
        body = json.dumps(parsed, separators=(",", ":")).encode()
        document = Document(Descriptor(m.OCI_MANIFEST, m.digest_of(body), len(body)), body)
        names = tuple(str(reference.parse(tag)) for tag in tags)
        return Found(self._parts(contents, [document], parsed, what), names)


def _layer_type(layer: Member) -> str:
    if is_gzip(layer.head):
        return f"{m.OCI_LAYER}+gzip"
    return f"{m.OCI_LAYER}+zstd" if is_zstd(layer.head) else m.OCI_LAYER


def _names_of(annotations: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the full name that an index's entry is annotated with; a bare tag is none."""
    for key in _NAME_ANNOTATIONS:
        name = annotations.get(key)
        if isinstance(name, str) and ("/" in name or ":" in name):
            return (str(reference.parse(name)),)
    return ()
