"""A pull: resolve, choose the platform, fetch the configuration, make the layers, commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.errors import CRIError, ImagePullError
from api.stages import operation, stage
from imageservice import artifact
from imageservice import manifest as m
from imageservice.artifact import File
from imageservice.auth import Credentials
from imageservice.collector import Collector
from imageservice.content import ContentStore
from imageservice.errors import BadContentError, DiskError, registry_unavailable
from imageservice.fetch import WantedBlob, WantedLayer
from imageservice.flights import Flights
from imageservice.layers import Layers
from imageservice.manifest import Descriptor, ImageConfig, Manifest
from imageservice.objects import Image
from imageservice.progress import LayerProgress, PullProgress, PullUnderWay
from imageservice.reference import Reference
from imageservice.registry import BrokenTransferError, Fetched, RegistryClient, Repository
from imageservice.signatures import SignatureCheck
from imageservice.store import ImageStore
from imageservice.syncing import Syncer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A manifest, an index or a configuration that is kept with its image."""

    descriptor: Descriptor
    body: bytes


@dataclass(frozen=True)
class Parts:
    """All that an image is made of. `documents`: what led to it, the configuration included."""

    name: str
    manifest: Manifest
    config: ImageConfig
    documents: tuple[Document, ...]
    files: tuple[File, ...] | None = None  # of an artifact

    @property
    def image_id(self) -> str:
        """The digest of the configuration; of an artifact, whose is often empty, the manifest's."""
        if self.files is not None:
            return self.documents[-2].descriptor.digest
        return self.manifest.config.digest

    @property
    def blobs(self) -> list[Descriptor]:
        """Return the descriptors of everything."""
        return [*(document.descriptor for document in self.documents), *self.manifest.layers]

    @property
    def layer_digests(self) -> frozenset[str]:
        """Return the digests of the layers' blobs."""
        return frozenset(layer.digest for layer in self.manifest.layers)

    @property
    def size(self) -> int:
        """Bytes of index, manifest, configuration and layers, as containerd counts them."""
        return sum(blob.size for blob in self.blobs)

    def wanted_layers(self) -> list[WantedLayer]:
        """Return the layers, the base first."""
        chain = self.config.chain_ids
        below = ("", *chain)
        stacked = zip(self.manifest.layers, chain, below, self.config.diff_ids, strict=False)
        return [WantedLayer(self.name, *layer) for layer in stacked]


def make_parts(
    name: str, documents: Sequence[Document], parsed: dict[str, Any], config: bytes
) -> Parts:
    """Put an image or an artifact together; `parsed` is the last of `documents`, its manifest.

    Raises BadContentError.
    """
    manifest = m.parse_manifest(parsed, name)
    kept = (*documents, Document(manifest.config, config))
    if artifact.is_artifact(parsed):
        files = artifact.files_of(parsed, name)
        return Parts(name, manifest, artifact.config_of(parsed, files), kept, files)
    return Parts(name, manifest, m.parse_config(config, len(manifest.layers), name), kept)


