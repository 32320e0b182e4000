"""Debian's docker-registry behind TLS, client certificates, a password file and a token server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from api.cri import api_pb2 as cri
from api.errors import ImagePullError
from tests.integration import images
from tests.integration.certificates import make_certificates, server_context
from tests.integration.image_fixtures import Images
from tests.integration.registry import Registry
from tests.integration.token_server import (
    PASSWORD,
    REFRESH_TOKEN,
    USER,
    TokenServer,
    token_server,
)

pytestmark = pytest.mark.integration

# bcrypt, of PASSWORD
HASHED = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
ME = cri.AuthConfig(username=USER, password=PASSWORD)
PUSHED = {
    name: images.Image((images.files_layer({"name": name, "rest": "x" * 9000}),), {"User": name})
    for name in ("team/app", "team/other", "public/app")
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def make_private(tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """A maker of registries that have the images and then close their doors."""
    started: list[Registry] = []

    def make(**settings: dict[str, object]) -> Registry:
        directory = tmp_path / f"private{len(started)}"
        directory.mkdir()
        registry = Registry(directory)
        started.append(registry)
        for name, image in PUSHED.items():
            images.push(registry.address, name, image)
        registry.stop()
        registry.tls = settings.get("tls", {})
        registry.auth = settings.get("auth", {})
        registry.start()
        return registry

    yield make
    for registry in started:
        registry.stop()


def tls(certificates: Path, **more: object) -> dict[str, object]:
    files = {"certificate": "server.pem", "key": "server.key"}
    return {**{key: str(certificates / name) for key, name in files.items()}, **more}


def trust(service: Images, certificates: Path, registry: Registry, more: str = "") -> str:
    """Configure the registry as `private.test`; returns that name."""
    text = f'server = "https://{registry.address}"\nca = "{certificates}/ca.pem"\n{more}'
    service.mirror("private.test", text)
    return "private.test"


async def test_tls_and_a_client_certificate(
    service: Images, make_private: Callable[..., Registry], certificates: Path
) -> None:
    ca = str(certificates / "ca.pem")
    registry = make_private(tls=tls(certificates, clientcas=[ca]))
    service.mirror("private.test", f'server = "https://{registry.address}"')
    with pytest.raises(ImagePullError, match=r"^RegistryUnavailable: .*not trusted"):
        await service.pull("private.test/team/app")
    host = trust(service, certificates, registry)
    with pytest.raises(ImagePullError, match=r"^RegistryUnavailable: .*wants another client cert"):
        await service.pull(f"{host}/team/app")
    pair = f'client = [["{certificates}/client.pem", "{certificates}/client.key"]]'
    trust(service, certificates, registry, pair)
    assert (await service.pull(f"{host}/team/app")).id == PUSHED["team/app"].id


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_certificate_that_cannot_be_used_is_named(
    service: Images, content: str | None
) -> None:
    path = service.certs_dir / "private.test/ca.pem"
    service.mirror("private.test", 'server = "https://127.0.0.1:1"\nca = "ca.pem"')
    if content is not None:
        path.write_text(content)
    with pytest.raises(ImagePullError, match=str(path)):
        await service.pull("private.test/team/app")


async def test_dockers_layout_of_certificates(
    service: Images, make_private: Callable[..., Registry], certificates: Path
) -> None:
    ca = str(certificates / "ca.pem")
    registry = make_private(tls=tls(certificates, clientcas=[ca]))
    directory = service.certs_dir / registry.address
    directory.mkdir()
    for source, name in (
        ("ca.pem", "ca.crt"),
        ("client.pem", "client.cert"),
        ("client.key", "client.key"),
    ):
        (directory / name).write_bytes((certificates / source).read_bytes())
    pulled = await service.pull(f"{registry.address}/team/app")
    assert pulled.id == PUSHED["team/app"].id


async def test_a_password_file(
    service: Images, make_private: Callable[..., Registry], certificates: Path, tmp_path: Path
) -> None:
    (tmp_path / "htpasswd").write_text(f"{USER}:{HASHED}\n")
    auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
    registry = make_private(tls=tls(certificates), auth=auth)
    host = trust(service, certificates, registry)
    for wrong in (None, cri.AuthConfig(username=USER, password="wrong")):
        with pytest.raises(ImagePullError, match=r"access denied for private\.test/team/app"):
            await service.pull(f"{host}/team/app", wrong)
    assert service.left() == []
    assert (await service.pull(f"{host}/team/app", ME)).id == PUSHED["team/app"].id


@pytest_asyncio.fixture
async def tokens(tmp_path: Path, certificates: Path) -> AsyncIterator[TokenServer]:
    async with token_server(tmp_path, server_context(certificates)) as running:
        yield running


@pytest.fixture
def host(
    service: Images,
    make_private: Callable[..., Registry],
    certificates: Path,
    tokens: TokenServer,
) -> str:
    registry = make_private(tls=tls(certificates), auth=tokens.registry_settings())
    return trust(service, certificates, registry)


async def test_a_token_server_knows_who_may_pull(
    service: Images, host: str, tokens: TokenServer
) -> None:
    assert (await service.pull(f"{host}/public/app")).id == PUSHED["public/app"].id
    for wrong in (None, cri.AuthConfig(username=USER, password="wrong")):
        with pytest.raises(ImagePullError, match=r"access denied for private\.test/team/app"):
            await service.pull(f"{host}/team/app", wrong)
    assert (await service.pull(f"{host}/team/app", ME)).id == PUSHED["team/app"].id
    assert {asked["method"] for asked in tokens.asked} == {"GET"}


async def test_an_identity_token_is_exchanged(
    service: Images, host: str, tokens: TokenServer
) -> None:
    with pytest.raises(ImagePullError, match="pull access denied"):
        await service.pull(f"{host}/team/app", cri.AuthConfig(identity_token="stale"))
    auth = cri.AuthConfig(identity_token=REFRESH_TOKEN)
    assert (await service.pull(f"{host}/team/app", auth)).id == PUSHED["team/app"].id
    assert {asked["method"] for asked in tokens.asked} == {"POST"}
    assert tokens.asked[-1]["scope"] == "repository:team/app:pull"


async def test_a_token_is_used_by_the_pulls_that_follow(
    service: Images, host: str, tokens: TokenServer
) -> None:
    await service.pull(f"{host}/team/app", ME)
    await service.remove(f"{host}/team/app")
    await service.pull(f"{host}/team/app", ME)
    assert len(tokens.asked) == 1
    await service.pull(f"{host}/team/other", ME)  # another scope
    assert len(tokens.asked) == 2
    with pytest.raises(ImagePullError, match="pull access denied"):
        await service.pull(f"{host}/team/app", cri.AuthConfig(username=USER, password="wrong"))
    with pytest.raises(ImagePullError, match="pull access denied"):
        await service.pull(f"{host}/team/app")
    assert len(tokens.asked) == 4


async def test_a_registry_token_is_taken_as_it_is(
    service: Images, host: str, tokens: TokenServer
) -> None:
    auth = cri.AuthConfig(registry_token=tokens._token("team/app"))
    assert (await service.pull(f"{host}/team/app", auth)).id == PUSHED["team/app"].id
    assert tokens.asked == []
    with pytest.raises(ImagePullError, match="pull access denied"):
        await service.pull(f"{host}/team/other", auth)
