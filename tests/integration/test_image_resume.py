"""What has come is not fetched again: by the next pull, by the next daemon, by 20 at a time."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from api.errors import ImagePullError
from imageservice.store import ORPHAN_SECONDS
from runtimeshim.linux import mounts
from tests.integration import images
from tests.integration.image_fixtures import Images, running_images
from tests.integration.odd_registry import OddRegistry, odd_registry
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

SIZE = 3_000_000


@pytest_asyncio.fixture
async def odd() -> AsyncIterator[OddRegistry]:
    async with odd_registry() as running:
        yield running


def big_image() -> images.Image:
    return images.Image((images.files_layer({"big": os.urandom(SIZE)}),))


class Halting:
    """Serves the first half of a blob and then nothing, until `whole` is set."""

    def __init__(self, odd: OddRegistry, blob: bytes) -> None:
        self.whole = False
        self.half = asyncio.Event()
        self.starts: list[int] = []
        self._odd, self._blob = odd, blob
        odd.hooks[images.digest(blob)] = self.serve

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.starts.append(request.http_range.start or 0)
        if self.whole:
            return await self._odd.serve(request)
        response = web.StreamResponse()
        response.content_length = len(self._blob)
        await response.prepare(request)
        await response.write(self._blob[: len(self._blob) // 2])
        self.half.set()
        await asyncio.Event().wait()
        return response


def partial_of(service: Images, blob: bytes) -> Path:
    return service.root / "content/ingest" / images.digest(blob).removeprefix("sha256:")


async def halt(service: Images, name: str, halting: Halting, partial: Path) -> None:
    """Pull until half of the blob is on disk, then go away."""
    pull = asyncio.create_task(service.pull(name))
    async with asyncio.timeout(30):
        await halting.half.wait()
        while not partial.exists() or partial.stat().st_size < SIZE // 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull


async def restart(service: Images) -> None:
    await service.close()
    service.open()
    await service.service.recover([])


@pytest.mark.parametrize("restarted", [False, True], ids=["next pull", "next daemon"])
async def test_a_half_fetched_layer_is_gone_on_with(
    service: Images, odd: OddRegistry, restarted: bool
) -> None:
    image = big_image()
    blob = image.layers[0].blob
    name = odd.add("app", image)
    halting = Halting(odd, blob)
    await halt(service, name, halting, partial_of(service, blob))
    if restarted:
        await restart(service)
    assert not service.service._store.images()
    halting.whole = True
    pulled = await service.pull(name)
    assert pulled.id == image.id
    assert len(halting.starts) == 2
    assert SIZE // 4 <= halting.starts[1] <= len(blob) // 2
    (layer,) = await service.layer_dirs(pulled)
    assert (layer / "big").stat().st_size == SIZE
    assert not partial_of(service, blob).exists()


@pytest.mark.parametrize("length", [1000, SIZE // 2, SIZE * 2])
async def test_a_damaged_beginning_is_replaced(
    service: Images, odd: OddRegistry, length: int
) -> None:
    """As a power loss may leave it: the pull succeeds all the same."""
    image = big_image()
    blob = image.layers[0].blob
    name = odd.add("app", image)
    partial_of(service, blob).write_bytes(bytes(length))
    pulled = await service.pull(name)
    (layer,) = await service.layer_dirs(pulled)
    assert (layer / "big").stat().st_size == SIZE
    starts = [r.http_range.start or 0 for r in odd.requests if images.digest(blob) in r.path]
    assert starts == ([0] if length > len(blob) else [length, 0])


async def test_a_damage_in_the_middle_is_replaced(service: Images, odd: OddRegistry) -> None:
    image = big_image()
    blob = image.layers[0].blob
    name = odd.add("app", image)
    half = bytearray(blob[: SIZE // 2])
    half[-1000:] = bytes(1000)
    partial_of(service, blob).write_bytes(half)
    pulled = await service.pull(name)
    (layer,) = await service.layer_dirs(pulled)
    assert (layer / "big").stat().st_size == SIZE


async def test_a_blob_that_was_complete_is_not_fetched_again(
    service: Images, odd: OddRegistry
) -> None:
    image = big_image()
    blob = image.layers[0].blob
    name = odd.add("app", image)
    # All of it had come, and the daemon ended before the layer was unpacked and synced.
    (service.root / "content/blobs/sha256" / partial_of(service, blob).name).write_bytes(blob)
    await restart(service)
    pulled = await service.pull(name)
    assert pulled.id == image.id
    assert not any(images.digest(blob) in path for path in odd.paths())


async def test_what_nobody_goes_on_with_is_deleted(service: Images, odd: OddRegistry) -> None:
    blob = big_image().layers[0].blob
    partial = partial_of(service, blob)
    partial.write_bytes(blob[:100])
    await restart(service)
    assert partial.exists()
    old = time.time() - ORPHAN_SECONDS - 60
    os.utime(partial, (old, old))
    await service.remove("no/such/image")
    assert service.left() == []


async def test_a_bad_layer_is_not_kept_in_parts(service: Images, odd: OddRegistry) -> None:
    """What cannot be unpacked is noticed before all of it has come, and is no beginning."""
    bad = images.Image((images.Layer(b"this is no tar" * (SIZE // 14), "none"),))
    name = odd.add("app", bad)
    with pytest.raises(ImagePullError, match=images.digest(bad.layers[0].blob)):
        await service.pull(name)
    async with asyncio.timeout(20):
        while service.left():  # noqa: ASYNC110 - the transfer ends behind the pull
            await asyncio.sleep(0.01)


async def test_a_full_disk_is_named_and_freed(tmp_path: Path, odd: OddRegistry) -> None:
    """What fits of a pull that does not is of no use while there is no room."""
    small = tmp_path / "small"
    small.mkdir()
    mounts.mount("tmpfs", str(small), "tmpfs", 0, "size=8m")
    try:
        async with running_images(small) as service:
            layers = [images.files_layer({f"big{n}": os.urandom(SIZE)}) for n in range(3)]
            name = odd.add("app", images.Image(tuple(layers)))
            with pytest.raises(ImagePullError, match="No space left on device"):
                await service.pull(name)
            async with asyncio.timeout(20):
                while service.left():  # noqa: ASYNC110 - transfers end behind the pull
                    await asyncio.sleep(0.01)
    finally:
        mounts.umount(str(small))


async def test_a_blob_that_cannot_be_stored_is_an_error_at_once(
    service: Images, odd: OddRegistry
) -> None:
    image = big_image()
    name = odd.add("app", image)
    partial_of(service, image.layers[0].blob).mkdir()
    async with asyncio.timeout(30):
        with pytest.raises(ImagePullError, match=f"cannot store the blob of layer .* of {name}"):
            await service.pull(name)
    partial_of(service, image.layers[0].blob).rmdir()
    assert service.left() == []


async def test_twenty_pulls_of_ten_images_fetch_each_blob_once(
    service: Images, registry: Registry
) -> None:
    shared = [images.files_layer({f"shared{n}": os.urandom(200_000)}) for n in range(4)]
    wanted = []
    for number in range(10):
        own = images.files_layer({"own": f"{number}" * 10_000})
        chosen = shared[: 1 + number % 4]
        image = images.Image((*chosen, own), {"Env": [f"N={number}"]})
        images.push(registry.address, f"many/app{number}", image, "v1")
        images.push(registry.address, f"many/app{number}", image, "v2")
        wanted.append(image)
    before = len(registry.requests())
    # Each image by two names, and all of them in no order.
    names = [f"{registry.address}/many/app{n}:{tag}" for n in range(10) for tag in ("v1", "v2")]
    random.shuffle(names)
    pulled = await asyncio.gather(*(service.pull(name) for name in names))
    assert {image.id for image in pulled} == {image.id for image in wanted}
    gets = [line for line in registry.requests()[before:] if line.startswith("GET")]
    fetched = Counter(line.rpartition("/blobs/")[2] for line in gets if "/blobs/" in line)
    blobs = {images.digest(blob) for image in wanted for blob in image.blobs}
    assert fetched == dict.fromkeys(blobs, 1)
    for image in wanted:
        found = service.service.resolve(image.id)
        assert len(found.repo_tags) == 2
        for layer, directory in zip(image.layers, await service.layer_dirs(found), strict=True):
            assert len(list(directory.iterdir())) == 1, layer
