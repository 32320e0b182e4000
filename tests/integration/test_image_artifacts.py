"""OCI artifacts: pulled, shown as image volumes, verified, exported, never run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from api.cri import api_pb2 as cri
from api.errors import FailedPreconditionError, ImagePullError
from tests.integration import images
from tests.integration.daemon import RPC_SECONDS, Daemon
from tests.integration.image_fixtures import Images
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
FILES = {"model/weights.bin": b"w" * 100_000, "model/config.json": b"{}", "README": b"read me"}


def push(
    registry: Registry,
    repository: str,
    files: Mapping[str, bytes],
    config: tuple[str, bytes] = (EMPTY, b"{}"),
) -> str:
    """Push an artifact as ORAS does; returns the digest of its manifest."""
    for blob in (config[1], *files.values()):
        images.push_blob(registry.address, repository, blob)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": images.OCI.manifest,
        "artifactType": "application/vnd.example.model",
        "config": images.descriptor(*config),
        "layers": [
            images.descriptor(
                "application/octet-stream", data, annotations={TITLE: name} if name else {}
            )
            for name, data in files.items()
        ],
    }
    body = images.encode(manifest)
    images.push_manifest(registry.address, repository, body, images.OCI.manifest, "latest")
    return images.digest(body)


async def volume(service: Images, name: str) -> dict[str, bytes]:
    """The files that a container would see."""
    await service.service.remove_rootfs("c")
    image = service.service.resolve(name)
    (top, _) = await service.service.image_volume(image, "c")
    found = [path for path in Path(top).rglob("*") if path.is_file()]
    return {str(path.relative_to(top)): path.read_bytes() for path in found}


async def test_an_artifact_is_its_files(service: Images, registry: Registry) -> None:
    digest = push(registry, "artifact", FILES)
    name = f"{registry.address}/artifact"
    image = await service.pull(name)
    assert image.id == digest  # the configuration is the same for all
    assert await volume(service, name) == FILES
    (listed,) = await service.listed()
    assert listed.size > sum(map(len, FILES.values()))
    found = [each async for each in service.service.admin.verify(())]
    assert [each for each in found if each.damages or each.note] == []
    assert (await service.pull(name)).id == digest
    await service.remove(name)
    await service.service.recover([])
    assert service.left() == []


async def test_files_take_no_space_of_their_own(service: Images, registry: Registry) -> None:
    push(registry, "linked", FILES)
    await service.pull(f"{registry.address}/linked")
    links = [p.stat().st_nlink for p in (service.root / "layers").rglob("*") if p.is_file()]
    assert links == [2] * len(FILES)


async def test_an_artifact_cannot_be_run(service: Images, registry: Registry) -> None:
    push(registry, "norun", FILES)
    image = await service.pull(f"{registry.address}/norun")
    with pytest.raises(FailedPreconditionError, match="artifact"):
        await service.service.prepare_rootfs(image, "c1")


async def test_two_artifacts_with_the_same_files_are_two(
    service: Images, registry: Registry
) -> None:
    one = push(registry, "same1", FILES)
    two = push(registry, "same2", FILES, ("application/vnd.example.config", b'{"a":1}'))
    assert one != two
    for name in ("same1", "same2"):
        await service.pull(f"{registry.address}/{name}")
    await service.remove(f"{registry.address}/same1")
    assert await volume(service, f"{registry.address}/same2") == FILES


async def test_a_file_without_a_title_is_named_by_its_digest(
    service: Images, registry: Registry
) -> None:
    push(registry, "untitled", {"": b"data"})
    await service.pull(f"{registry.address}/untitled")
    name = images.digest(b"data").replace(":", "-")
    assert await volume(service, f"{registry.address}/untitled") == {name: b"data"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"../escape": b"x"}, r"\.\."),
        ({"a/../../b": b"x"}, r"\.\."),
        ({"a": b"x", "a/b": b"y"}, "both a file and a directory"),
        ({"a": b"x", "./a": b"y"}, "two files"),
        ({"/": b"x"}, "title"),
        ({"x" * 300: b"x"}, "name too long"),
    ],
)
async def test_a_hostile_title_is_refused(
    service: Images, registry: Registry, files: dict[str, bytes], reason: str
) -> None:
    push(registry, "hostile", files)
    with pytest.raises(ImagePullError, match=rf"(?i){reason}"):
        await service.pull(f"{registry.address}/hostile")
    assert not [path for path in (service.root / "layers").iterdir() if path.name != "empty"]


async def test_a_damaged_file_is_found_and_repaired(service: Images, registry: Registry) -> None:
    push(registry, "damaged", FILES)
    name = f"{registry.address}/damaged"
    await service.pull(name)
    victim = service.root / "content/blobs/sha256" / images.digest(FILES["README"])[7:]
    victim.write_bytes(b"damaged")
    found = [each async for each in service.service.admin.verify(()) if each.damages]
    assert [each.kind for each in found] == ["blob", "layer"]
    await service.pull(name)
    assert await volume(service, name) == FILES
    assert [each async for each in service.service.admin.verify(()) if each.damages] == []


async def test_an_artifact_goes_through_an_archive(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    digest = push(registry, "archived-artifact", FILES)
    name = f"{registry.address}/archived-artifact:latest"
    await service.pull(name)
    with (tmp_path / "out.tar").open("wb") as file:
        async for piece in service.service.admin.export([name]):
            file.write(piece)
    await service.remove(name)
    assert await service.service.import_archive(tmp_path / "out.tar") == [name]
    assert service.service.resolve(name).id == digest
    assert await volume(service, name) == FILES


def test_a_container_mounts_an_artifact(daemon: Daemon, registry: Registry) -> None:
    pods = Pods(daemon)
    pods.pull(registry)
    push(registry, "mounted-artifact", FILES)
    name = "registry.test/mounted-artifact:latest"
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
    daemon.images.PullImage(request, timeout=RPC_SECONDS)
    pod = pods.run_pod()
    mount = cri.Mount(
        container_path="/v", readonly=True, image=cri.ImageSpec(image=name), image_sub_path="model"
    )
    context = cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=1000),
        namespace_options=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER),
    )
    container = pods.run(
        pod,
        *("sh", "-c", "ls /v; wc -c < /v/weights.bin; echo x > /v/config.json || true"),
        mounts=[mount],
        linux=cri.LinuxContainerConfig(security_context=context),
    )
    assert pods.exited(container).exit_code == 0, pods.output(container)
    assert pods.output(container)[:3] == ["config.json", "weights.bin", "100000"]
    blob = daemon.root / "content/blobs/sha256" / images.digest(FILES["model/config.json"])[7:]
    assert blob.read_bytes() == b"{}"
    message = refused("FAILED_PRECONDITION", pods.create, pod, image=cri.ImageSpec(image=name))
    assert "artifact" in message
    assert os.stat(blob).st_mode & 0o777 == 0o444
    pods.remove_pod(pod)
