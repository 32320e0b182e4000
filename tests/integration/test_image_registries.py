"""Mirrors, TLS, authentication and redirects."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from aiohttp import web

from api.cri import api_pb2 as cri
from api.errors import ImagePullError, NotFoundError
from tests.integration import images
from tests.integration.certificates import make_certificates, server_context
from tests.integration.image_fixtures import Images
from tests.integration.odd_registry import OddRegistry, Opener, answer, small_image
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

# -- mirrors ----------------------------------------------------------------------------------


async def test_a_mirror_is_asked_first(
    service: Images, registry: Registry, odd: OddRegistry
) -> None:
    image = small_image()
    odd.add("team/app", image)
    service.mirror("registry.invalid", f'[host."http://{odd.address}"]')
    pulled = await service.pull("registry.invalid/team/app")
    assert pulled.repo_tags == ("registry.invalid/team/app:latest",)
    assert {request.query["ns"] for request in odd.requests} == {"registry.invalid"}


async def test_the_real_registry_is_a_mirror_for_everything_by_default(
    service: Images, registry: Registry
) -> None:
    images.push(registry.address, "library/busybox", images.busybox())
    service.mirror("_default", f'server = "http://{registry.address}"')
    pulled = await service.pull("busybox")
    assert pulled.repo_tags == ("docker.io/library/busybox:latest",)


async def test_the_next_host_is_asked_when_one_fails(
    service: Images, odd: OddRegistry, open_registry: Opener
) -> None:
    broken, lacking = await open_registry(), await open_registry()
    broken.hooks["/v2/"] = answer(503)
    image = small_image()
    odd.add("app", image)
    service.mirror(
        "registry.invalid",
        f"""
        server = "http://{odd.address}"
        [host."http://127.0.0.1:1"]
        [host."http://{broken.address}"]
        [host."http://{lacking.address}"]
        """,
    )
    assert (await service.pull("registry.invalid/app")).id == image.id
    assert len(broken.requests) == 1  # it was down: not asked again for each blob


async def test_a_blob_that_a_mirror_lacks_comes_from_the_next_host(
    service: Images, odd: OddRegistry, open_registry: Opener
) -> None:
    image = small_image()
    half = await open_registry()
    half.add("app", image)
    del half.content[f"/v2/app/blobs/{images.digest(image.layers[0].blob)}"]
    odd.add("app", image)
    service.mirror(
        "registry.invalid",
        f'server = "http://{odd.address}"\n[host."http://{half.address}"]',
    )
    assert (await service.pull("registry.invalid/app")).id == image.id
    assert [path.split("/")[-2] for path in odd.paths()] == ["blobs"]


async def test_capabilities_say_what_a_host_is_asked_for(
    service: Images, odd: OddRegistry, open_registry: Opener
) -> None:
    image = small_image()
    resolver = await open_registry()
    for one in (odd, resolver):
        one.add("app", image)
    service.mirror(
        "registry.invalid",
        f"""
        server = "http://{odd.address}"
        capabilities = ["pull"]
        [host."http://{resolver.address}"]
          capabilities = ["resolve"]
        """,
    )
    await service.pull("registry.invalid/app")
    assert resolver.paths() == ["/v2/app/manifests/latest"]
    assert all("/blobs/" in path for path in odd.paths())


async def test_all_hosts_are_named_when_none_has_it(service: Images, odd: OddRegistry) -> None:
    service.mirror(
        "registry.invalid",
        f'server = "http://{odd.address}"\n[host."http://127.0.0.1:1"]',
    )
    with pytest.raises(NotFoundError) as raised:
        await service.pull("registry.invalid/app")
    for part in ("registry.invalid/app:latest", "127.0.0.1:1: connection refused", odd.address):
        assert part in str(raised.value)
    assert "NOT_HERE no such thing" in str(raised.value)


async def test_headers_and_an_overridden_path_are_used(service: Images, odd: OddRegistry) -> None:
    image = small_image()
    odd.add("app", image)
    odd.content = {path.replace("/v2/", "/api/prefix/"): c for path, c in odd.content.items()}
    service.mirror(
        "registry.invalid",
        f"""
        [host."http://{odd.address}/api/prefix"]
          override_path = true
        [host."http://{odd.address}/api/prefix".header]
          X-Key = "k1"
        """,
    )
    assert (await service.pull("registry.invalid/app")).id == image.id
    assert {request.headers["X-Key"] for request in odd.requests} == {"k1"}


async def test_a_wrong_hosts_toml_is_named(service: Images) -> None:
    service.mirror("registry.invalid", "server = [")
    with pytest.raises(ImagePullError, match=r"certs\.d/registry\.invalid/hosts\.toml"):
        await service.pull("registry.invalid/app")


# -- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


async def test_a_private_ca_is_trusted_where_it_is_configured(
    service: Images, open_registry: Opener, certificates: Path
) -> None:
    secure = await open_registry(server_context(certificates))
    image = small_image()
    secure.add("app", image)
    service.mirror("registry.invalid", f'server = "https://{secure.address}"')
    with pytest.raises(ImagePullError, match=r"^RegistryUnavailable: .*not trusted"):
        await service.pull("registry.invalid/app")
    text = f'server = "https://{secure.address}"\nca = "{certificates}/ca.pem"'
    service.mirror("registry.invalid", text)
    assert (await service.pull("registry.invalid/app")).id == image.id


async def test_skip_verify_takes_any_certificate(
    service: Images, open_registry: Opener, certificates: Path
) -> None:
    secure = await open_registry(server_context(certificates))
    image = small_image()
    secure.add("app", image)
    service.mirror("registry.invalid", f'server = "https://{secure.address}"\nskip_verify = true')
    assert (await service.pull("registry.invalid/app")).id == image.id


async def test_a_client_certificate_is_shown(
    service: Images, open_registry: Opener, certificates: Path
) -> None:
    secure = await open_registry(server_context(certificates, client=True))
    image = small_image()
    secure.add("app", image)
    text = f'server = "https://{secure.address}"\nca = "{certificates}/ca.pem"\n'
    service.mirror("registry.invalid", text)
    with pytest.raises(ImagePullError, match=r"^RegistryUnavailable"):
        await service.pull("registry.invalid/app")
    pair = f'client = [["{certificates}/client.pem", "{certificates}/client.key"]]'
    service.mirror("registry.invalid", text + pair)
    assert (await service.pull("registry.invalid/app")).id == image.id


# -- authentication ---------------------------------------------------------------------------


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def demand(odd: OddRegistry, authorization: str, challenge: str) -> None:
    """Answer 401 with a challenge unless the right header comes."""

    async def hook(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == authorization:
            return await odd.serve(request)
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    odd.hooks["/v2/"] = hook


@pytest.mark.parametrize(
    "auth",
    [
        cri.AuthConfig(username="me", password="secret"),
        cri.AuthConfig(auth=basic("me:secret").removeprefix("Basic ")),
    ],
    ids=["username", "auth"],
)
async def test_basic_authentication(
    service: Images, odd: OddRegistry, auth: cri.AuthConfig
) -> None:
    image = small_image()
    demand(odd, basic("me:secret"), 'Basic realm="x"')
    name = odd.add("app", image)
    assert (await service.pull(name, auth)).id == image.id
    assert sum("Authorization" not in request.headers for request in odd.requests) == 1


@pytest.mark.parametrize("auth", [None, cri.AuthConfig(username="me", password="wrong")])
async def test_wrong_credentials_are_an_error_without_the_secret(
    service: Images, odd: OddRegistry, auth: cri.AuthConfig | None
) -> None:
    demand(odd, basic("me:secret"), 'Basic realm="x"')
    name = odd.add("app", small_image())
    with pytest.raises(ImagePullError, match=r"access denied.*401.*imagePullSecrets") as raised:
        await service.pull(name, auth)
    assert "wrong" not in str(raised.value)
    assert len(odd.requests) <= 2


async def test_credentials_for_another_server_stay_here(service: Images, odd: OddRegistry) -> None:
    demand(odd, basic("me:secret"), 'Basic realm="x"')
    name = odd.add("app", small_image())
    auth = cri.AuthConfig(username="me", password="secret", server_address="https://other")
    with pytest.raises(ImagePullError, match="access denied"):
        await service.pull(name, auth)
    assert not any("Authorization" in request.headers for request in odd.requests)


class TokenServer:
    """Gives tokens at /token of a registry's own address."""

    def __init__(self, odd: OddRegistry) -> None:
        self.asked: list[dict[str, str]] = []
        self.authorizations: list[str | None] = []
        self._odd = odd
        realm = f"http://{odd.address}/token"
        challenge = f'Bearer realm="{realm}",service="reg",scope="repository:app:pull"'
        demand(odd, "Bearer tok", challenge)
        odd.hooks["/token"] = self.give

    async def give(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.asked.append({**request.query, **{key: str(value) for key, value in form.items()}})
        self.authorizations.append(request.headers.get("Authorization"))
        return web.json_response({"token": "tok", "expires_in": 60})


async def test_an_anonymous_token(service: Images, odd: OddRegistry) -> None:
    image = small_image()
    server = TokenServer(odd)
    name = odd.add("app", image)
    assert (await service.pull(name)).id == image.id
    assert server.asked == [{"service": "reg", "scope": "repository:app:pull"}]
    assert server.authorizations == [None]


async def test_a_token_for_a_user(service: Images, odd: OddRegistry) -> None:
    server = TokenServer(odd)
    name = odd.add("app", small_image())
    await service.pull(name, cri.AuthConfig(username="me", password="secret"))
    assert server.authorizations == [basic("me:secret")]


async def test_a_token_for_an_identity_token(service: Images, odd: OddRegistry) -> None:
    server = TokenServer(odd)
    name = odd.add("app", small_image())
    await service.pull(name, cri.AuthConfig(identity_token="refresh"))
    (asked,) = server.asked
    assert (asked["grant_type"], asked["refresh_token"]) == ("refresh_token", "refresh")


async def test_a_registry_token_is_sent_as_it_is(service: Images, odd: OddRegistry) -> None:
    server = TokenServer(odd)
    name = odd.add("app", small_image())
    await service.pull(name, cri.AuthConfig(registry_token="tok"))
    assert server.asked == []
    with pytest.raises(ImagePullError, match="access denied"):
        await service.pull(name, cri.AuthConfig(registry_token="stale"))


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        ("", "access denied"),
        ('Bearer realm="ftp://x/"', "no URL"),
        ('Bearer realm="not a url"', "realm"),
        ('Bearer realm="http://127.0.0.1:1/token"', "refused"),
        ("Negotiate", "access denied"),
    ],
)
async def test_a_challenge_that_cannot_be_met_is_an_error(
    service: Images, odd: OddRegistry, challenge: str, reason: str
) -> None:
    demand(odd, "never", challenge)
    name = odd.add("app", small_image())
    with pytest.raises(ImagePullError, match=reason):
        await service.pull(name, cri.AuthConfig(identity_token="i"))


