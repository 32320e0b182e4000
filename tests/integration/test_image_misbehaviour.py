"""Registries that lie, break off, stall or never end: an error each, and nothing is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from api.errors import CRIError, ImagePullError
from tests.integration import harness, images
from tests.integration.image_fixtures import Images
from tests.integration.odd_registry import OddRegistry, Opener, answer, small_image

pytestmark = pytest.mark.integration


async def refused(service: Images, name: str, pattern: str, *kept: str) -> None:
    """The pull fails for this reason, and leaves nothing behind but what may have come of `kept`.

    kept: digests of blobs that are as they should be.
    """
    with pytest.raises(CRIError, match=pattern):
        await service.pull(name)
    assert set(service.left()) <= {ingest(digest) for digest in kept}


def ingest(digest: str) -> str:
    """Where the beginning of a blob is kept."""
    return f"content/ingest/{digest.removeprefix('sha256:')}"


async def test_another_blob_than_asked_for_is_refused(service: Images, odd: OddRegistry) -> None:
    image = small_image()
    name = odd.add("app", image)
    digest = images.digest(image.layers[0].blob)
    blob = image.layers[0].blob
    odd.hooks[digest] = answer(200, blob[:-1] + bytes([blob[-1] ^ 1]))
    await refused(service, name, f"layer {digest} of {name}.*with the digest")


async def test_another_manifest_than_asked_for_is_refused(
    service: Images, odd: OddRegistry
) -> None:
    image = small_image()
    odd.add("app", image)
    digest = images.digest(image.manifest)
    odd.hooks[digest] = answer(200, small_image("other").manifest)
    await refused(service, f"{odd.address}/app@{digest}", "it sent content with the digest")


async def test_another_configuration_than_asked_for_is_refused(
    service: Images, odd: OddRegistry
) -> None:
    image = small_image()
    name = odd.add("app", image)
    odd.hooks[image.id] = answer(200, image.config_blob.replace(b"linux", b"lunix"))
    await refused(service, name, f"instead of {image.id}", images.digest(image.layers[0].blob))


async def test_layers_that_came_before_their_configuration_failed_are_not_fetched_again(
    service: Images, odd: OddRegistry
) -> None:
    image = small_image()
    name = odd.add("app", image)
    digest = images.digest(image.layers[0].blob)
    come = service.root / "content/blobs/sha256" / digest.removeprefix("sha256:")

    async def refuse(_: web.Request) -> web.StreamResponse:
        await harness.until(come.exists)
        return web.Response(status=404)

    odd.hooks[image.id] = refuse
    with pytest.raises(CRIError, match="404 Not Found"):
        await service.pull(name)
    assert service.left() == [ingest(digest)]
    odd.hooks.clear()
    await service.pull(name)
    assert odd.paths().count(f"/v2/app/blobs/{digest}") == 1


async def test_a_configuration_that_lies_about_its_layers_is_refused(
    service: Images, odd: OddRegistry
) -> None:
    image = small_image()
    lie = images.Layer(b"other", "none").diff_id
    config = image.config_blob.replace(image.layers[0].diff_id.encode(), lie.encode())
    manifest = image.manifest.replace(image.id.encode(), images.digest(config).encode())
    odd.add_blob("app", config)
    odd.add_blob("app", image.layers[0].blob)
    odd.add_manifest("app", manifest, image.types.manifest, "latest")
    await refused(service, f"{odd.address}/app", f"diff id {image.layers[0].diff_id}.*{lie}")


@pytest.mark.parametrize(
    ("hook", "pattern"),
    [
        (answer(200, b"<html>log in</html>"), "not JSON.*<html>"),
        (answer(200, b"[]"), "not a JSON object"),
        (answer(200, b"{}"), "schemaVersion None"),
        (answer(200, b'{"manifests": []}'), "it has nothing"),
        (answer(200, bytes(5 << 20)), "larger than 4194304"),
        (answer(500, b"<html>\nbroken"), "^RegistryUnavailable: .*500.*broken"),
        (answer(503), "^RegistryUnavailable: .*503"),
        (answer(429, Retry_After="60"), "429.*retry after 60 s.*limits how much"),
        (answer(403), "access denied"),
        (answer(418), "418"),
        (answer(200, b"{}", Content_Length="100"), "^RegistryUnavailable"),
    ],
)
async def test_a_manifest_that_is_none_is_refused(
    service: Images, odd: OddRegistry, hook: Callable[..., Awaitable[web.Response]], pattern: str
) -> None:
    odd.hooks["/manifests/"] = hook
    await refused(service, f"{odd.address}/app", pattern)


async def test_an_index_that_never_ends_is_refused(service: Images, odd: OddRegistry) -> None:
    body, kind = small_image().manifest, images.OCI.manifest
    for _ in range(6):
        odd.add_manifest("app", body, kind, "latest")
        entry = images.descriptor(kind, body)
        body, kind = images.encode({"schemaVersion": 2, "manifests": [entry]}), images.OCI.index
    odd.add_manifest("app", body, kind, "latest")
    await refused(service, f"{odd.address}/app", "nests indexes")


async def test_an_index_that_contains_itself_is_refused(service: Images, odd: OddRegistry) -> None:
    """No bytes contain their own digest; a registry can only pretend so."""
    entry = {"mediaType": images.OCI.index, "digest": "sha256:" + "5" * 64, "size": 200}
    index = images.encode({"schemaVersion": 2, "manifests": [entry]})
    odd.hooks["/manifests/"] = answer(200, index, Content_Type=images.OCI.index)
    await refused(service, f"{odd.address}/app", f"{odd.address}/app.*it sent content with the")
    assert len(odd.requests) == 2


async def test_a_manifest_of_100_mb_is_refused(service: Images, odd: OddRegistry) -> None:
    sent = 0

    async def huge(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": images.OCI.manifest})
        response.enable_chunked_encoding()  # it does not say how much is to come
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" " * (1 << 20))
            sent += 1
        return response

    odd.hooks["/manifests/"] = huge
    name = f"{odd.address}/app"
    await refused(service, name, f"{name}.*the manifest is larger than 4194304 bytes")
    assert sent < 50


async def test_a_layer_of_another_length_is_refused(service: Images, odd: OddRegistry) -> None:
    image = small_image()
    name = odd.add("app", image)
    digest = images.digest(image.layers[0].blob)
    odd.hooks[digest] = answer(200, image.layers[0].blob + b"more")
    await refused(service, name, "its manifest says")


@pytest.mark.parametrize("length", [-1, 0, 5])
async def test_a_layer_that_is_html_is_refused(
    service: Images, odd: OddRegistry, length: int
) -> None:
    """Told of with its right length, with a wrong one, or with none."""
    image = small_image()
    name = odd.add("app", image)
    digest = images.digest(image.layers[0].blob)
    html = b"<html>please log in</html>".ljust(len(image.layers[0].blob) + length)

    async def log_in(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        if length == 0:
            response.content_length = len(html)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(html)
        return response

    odd.hooks[digest] = log_in
    await refused(service, name, f"layer {digest} of {name}")


@pytest.mark.parametrize("more", [100, -100])
async def test_a_layer_whose_length_is_a_lie_is_refused(
    service: Images, odd: OddRegistry, more: int
) -> None:
    image = images.Image((images.files_layer({"big": os.urandom(100_000)}),))
    name = odd.add("app", image)
    blob = image.layers[0].blob
    digest = images.digest(blob)

    async def lie(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(blob) + more
        await response.prepare(request)
        await response.write(blob[: len(blob) + min(more, 0)])
        assert request.transport is not None
        request.transport.close()
        return response

    odd.hooks[digest] = lie
    size = len(blob)
    await refused(service, name, f"blob {digest} of {name}.* {size + more} bytes,.*says {size}")


async def test_a_range_that_is_a_lie_is_refused(service: Images, odd: OddRegistry) -> None:
    image = images.Image((images.files_layer({"big": os.urandom(100_000)}),))
    name = odd.add("app", image)
    blob = image.layers[0].blob
    breaking = Breaking(odd, blob, 50_000, times=1)
    first = breaking.serve

    async def lie(request: web.Request) -> web.StreamResponse:
        if not breaking.starts:
            return await first(request)
        headers = {"Content-Range": f"bytes 0-{len(blob) - 1}/{len(blob)}"}
        return web.Response(status=206, body=blob, headers=headers)

    odd.hooks[images.digest(blob)] = lie
    with pytest.raises(ImagePullError, match=f"of {name}.*to a range from 50000"):
        await service.pull(name)
    assert service.left() == [ingest(images.digest(blob))]


@pytest.mark.parametrize("key", ["/manifests/", "/blobs/"])
async def test_redirects_for_ever_are_refused(service: Images, odd: OddRegistry, key: str) -> None:
    name = odd.add("app", small_image())

    async def on_and_on(request: web.Request) -> web.StreamResponse:
        again = int(request.query.get("n", "0")) + 1
        return web.Response(status=307, headers={"Location": f"{request.path}?n={again}"})

    odd.hooks[key] = on_and_on
    await refused(service, name, f"^RegistryUnavailable: .*{name}: .*redirects more than 8 times")
    assert len(odd.requests) < 1 + 2 * 12  # configuration and layer are asked for at once


# -- stalls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [False, True], ids=["silent", "in the body"])
async def test_a_manifest_that_stalls_is_given_up(
    service: Images, odd: OddRegistry, headers: bool
) -> None:
    await service.close()
    service.open(stall_timeout=0.2)

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1000
        if headers:
            await response.prepare(request)
            await response.write(b"{")
        await asyncio.Event().wait()
        return response

    odd.hooks["/manifests/"] = stall
    name = f"{odd.address}/app"
    await refused(service, name, f"^RegistryUnavailable: .*{name}.*no data for longer than")
    assert len(odd.requests) == 1


@pytest.mark.parametrize("which", ["configuration", "layer"])
@pytest.mark.parametrize("headers", [False, True], ids=["silent", "in the body"])
async def test_a_blob_that_stalls_is_given_up(
    service: Images, odd: OddRegistry, headers: bool, which: str
) -> None:
    await service.close()
    service.open(stall_timeout=0.2)
    image = small_image()
    blob = image.config_blob if which == "configuration" else image.layers[0].blob
    name = odd.add("app", image)

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(blob)
        if headers:
            await response.prepare(request)
        await asyncio.Event().wait()
        return response

    odd.hooks[images.digest(blob)] = stall
    kept = (images.digest(image.layers[0].blob),) if which == "configuration" else ()
    pattern = f"^RegistryUnavailable: .*of {name}.*no data for longer than"
    await refused(service, name, pattern, *kept)


async def test_a_trickle_is_no_stall(service: Images, odd: OddRegistry) -> None:
    await service.close()
    service.open(stall_timeout=0.5)
    image = small_image()
    name = odd.add("app", image)
    blob = image.layers[0].blob

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(blob)
        await response.prepare(request)
        for start in range(0, len(blob), len(blob) // 10):
            await response.write(blob[start : start + len(blob) // 10])
            await asyncio.sleep(0.1)
        return response

    odd.hooks[images.digest(blob)] = trickle
    assert (await service.pull(name)).id == image.id


def endless(byte: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def hook(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(byte * 65536)

    return hook


async def test_a_layer_that_never_ends_is_refused(service: Images, odd: OddRegistry) -> None:
    image = small_image()
    name = odd.add("app", image)
    odd.hooks[images.digest(image.layers[0].blob)] = endless(b"\0")
    await refused(service, name, "more than")


async def test_a_manifest_that_never_ends_is_refused(service: Images, odd: OddRegistry) -> None:
    odd.hooks["/manifests/"] = endless(b" ")
    await refused(service, f"{odd.address}/app", "larger than")


class Breaking:
    """Serves a blob but breaks off after `length` bytes of each of the first `times` answers."""

    def __init__(self, odd: OddRegistry, blob: bytes, length: int, times: int) -> None:
        self.starts: list[int] = []
        self._odd, self._blob, self._length, self._times = odd, blob, length, times
        odd.hooks[images.digest(blob)] = self.serve

    async def serve(self, request: web.Request) -> web.StreamResponse:
        start = request.http_range.start or 0
        self.starts.append(start)
        if len(self.starts) > self._times:
            return await self._odd.serve(request)
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(self._blob) - start
        if start:
            end = len(self._blob)
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{end}"
        await response.prepare(request)
        await response.write(self._blob[start : start + self._length])
        assert request.transport is not None
        request.transport.close()
        return response


async def test_a_transfer_that_breaks_is_resumed(service: Images, odd: OddRegistry) -> None:
    image = images.Image((images.files_layer({"big": os.urandom(1_000_000)}),))
    name = odd.add("app", image)
    breaking = Breaking(odd, image.layers[0].blob, 300_000, times=3)
    assert (await service.pull(name)).id == image.id
    # Each goes on behind what has come; of what was on its way when it broke some may be lost.
    assert [0, *breaking.starts[1:]] == sorted(set(breaking.starts))
    assert len(breaking.starts) == 4


async def test_a_transfer_that_breaks_for_ever_is_given_up(
    service: Images, odd: OddRegistry
) -> None:
    image = small_image()
    name = odd.add("app", image)
    breaking = Breaking(odd, image.layers[0].blob, 0, times=1000)
    await refused(service, name, "^RegistryUnavailable: layer .* breaks off")
    assert len(breaking.starts) == 5


async def test_a_host_that_ignores_a_range_is_understood(service: Images, odd: OddRegistry) -> None:
    image = images.Image((images.files_layer({"big": os.urandom(500_000)}),))
    name = odd.add("app", image)
    breaking = Breaking(odd, image.layers[0].blob, 100_000, times=1)
    first = breaking.serve

    async def whole(request: web.Request) -> web.StreamResponse:
        return (
            await first(request) if not breaking.starts else web.Response(body=image.layers[0].blob)
        )

    odd.hooks[images.digest(image.layers[0].blob)] = whole
    assert (await service.pull(name)).id == image.id


async def test_a_finished_layer_is_not_fetched_again(service: Images, odd: OddRegistry) -> None:
    """The pull is broken off, and the daemon restarted, when one of two layers is finished."""
    first = images.files_layer({"one": os.urandom(10_000)})
    second = images.files_layer({"two": os.urandom(10_000)})
    image = images.Image((first, second))
    name = odd.add("app", image)
    held = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        await held.wait()
        return await odd.serve(request)

    odd.hooks[images.digest(second.blob)] = hold
    pull = asyncio.create_task(service.pull(name))
    async with asyncio.timeout(20):
        while "layers: 1" not in service.left():  # noqa: ASYNC110 - the database does not signal
            await asyncio.sleep(0.01)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    held.set()
    await service.close()
    service.open()
    await service.service.recover([])
    assert (await service.pull(name)).id == image.id
    assert sum(images.digest(first.blob) in path for path in odd.paths()) == 1


async def test_a_pull_tries_its_own_registry_when_the_one_it_joined_fails(
    service: Images, odd: OddRegistry, open_registry: Opener
) -> None:
    other = await open_registry()
    image = small_image()
    held = asyncio.Event()

    async def fail_later(request: web.Request) -> web.StreamResponse:
        await held.wait()
        return web.Response(status=500)

    digest = images.digest(image.layers[0].blob)
    odd.hooks[digest] = fail_later
    failing = asyncio.create_task(service.pull(odd.add("app", image)))
    async with asyncio.timeout(20):
        while not any(digest in path for path in odd.paths()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    joining = asyncio.create_task(service.pull(other.add("app", image)))
    async with asyncio.timeout(20):
        while not other.paths():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # for it to join; if it has not, it succeeds as well
    held.set()
    with pytest.raises(ImagePullError, match=r"^RegistryUnavailable"):
        await failing
    assert (await joining).id == image.id


async def test_a_pull_that_nobody_waits_for_ends_and_can_be_gone_on_with(
    service: Images, odd: OddRegistry
) -> None:
    image = images.Image((images.files_layer({"big": os.urandom(2_000_000)}),))
    name = odd.add("app", image)
    blob = image.layers[0].blob
    half_sent = asyncio.Event()
    starts: list[int] = []

    async def send_half(request: web.Request) -> web.StreamResponse:
        starts.append(request.http_range.start or 0)
        if starts[-1]:
            return await odd.serve(request)
        response = web.StreamResponse()
        response.content_length = len(blob)
        await response.prepare(request)
        await response.write(blob[: len(blob) // 2])
        half_sent.set()
        await asyncio.Event().wait()
        return response

    odd.hooks[images.digest(blob)] = send_half
    pull = asyncio.create_task(service.pull(name))
    await half_sent.wait()
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    partial = f"content/ingest/{images.digest(blob).removeprefix('sha256:')}"
    async with asyncio.timeout(20):
        while service.left() != [partial]:  # noqa: ASYNC110 - it ends behind the one who has left
            await asyncio.sleep(0.01)
    assert (await service.pull(name)).id == image.id
    assert len(starts) == 2
    assert 0 < starts[1] <= len(blob) // 2
    (layer,) = await service.layer_dirs(service.service.resolve(image.id))
    assert (layer / "big").stat().st_size == 2_000_000