class Assembler:
    """Makes images out of their parts: layers on disk, everything synced, then the database."""

    def __init__(
        self,
        store: ImageStore,
        content: ContentStore,
        layers: Layers,
        syncer: Syncer,
        collector: Collector,
    ) -> None:
        self._store = store
        self._content = content
        self._layers = layers
        self._syncer = syncer
        self._collector = collector

    async def assemble(
        self, parts: Parts, names: Mapping[str, str], source: Repository | None
    ) -> Image:
        """Make the image visible under `names` (name -> digest of what it stands for).

        Raises CRIError; what was pulled of bad content is removed then.
        """
        digests = {blob.digest for blob in parts.blobs}
        if self._is_there(parts.image_id, digests):
            return self._store.add_names(parts.image_id, names)
        chain = parts.config.chain_ids
        try:
            with self._store.pin([*chain, *digests]):
                await self._complete(parts, source)
                return self._store.commit_image(
                    parts.image_id, parts.config, parts.size, parts.blobs, names
                )
        except BadContentError:
            await self._collector.discard(self._store.collect(chain, digests))
            raise
        except BaseException as err:
            # Finished layers stay, and blobs that are there: the pull may be repeated.
            garbage = self._store.collect((), digests - self._store.known_blobs().keys())
            for digest in garbage.blobs:
                if digest in parts.layer_digests and not isinstance(err, (DiskError, OSError)):
                    self._content.demote(digest)
            await asyncio.shield(self._collector.discard(garbage))
            raise

    def _is_there(self, image_id: str, digests: Collection[str]) -> bool:
        """Tell whether nothing has to be done: what was found damaged counts as missing."""
        present = self._store.get(image_id)
        return (
            present is not None
            and self._layers.are_whole(present.layers)
            and self._store.blobs_of(image_id).issuperset(digests)
            and all(self._content.has(digest) for digest in digests)
        )

    async def drop_unused(self, digests: Collection[str]) -> None:
        """Delete those of these blobs that belong to no image."""
        await self._collector.discard(self._store.collect((), digests))

    async def _complete(self, parts: Parts, source: Repository | None) -> None:
        """Bring everything onto the disk."""
        put = asyncio.create_task(asyncio.to_thread(self._put, parts.documents))
        if parts.files is not None:  # one of which may be the same blob as the configuration
            await asyncio.wait((put,))
        try:
            await self._make_layers(parts, source)
        finally:
            await asyncio.wait((put,))
        with stage("sync"):
            await self._syncer.cover(put.result())

    def _put(self, documents: Sequence[Document]) -> int:
        """Store the small blobs; returns the ticket for their sync."""
        for document in documents:
            self._content.put_if_damaged(document.descriptor.digest, document.body)
        return self._syncer.ticket()

    async def _make_layers(self, parts: Parts, source: Repository | None) -> None:
        if parts.files is not None:
            works = [
                self._layers.ensure_files(parts.name, parts.config.diff_ids[0], parts.files, source)
            ]
        else:
            works = [self._make_layer(layer, source) for layer in parts.wanted_layers()]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        except DiskError:
            self._layers.spoil(parts.layer_digests)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _make_layer(self, layer: WantedLayer, source: Repository | None) -> None:
        with stage("layer", layer.blob.digest):
            await self._layers.ensure(layer, source)


