"""Registries that are busy, and those that are reached through a proxy only."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from api.cri import api_pb2 as cri
from api.errors import ImagePullError
from imageservice.transport import MAX_CONNECTIONS_PER_HOST
from tests.integration import images
from tests.integration.certificates import make_certificates, server_context
from tests.integration.image_fixtures import Images
from tests.integration.odd_registry import OddRegistry, Opener, answer, small_image
from tests.integration.proxy import Proxy, proxy

pytestmark = pytest.mark.integration


class Busy:
    """Refuses the first `times` requests whose path contains `key`."""

    def __init__(
        self, odd: OddRegistry, key: str, times: int, refusal: web.Response | None
    ) -> None:
        self.refused = 0
        self._odd, self._times, self._refusal = odd, times, refusal
        odd.hooks[key] = self.serve

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.refused == self._times:
            return await self._odd.serve(request)
        self.refused += 1
        if self._refusal is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return web.Response(status=self._refusal.status, headers=self._refusal.headers)


@pytest.mark.parametrize("key", ["/manifests/", "/blobs/"])
@pytest.mark.parametrize(
    "refusal",
    [
        web.Response(status=429),
        web.Response(status=429, headers={"Retry-After": "0"}),
        web.Response(status=503),
        web.Response(status=500),
        None,
    ],
    ids=["429", "429 now", "503", "500", "broken"],
)
async def test_a_busy_registry_is_asked_again(
    service: Images, odd: OddRegistry, key: str, refusal: web.Response | None
) -> None:
    image = small_image()
    name = odd.add("app", image)
    busy = Busy(odd, key, 2, refusal)
    assert (await service.pull(name)).id == image.id
    assert busy.refused == 2


async def test_a_registry_gets_the_time_that_it_asks_for(service: Images, odd: OddRegistry) -> None:
    name = odd.add("app", small_image())
    Busy(odd, "/manifests/", 1, web.Response(status=429, headers={"Retry-After": "1"}))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await service.pull(name)
    assert loop.time() - began >= 1


@pytest.mark.parametrize(
    ("status", "pattern"),
    [
        (429, "cannot pull manifest latest.*429.*limits how much it is asked"),
        (503, "^RegistryUnavailable: manifest latest.*503"),
    ],
)
async def test_a_registry_that_stays_busy_is_given_up(
    service: Images, odd: OddRegistry, status: int, pattern: str
) -> None:
    odd.hooks["/v2/"] = answer(status)
    with pytest.raises(ImagePullError, match=pattern):
        await service.pull(f"{odd.address}/app")
    assert len(odd.requests) == 4
    assert service.left() == []


@pytest.mark.parametrize("status", [400, 403, 404, 418])
async def test_what_will_not_change_is_asked_once(
    service: Images, odd: OddRegistry, status: int
) -> None:
    odd.hooks["/v2/"] = answer(status)
    with pytest.raises(Exception, match=str(status)):
        await service.pull(f"{odd.address}/app")
    assert len(odd.requests) == 1


async def test_the_next_host_is_asked_before_a_busy_one_is_again(
    service: Images, odd: OddRegistry, open_registry: Opener
) -> None:
    busy = await open_registry()
    busy.hooks["/v2/"] = answer(429)
    image = small_image()
    odd.add("app", image)
    service.mirror(
        "registry.invalid",
        f'server = "http://{odd.address}"\n[host."http://{busy.address}"]',
    )
    assert (await service.pull("registry.invalid/app")).id == image.id
    assert sum("/manifests/" in path for path in busy.paths()) == 1


async def test_a_host_gets_so_many_connections_at_a_time(service: Images, odd: OddRegistry) -> None:
    await service.close()
    service.open(max_parallel_layers=3 * MAX_CONNECTIONS_PER_HOST)
    layers = [
        images.files_layer({"n": str(number)}) for number in range(3 * MAX_CONNECTIONS_PER_HOST)
    ]
    image = images.Image(tuple(layers))
    name = odd.add("app", image)
    now, most = 0, 0
    full = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == MAX_CONNECTIONS_PER_HOST:
            asyncio.get_running_loop().call_later(0.3, full.set)  # for more to come, wrongly
        if image.id not in request.path:
            await full.wait()
        now -= 1
        return await odd.serve(request)

    odd.hooks["/blobs/"] = hold
    assert (await service.pull(name)).id == image.id
    assert most == MAX_CONNECTIONS_PER_HOST


# -- tokens that are kept ---------------------------------------------------------------------


class Tokens:
    """A registry that takes the newest token only, and gives it to everybody."""

    def __init__(self, odd: OddRegistry, expires_in: object = 300) -> None:
        self.given = 0
        self.refused = 0
        self._odd, self._expires_in = odd, expires_in
        odd.hooks["/token"] = self.give
        odd.hooks["/v2/"] = self.check

    def revoke(self) -> None:
        self.given += 1

    async def give(self, request: web.Request) -> web.Response:
        self.given += 1
        return web.json_response({"token": f"t{self.given}", "expires_in": self._expires_in})

    async def check(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == f"Bearer t{self.given}":
            return await self._odd.serve(request)
        self.refused += 1
        challenge = f'Bearer realm="http://{self._odd.address}/token",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})


async def test_a_kept_token_saves_both_requests(service: Images, odd: OddRegistry) -> None:
    tokens = Tokens(odd)
    name = odd.add("app", small_image())
    odd.add("app", small_image("2"), "2")
    await service.pull(name)
    assert (tokens.given, tokens.refused) == (1, 1)
    await service.pull(f"{odd.address}/app:2")
    assert (tokens.given, tokens.refused) == (1, 1)


async def test_a_kept_token_that_is_refused_is_replaced(service: Images, odd: OddRegistry) -> None:
    tokens = Tokens(odd)
    name = odd.add("app", small_image())
    odd.add("app", small_image("2"), "2")
    await service.pull(name)
    tokens.revoke()
    image = await service.pull(f"{odd.address}/app:2")
    assert image.id == small_image("2").id
    assert tokens.given == 3


async def test_a_token_that_ends_in_the_middle_of_a_pull_is_replaced(
    service: Images, odd: OddRegistry
) -> None:
    tokens = Tokens(odd)
    image = images.Image(tuple(images.files_layer({"n": str(n)}) for n in range(6)))
    name = odd.add("app", image)
    check = tokens.check
    config = asyncio.Event()

    async def end_the_token_once(request: web.Request) -> web.StreamResponse:
        if "/blobs/" in request.path and not config.is_set():
            config.set()
            tokens.revoke()
        return await check(request)

    odd.hooks["/v2/"] = end_the_token_once
    assert (await service.pull(name)).id == image.id
    assert tokens.given == 3


async def test_a_token_that_is_over_is_not_sent(service: Images, odd: OddRegistry) -> None:
    tokens = Tokens(odd, expires_in=0.01)
    name = odd.add("app", small_image())
    odd.add("app", small_image("2"), "2")
    await service.pull(name)
    await asyncio.sleep(0.02)
    before = len(odd.requests)
    await service.pull(f"{odd.address}/app:2")
    assert "Authorization" not in odd.requests[before].headers
    assert tokens.given == 2


async def test_pulls_at_the_same_time_ask_for_a_token_once(
    service: Images, odd: OddRegistry
) -> None:
    tokens = Tokens(odd)
    names = [odd.add("app", small_image(str(n)), str(n)) for n in range(8)]
    await asyncio.gather(*(service.pull(name) for name in names))
    assert tokens.given == 1


# -- proxies ----------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def through() -> AsyncIterator[Proxy]:
    async with proxy() as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


async def use(service: Images, **environment: str) -> None:
    await service.close()
    service.open(environment=environment)


@pytest.mark.parametrize("secret", ["", "me:pass@"], ids=["anonymous", "with a password"])
async def test_http_goes_through_the_proxy(
    service: Images, odd: OddRegistry, through: Proxy, secret: str
) -> None:
    through.target = odd.address
    if secret:
        pair = base64.b64encode(secret.removesuffix("@").encode()).decode()
        through.authorization = f"Basic {pair}"
    await use(service, HTTP_PROXY=f"http://{secret}{through.address}")
    image = small_image()
    odd.add("app", image)
    service.mirror("registry.invalid", 'server = "http://registry.invalid"')
    assert (await service.pull("registry.invalid/app")).id == image.id
    assert through.requests[0] == "GET http://registry.invalid/v2/app/manifests/latest HTTP/1.1"
    assert all("Proxy-Authorization" not in request.headers for request in odd.requests)


@pytest.mark.parametrize("secret", ["", "me:pass@"], ids=["anonymous", "with a password"])
async def test_https_goes_through_the_proxy_unseen(
    service: Images, open_registry: Opener, through: Proxy, certificates: Path, secret: str
) -> None:
    secure = await open_registry(server_context(certificates))
    through.target = secure.address
    if secret:
        pair = base64.b64encode(secret.removesuffix("@").encode()).decode()
        through.authorization = f"Basic {pair}"
    await use(service, https_proxy=f"http://{secret}{through.address}", NO_PROXY="elsewhere")
    image = small_image()
    secure.add("app", image)
    # 127.0.0.2 is this machine as well and so reached directly; a name is not.
    text = f'server = "https://registry.invalid"\nca = "{certificates}/ca.pem"\nskip_verify = true'
    service.mirror("registry.invalid", text)
    auth = cri.AuthConfig(username="me", password="registry's")
    assert (await service.pull("registry.invalid/app", auth)).id == image.id
    assert set(through.requests) == {"CONNECT registry.invalid:443 HTTP/1.1"}
    assert all("authorization" not in headers for headers in through.headers)


async def test_what_no_proxy_names_is_reached_directly(
    service: Images, odd: OddRegistry, through: Proxy
) -> None:
    await use(service, HTTP_PROXY=through.address)
    image = small_image()
    assert (await service.pull(odd.add("app", image))).id == image.id  # 127.0.0.1
    await use(service, HTTP_PROXY=through.address, NO_PROXY="registry.invalid")
    service.mirror("registry.invalid", 'server = "http://registry.invalid"')
    with pytest.raises(ImagePullError, match="its name cannot be looked up"):
        await service.pull("registry.invalid/app")
    assert through.requests == []


async def test_a_proxy_that_is_away_or_refuses_is_named(service: Images, through: Proxy) -> None:
    service.mirror("registry.invalid", 'server = "https://registry.invalid"')
    await use(service, HTTPS_PROXY="http://127.0.0.1:1")
    with pytest.raises(ImagePullError, match=r"^Reg.*the proxy 127\.0\.0\.1:1 .*refused"):
        await service.pull("registry.invalid/app")
    through.authorization = "Basic other"
    await use(service, HTTPS_PROXY=f"http://me:secret@{through.address}")
    with pytest.raises(ImagePullError, match=r"the proxy refuses the connection: 407") as raised:
        await service.pull("registry.invalid/app")
    assert "secret" not in str(raised.value)
    await use(service, HTTPS_PROXY="socks5://proxy:1")
    with pytest.raises(ImagePullError, match="HTTPS_PROXY is a socks5 proxy"):
        await service.pull("registry.invalid/app")