async def test_a_token_server_without_a_token_is_an_error(
    service: Images, odd: OddRegistry
) -> None:
    TokenServer(odd)
    name = odd.add("app", small_image())
    for body in (b"<html>", b"[]", b'{"token": 5}', b'{"token": "a\\nb"}', bytes(2 << 20)):
        odd.hooks["/token"] = answer(200, body)
        with pytest.raises(ImagePullError):
            await service.pull(name)


# -- redirects --------------------------------------------------------------------------------


async def test_credentials_do_not_follow_a_redirect_to_another_host(
    service: Images, odd: OddRegistry, open_registry: Opener
) -> None:
    store = await open_registry()
    image = small_image()
    for one in (odd, store):
        one.add("app", image)

    async def send_on(request: web.Request) -> web.StreamResponse:
        # Not the same origin: another port is another host.
        location = f"http://{store.address}{request.path}?signature=a%2Fb"
        return web.Response(status=307, headers={"Location": location})

    odd.hooks["/blobs/"] = send_on
    demand(odd, basic("me:secret"), 'Basic realm="x"')
    service.mirror(
        "registry.invalid",
        f"""
        [host."http://{odd.address}"]
        [host."http://{odd.address}".header]
          X-Key = "k1"
        """,
    )
    auth = cri.AuthConfig(username="me", password="secret")
    assert (await service.pull("registry.invalid/app", auth)).id == image.id
    assert len(store.requests) == 2
    for request in store.requests:
        assert "Authorization" not in request.headers
        assert "X-Key" not in request.headers
        assert request.raw_path.endswith("?signature=a%2Fb")  # not encoded again


async def test_a_redirect_to_the_same_host_keeps_them(service: Images, odd: OddRegistry) -> None:
    image = small_image()
    name = odd.add("app", image)
    blob = f"/v2/app/blobs/{images.digest(image.layers[0].blob)}"
    odd.content["/v2/elsewhere"] = odd.content[blob]
    demand(odd, basic("me:secret"), 'Basic realm="x"')
    odd.hooks = {blob: answer(307, Location="/v2/elsewhere"), **odd.hooks}
    auth = cri.AuthConfig(username="me", password="secret")
    assert (await service.pull(name, auth)).id == image.id


@pytest.mark.parametrize("location", ["/v2/app/manifests/latest", "http://[", "ftp://host/a"])
async def test_a_redirect_that_leads_nowhere_is_an_error(
    service: Images, odd: OddRegistry, location: str
) -> None:
    name = odd.add("app", small_image())
    odd.hooks["/manifests/"] = answer(302, Location=location)
    with pytest.raises(ImagePullError, match=r"redirects|ftp"):
        await service.pull(name)
    assert len(odd.requests) <= 10