class PullEngine:
    """Pulls images; the same pull asked for twice at a time is done once."""

    def __init__(
        self,
        client: RegistryClient,
        store: ImageStore,
        content: ContentStore,
        layers: Layers,
        assembler: Assembler,
        signatures: SignatureCheck,
    ) -> None:
        self._client = client
        self._signatures = signatures
        self._store = store
        self._content = content
        self._layers = layers
        self._assembler = assembler
        self._flights = Flights()
        self._under_way: dict[PullUnderWay, None] = {}  # in the order in which they began
        self._platform = m.host()

    async def pull(self, reference: Reference, credentials: Credentials) -> Image:
        """Pull what `reference` points to now; raises CRIError."""
        seat = self._flights.enter(
            (reference, credentials), lambda: self._pull(reference, credentials)
        )
        return await seat.result()

    def progress(self) -> list[PullProgress]:
        """Return how far each pull under way is, the oldest first."""
        return [
            PullProgress(pull.image, pull.started_at, self._layers_of(pull))
            for pull in self._under_way
        ]

    def _layers_of(self, pull: PullUnderWay) -> tuple[LayerProgress, ...] | None:
        if pull.layers is None:
            return None
        return tuple(
            self._layers.progress(layer, layer.chain_id in pull.existed) for layer in pull.layers
        )

    async def _pull(self, reference: Reference, credentials: Credentials) -> Image:
        pull = PullUnderWay(str(reference))
        self._under_way[pull] = None
        try:
            with operation("PullImage", pull.image):
                return await self._follow(pull, reference, credentials)
        finally:
            del self._under_way[pull]

    async def _follow(
        self, pull: PullUnderWay, reference: Reference, credentials: Credentials
    ) -> Image:
        repository = self._client.repository(reference, credentials)
        with stage("resolve"):
            documents, manifest = await self._resolve(repository, str(reference))
        ends = (documents[0], documents[-1])
        digests = [document.descriptor.digest for document in ends]
        with stage("signatures"):
            await self._signatures.check(reference, credentials, digests)
        parsed = m.parse_document(documents[-1].body, pull.image)
        async with self._layers.ahead(self._expected(pull.image, manifest, parsed), repository):
            with stage("config"):
                config = await self._config(pull, repository, manifest.config)
            parts = make_parts(pull.image, documents, parsed, config)
            pull.existed = frozenset(filter(self._store.has_layer, parts.config.chain_ids))
            pull.layers = parts.wanted_layers()
            target = documents[0].descriptor.digest
            names = {str(name): target for name in (reference, reference.with_digest(target))}
            return await self._assembler.assemble(parts, names, repository)

    def _expected(self, image: str, manifest: Manifest, parsed: dict[str, Any]) -> list[WantedBlob]:
        """Return the blobs that an image not known yet will need whatever its configuration says.

        To ask for them together with the configuration saves a small pull the time of an answer.
        """
        if artifact.is_artifact(parsed) or self._content.has(manifest.config.digest):
            return []
        return [WantedBlob(image, blob) for blob in manifest.layers]

    async def _resolve(self, repository: Repository, name: str) -> tuple[list[Document], Manifest]:
        """Follow indexes down to the manifest for this machine; returns what was on the way."""
        fetched = await repository.resolve()
        documents: list[Document] = []
        for _ in range(m.MAX_INDEX_DEPTH):
            what = f"{name} ({fetched.digest})"
            parsed = m.parse_document(fetched.body, what)
            media_type = m.media_type_of(parsed, fetched.media_type)
            documents.append(
                Document(Descriptor(media_type, fetched.digest, len(fetched.body)), fetched.body)
            )
            if media_type not in m.INDEX_TYPES:
                return documents, m.parse_manifest(parsed, what)
            chosen = m.choose(m.parse_index(parsed, what), self._platform, what)
            fetched = await self._entry(repository, chosen)
        raise BadContentError(f"{name} nests indexes more than {m.MAX_INDEX_DEPTH} deep")

    async def _entry(self, repository: Repository, chosen: Descriptor) -> Fetched:
        """Return an index's entry, from the store if it is there: its digest says what it is."""
        if chosen.size <= m.MAX_MANIFEST and self._content.has(chosen.digest):
            body = await self._stored(chosen)
            if body is not None:
                return Fetched(chosen.media_type, chosen.digest, body)
        return await repository.manifest(chosen)

    async def _stored(self, wanted: Descriptor) -> bytes | None:
        """Return a small blob of the content store; None if it is damaged or has just gone."""
        try:
            body = await asyncio.to_thread(self._content.path(wanted.digest).read_bytes)
        except FileNotFoundError:
            return None
        return body if m.digest_of(body) == wanted.digest else None

    async def _config(
        self, pull: PullUnderWay, repository: Repository, wanted: Descriptor
    ) -> bytes:
        """Return the image's configuration, which is fetched once for all pulls."""
        if wanted.size > m.MAX_CONFIG:
            raise BadContentError(
                f"the configuration of {pull.image} has {wanted.size} bytes, "
                f"the limit is {m.MAX_CONFIG}"
            )
        while True:
            if self._content.has(wanted.digest):
                body = await self._stored(wanted)
                if body is not None:
                    return body
            for other in self._under_way:  # it has come, but is not in the store yet
                if other.config is not None and other.config[0] == wanted.digest:
                    return other.config[1]
            seat = self._flights.enter(
                wanted.digest, lambda: self._fetch_config(pull, repository, wanted)
            )
            try:
                return await seat.result()
            except CRIError:
                if seat.first:
                    raise
                # Another pull's source failed: try with our own.

    async def _fetch_config(
        self, pull: PullUnderWay, repository: Repository, wanted: Descriptor
    ) -> bytes:
        body = await _small_blob(repository, wanted, pull.image)
        pull.config = (wanted.digest, body)
        return body

    async def close(self) -> None:
        """Break off the pulls under way."""
        await self._flights.close()


async def _small_blob(repository: Repository, wanted: Descriptor, name: str) -> bytes:
    """Return a blob that fits in memory, verified."""
    try:
        body = await repository.small_blob(wanted)
    except BrokenTransferError as err:
        raise registry_unavailable(f"configuration of {name} breaks off: {err}") from err
    if m.digest_of(body) != wanted.digest:
        raise ImagePullError(
            f"the configuration of {name} came with the digest {m.digest_of(body)} "
            f"instead of {wanted.digest}"
        )
    return body
