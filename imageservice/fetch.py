"""Blobs of layers on their way from a registry into the content store, each fetched once at a time.

A transfer that breaks is resumed where it broke: at once, by the next pull, or by the next daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from api.stages import note
from imageservice.content import ContentStore, Ingest, Tap
from imageservice.errors import (
    BadContentError,
    DiskError,
    StalePartialError,
    registry_unavailable,
)
from imageservice.flights import Flights, Seat
from imageservice.manifest import Descriptor
from imageservice.registry import BrokenTransferError

log = logging.getLogger(__name__)

# Breaks of one blob's transfer without a byte in between.
MAX_BREAKS = 4
RETRY_SECONDS = 0.25


class BlobSource(Protocol):
    """Where blobs come from: a repository."""

    def blob(
        self, wanted: Descriptor, offset: int
    ) -> AbstractAsyncContextManager[Any]:  # of an async iterator of bytes
        """Give the bytes of a blob from `offset` on."""


@dataclass(frozen=True)
class WantedBlob:
    """A layer's blob to be fetched; `image` is for messages."""

    image: str
    blob: Descriptor

    def __str__(self) -> str:
        return f"layer {self.blob.digest} of {self.image}"

    def bad(self, reason: str) -> BadContentError:
        """Return the error for content that can never be a layer."""
        return BadContentError(f"{self}: {reason}")


@dataclass(frozen=True)
class WantedLayer(WantedBlob):
    """A layer to be made of a blob; `parent` is the chain id below ("" for none)."""

    chain_id: str
    parent: str
    diff_id: str


class Fetcher:
    """The transfers under way, by digest."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._flights = Flights()
        self._ingests: dict[str, Ingest] = {}

    def enter(self, wanted: WantedBlob, source: BlobSource | None, tap: Tap) -> Seat[None]:
        """Join the transfer of the layer's blob, or begin one whose bytes go through `tap` too.

        Without a source the content store has to have the blob. The seat's result raises
        BadContentError, StalePartialError, or another ImagePullError.
        """
        return self._flights.enter(wanted.blob.digest, lambda: self._fetch(wanted, source, tap))

    def fetched(self, digest: str) -> int | None:
        """Return how many bytes of the blob are here, None if it is not under way."""
        ingest = self._ingests.get(digest)
        return None if ingest is None else ingest.offset

    def is_ending(self, wanted: WantedBlob) -> bool:
        """Tell whether all of a blob has come, or no more of it is to come."""
        return self.fetched(wanted.blob.digest) in (None, wanted.blob.size)

    def spoil(self, digest: str) -> bool:
        """Have what has come of a blob under way deleted when its transfer ends before the end.

        Tells whether bytes of an earlier transfer are among it, which then may be what is wrong.
        """
        ingest = self._ingests.get(digest)
        if ingest is None:
            return False
        ingest.discard()
        return ingest.replayed > 0

    async def _fetch(self, wanted: WantedBlob, source: BlobSource | None, tap: Tap) -> None:
        if source is None:
            await asyncio.to_thread(tap.close)
            raise wanted.bad("its content is not in the archive")
        digest = wanted.blob.digest
        async with self._content.reserve(digest):
            ingest = self._ingests[digest] = self._open(wanted, tap)
            try:
                await self._fill(wanted, source, ingest)
            finally:
                del self._ingests[digest]
                await _to_its_end(ingest.close())

    def _open(self, wanted: WantedBlob, tap: Tap) -> Ingest:
        try:
            return Ingest(self._content, wanted.blob, tap)
        except OSError as err:
            raise _not_stored(wanted, err) from err

    async def _fill(self, wanted: WantedBlob, source: BlobSource, ingest: Ingest) -> None:
        try:
            await ingest.replay()
            if ingest.replayed:
                log.info("%s: resumed at byte %d", wanted, ingest.replayed)
            await _transfer(wanted, source, ingest)
            await ingest.commit()
        except BadContentError as err:
            if ingest.replayed:
                raise StalePartialError(f"{wanted}: {err}") from err
            raise wanted.bad(str(err)) from err
        except OSError as err:
            ingest.discard()
            raise _not_stored(wanted, err) from err

    async def close(self) -> None:
        """Break off what is under way; what has come stays."""
        await self._flights.close()


def _not_stored(wanted: WantedBlob, err: OSError) -> DiskError:
    return DiskError(f"cannot store the blob of {wanted}: {err}")


async def _transfer(wanted: WantedBlob, source: BlobSource, ingest: Ingest) -> None:
    """Fetch what is missing, going on where a transfer breaks."""
    breaks = 0
    while ingest.offset < wanted.blob.size or ingest.offset == 0:
        before = ingest.offset
        whole = False
        try:
            async with source.blob(wanted.blob, ingest.offset) as chunks:
                async for chunk in chunks:
                    await ingest.write(chunk)
            if ingest.offset == wanted.blob.size:
                return
            whole = True
            reason = f"{ingest.offset} of {wanted.blob.size} bytes came"
        except BrokenTransferError as err:
            reason = str(err)
        breaks = breaks + 1 if ingest.offset == before else 1
        if breaks > MAX_BREAKS:
            if whole:  # that was all there is, so it is something else than the blob
                ingest.discard()
            raise registry_unavailable(f"{wanted} breaks off: {reason}")
        log.info("%s breaks off: %s", wanted, reason)
        note(f"the transfer broke off: {reason}")
        await asyncio.sleep(RETRY_SECONDS * breaks)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do the work even if the wait for it is cancelled: then that goes on once it is done."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
