"""Pulls under a signature policy, from a real registry with signatures as cosign writes them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api.errors import ImagePullError
from imageservice.settings import ImageSettings
from imageservice.signatures import ANNOTATION, PAYLOAD_TYPE, SIGNATURE_OF
from tests.integration import images
from tests.integration.image_fixtures import Images, running_images
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


@pytest_asyncio.fixture
async def service(registry: Registry, tmp_path: Path) -> AsyncIterator[Images]:
    """A service that wants images below signed/ signed, and refuses refused/."""
    (tmp_path / "key.pub").write_bytes(
        KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f"""
[[rule]]
repository = "{registry.address}/signed"
require = "signature"
keys = ["key.pub"]
[[rule]]
repository = "{registry.address}/refused"
require = "reject"
"""
    )
    settings = ImageSettings(signature_policy=policy)
    async with running_images(tmp_path, settings) as running:
        yield running


def sign(
    registry: Registry, repository: str, digest: str, key: ec.EllipticCurvePrivateKey = KEY
) -> None:
    """Push a signature of sha256:… as `cosign sign --key` does."""
    payload = images.encode(
        {
            "critical": {
                "identity": {"docker-reference": f"{registry.address}/{repository}"},
                "image": {"docker-manifest-digest": digest},
                "type": SIGNATURE_OF,
            },
            "optional": None,
        }
    )
    signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    config = b"{}"
    manifest = images.encode(
        {
            "schemaVersion": 2,
            "mediaType": images.OCI.manifest,
            "config": images.descriptor(images.OCI.config, config),
            "layers": [
                images.descriptor(PAYLOAD_TYPE, payload, annotations={ANNOTATION: signature})
            ],
        }
    )
    for blob in (payload, config):
        images.push_blob(registry.address, repository, blob)
    tag = f"{digest.replace(':', '-')}.sig"
    images.push_manifest(registry.address, repository, manifest, images.OCI.manifest, tag)


def image(text: str) -> images.Image:
    return images.Image((images.files_layer({"f": text}),))


async def refused(service: Images, name: str, reason: str) -> None:
    with pytest.raises(ImagePullError, match=reason) as caught:
        await service.pull(name)
    assert str(caught.value).startswith("SignatureValidationFailed: ")
    assert caught.value.code == "UNKNOWN"
    assert service.left() == []


async def test_a_signed_image_is_pulled(service: Images, registry: Registry) -> None:
    pushed = image("signed")
    images.push(registry.address, "signed/app", pushed)
    sign(registry, "signed/app", images.digest(pushed.manifest))
    name = f"{registry.address}/signed/app"
    assert (await service.pull(name)).id == pushed.id
    assert (await service.pull(f"{name}@{images.digest(pushed.manifest)}")).id == pushed.id


@pytest.mark.parametrize("signed", ["index", "manifest"])
async def test_the_signature_of_index_or_manifest_counts(
    service: Images, registry: Registry, signed: str
) -> None:
    pushed = image(f"indexed by {signed}")
    repository = f"signed/{signed}"
    images.push_index(registry.address, repository, [pushed])
    body = images.index([pushed]) if signed == "index" else pushed.manifest
    sign(registry, repository, images.digest(body))
    assert (await service.pull(f"{registry.address}/{repository}")).id == pushed.id


async def test_an_image_without_a_signature_is_refused(service: Images, registry: Registry) -> None:
    images.push(registry.address, "signed/none", image("none"))
    await refused(service, f"{registry.address}/signed/none", r"there is no .*\.sig")


async def test_a_signature_by_another_key_is_refused(service: Images, registry: Registry) -> None:
    pushed = image("other")
    images.push(registry.address, "signed/other", pushed)
    sign(registry, "signed/other", images.digest(pushed.manifest), OTHER)
    await refused(service, f"{registry.address}/signed/other", "none of the policy's keys")


async def test_a_signature_of_another_image_is_refused(service: Images, registry: Registry) -> None:
    """Copied under the tag of the image that it shall vouch for."""
    good, bad = image("good"), image("bad")
    repository = "signed/copied"
    for number, each in enumerate((good, bad)):
        images.push(registry.address, repository, each, f"v{number}")
    sign(registry, repository, images.digest(good.manifest))
    manifest = f"http://{registry.address}/v2/{repository}/manifests"
    tag = f"{images.digest(good.manifest).replace(':', '-')}.sig"
    body = images.fetch(f"{manifest}/{tag}", images.OCI.manifest)
    copied = f"{images.digest(bad.manifest).replace(':', '-')}.sig"
    images.push_manifest(registry.address, repository, body, images.OCI.manifest, copied)
    await refused(service, f"{registry.address}/{repository}:v1", "it is the signature of sha256:")


async def test_other_repositories_are_not_affected(service: Images, registry: Registry) -> None:
    for repository in ("free", "signedly"):
        await service.pull_of(registry, repository, image(repository))
    images.push(registry.address, "refused/x", image("refused"))
    with pytest.raises(ImagePullError, match=r"^SignatureValidationFailed: .* refuses"):
        await service.pull(f"{registry.address}/refused/x")


async def test_an_image_that_is_there_already_needs_its_signature_too(
    service: Images, registry: Registry
) -> None:
    pushed = image("there")
    await service.pull_of(registry, "free/there", pushed)
    images.push(registry.address, "signed/there", pushed)
    with pytest.raises(ImagePullError, match=r"^SignatureValidationFailed: "):
        await service.pull(f"{registry.address}/signed/there")


async def test_a_policy_that_was_broken_by_an_edit_lets_nothing_in(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    images.push(registry.address, "free/edited", image("edited"))
    (tmp_path / "policy.toml").write_text("[[rule]]\nrepository = 1\n")
    await refused(service, f"{registry.address}/free/edited", "policy.toml is wrong")
