"""Export of images as one archive: an OCI image layout that `docker load` understands as well.

Blobs go out as they were pulled, so that digests stay. The archive holds the images' own manifests,
not the index of several platforms that they may have come from.
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.errors import FailedPreconditionError
from imageservice import manifest as m
from imageservice.content import ContentStore
from imageservice.manifest import Descriptor
from imageservice.objects import Image
from imageservice.store import ImageStore

# Bytes of one piece; gRPC's limit for a message is 4 MiB.
PIECE = 1 << 20
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True)
class Exported:
    """An image with the name that the archive gives it, "" for none."""

    image: Image
    name: str
    top: Descriptor
    manifest: m.Manifest


class Exporter:
    """Writes archives, piece by piece."""

    def __init__(self, store: ImageStore, content: ContentStore) -> None:
        self._store = store
        self._content = content

    async def export(self, wanted: Sequence[tuple[Image, str]]) -> AsyncIterator[bytes]:
        """Give the archive of these images and names.

        Raises FailedPreconditionError before the first byte when a blob is not on disk.
        """
        exported = [self._exported(image, name) for image, name in wanted]
        blobs = {
            blob.digest: blob
            for each in exported
            for blob in (each.top, each.manifest.config, *each.manifest.layers)
        }
        with self._store.pin(blobs):
            pieces = self._archive(exported, list(blobs.values()))
            while piece := await asyncio.to_thread(next, pieces, b""):
                yield piece

    def _exported(self, image: Image, name: str) -> Exported:
        """Find the image's manifest; all that it needs has to be on disk."""
        for top in self._store.descriptors_of(image.id):
            if top.media_type not in m.MANIFEST_TYPES:
                continue
            document = m.parse_document(self._content.path(top.digest).read_bytes(), top.digest)
            manifest = m.parse_manifest(document, top.digest)
            blobs = (manifest.config, *manifest.layers)
            if image.id in (manifest.config.digest, top.digest) and all(
                self._content.has(blob.digest) for blob in blobs
            ):
                return Exported(image, name, top, manifest)
        raise FailedPreconditionError(
            f"image {name or image.id} is not whole on disk: pull it again, then export it"
        )

    def _archive(
        self, exported: Sequence[Exported], blobs: Sequence[Descriptor]
    ) -> Iterator[bytes]:
        """Give the tar; in a thread."""
        yield from _file("oci-layout", _LAYOUT)
        yield from _file("index.json", _encode(_index(exported)))
        yield from _file("manifest.json", _encode([_docker_entry(each) for each in exported]))
        for blob in blobs:
            yield _header(_path(blob), blob.size)
            yield from _content(self._content.path(blob.digest))
            if padding := bytes(-blob.size % tarfile.BLOCKSIZE):
                yield padding
        yield bytes(2 * tarfile.BLOCKSIZE)


def _index(exported: Sequence[Exported]) -> dict[str, Any]:
    entries = []
    for each in exported:
        entry = each.top.to_json()
        if each.name:
            entry["annotations"] = {
                "io.containerd.image.name": each.name,
                "org.opencontainers.image.ref.name": each.name,
            }
        entries.append(entry)
    return {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": entries}


def _docker_entry(each: Exported) -> dict[str, Any]:
    return {
        "Config": _path(each.manifest.config),
        "RepoTags": [each.name] if each.name else None,
        "Layers": [_path(layer) for layer in each.manifest.layers],
    }


def _path(blob: Descriptor) -> str:
    return f"blobs/{blob.digest.replace(':', '/')}"


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.GNU_FORMAT)  # a size over 8 GiB has to fit


def _file(name: str, data: bytes) -> Iterator[bytes]:
    buffer = io.BytesIO()
    buffer.write(_header(name, len(data)))
    buffer.write(data)
    buffer.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    for start in range(0, buffer.tell(), PIECE):
        yield buffer.getvalue()[start : start + PIECE]


def _content(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
