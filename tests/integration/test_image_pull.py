"""Pulling from Debian's docker-registry, and what the image methods of CRI say afterwards."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from api.errors import ImagePullError, InvalidArgumentError, NotFoundError
from tests.integration import images
from tests.integration.image_fixtures import Images
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration


def gets_of(registry: Registry, digest: str) -> int:
    return sum(digest in line for line in registry.requests() if line.startswith("GET"))


@pytest.mark.parametrize("types", [images.OCI, images.DOCKER], ids=["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_an_image_is_pulled_by_its_tag(
    service: Images, registry: Registry, types: images.MediaTypes, compression: str
) -> None:
    pushed = images.Image((images.busybox_layer(compression),), {"User": "1000:5"}, types=types)
    name = f"{registry.address}/tag-{compression}"
    digest = images.push(registry.address, f"tag-{compression}", pushed, "v1").partition("@")[2]
    image = await service.pull(f"{name}:v1")
    assert image.id == pushed.id
    (listed,) = await service.listed()
    assert listed == cri.Image(
        id=pushed.id,
        repo_tags=[f"{name}:v1"],
        repo_digests=[f"{name}@{digest}"],
        size=len(pushed.manifest) + sum(map(len, pushed.blobs)),
        uid=cri.Int64Value(value=1000),
        spec=cri.ImageSpec(image=pushed.id),
    )
    (layer,) = await service.layer_dirs(image)
    assert (layer / "bin/busybox").read_bytes() == images.BUSYBOX.read_bytes()
    assert (layer / "bin/sh").readlink() == Path("busybox")
    assert (layer / "tmp").stat().st_mode & 0o7777 == 0o1777


async def test_an_image_is_pulled_by_its_digest(service: Images, registry: Registry) -> None:
    by_digest = images.push(registry.address, "digest", images.busybox(user="www-data"))
    image = await service.pull(by_digest)
    (listed,) = await service.listed()
    assert (list(listed.repo_tags), list(listed.repo_digests)) == ([], [by_digest])
    assert listed.username == "www-data"
    assert not listed.HasField("uid")
    assert await service.pull(f"{registry.address}/digest:ignored@{by_digest[-71:]}") == image


@pytest.mark.parametrize("types", [images.OCI, images.DOCKER], ids=["oci", "docker"])
async def test_an_index_gives_the_image_for_this_machine(
    service: Images, registry: Registry, types: images.MediaTypes
) -> None:
    ours = images.busybox(types=types)
    other = images.Image(ours.layers, {"User": "other"}, architecture="s390x", types=types)
    by_digest = images.push_index(registry.address, "index", [other, ours], "v1", types)
    image = await service.pull(f"{registry.address}/index:v1")
    assert image.id == ours.id
    assert image.repo_digests == (by_digest,)  # the index's, as containerd's
    index = images.index([other, ours], types)  # containerd counts it too
    assert image.size == len(index) + len(ours.manifest) + sum(map(len, ours.blobs))
    assert await service.pull(by_digest) == image


async def test_an_index_without_this_machine_says_what_there_is(
    service: Images, registry: Registry
) -> None:
    other = images.Image((images.busybox_layer(),), architecture="s390x")
    images.push_index(registry.address, "foreign", [other])
    with pytest.raises(ImagePullError, match="it has linux/s390x"):
        await service.pull(f"{registry.address}/foreign")
    assert service.left() == []


async def test_a_missing_image_is_not_found(service: Images, registry: Registry) -> None:
    images.push(registry.address, "exists", images.busybox(), "v1")
    for name in ("exists:v2", "exists@sha256:" + "0" * 64, "no/such/repository"):
        with pytest.raises(NotFoundError, match=f"{registry.address}.*404") as raised:
            await service.pull(f"{registry.address}/{name}")
        assert not str(raised.value).startswith("RegistryUnavailable")
    assert service.left() == []


async def test_a_registry_that_is_away_is_unavailable(service: Images) -> None:
    with pytest.raises(ImagePullError, match=r"^RegistryUnavailable: .*127\.0\.0\.1:1.*refused"):
        await service.pull("127.0.0.1:1/app")


@pytest.mark.parametrize("name", ["", "Not/Valid", "a:b:c"])
async def test_a_malformed_name_is_an_invalid_argument(service: Images, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await service.pull(name)


async def test_several_tags_are_one_image(service: Images, registry: Registry) -> None:
    pushed = images.busybox()
    for tag in ("1", "2", "3"):
        images.push(registry.address, "tags", pushed, tag)
        await service.pull(f"{registry.address}/tags:{tag}")
    (listed,) = await service.listed()
    assert list(listed.repo_tags) == [f"{registry.address}/tags:{tag}" for tag in "123"]
    assert len(listed.repo_digests) == 1
    assert await service.listed(f"{registry.address}/tags:2") == [listed]
    assert await service.listed(pushed.id) == [listed]
    assert await service.listed("other") == []


async def test_a_tag_that_has_moved_leaves_the_old_image_its_digest(
    service: Images, registry: Registry
) -> None:
    old = await service.pull_of(registry, "moving", images.busybox(env=["V=1"]))
    new = await service.pull_of(registry, "moving", images.busybox(env=["V=2"]))
    assert old.id != new.id
    listed = {image.id: list(image.repo_tags) for image in await service.listed()}
    assert listed == {old.id: [], new.id: [f"{registry.address}/moving:latest"]}


async def test_image_status_shows_the_image_or_nothing(service: Images, registry: Registry) -> None:
    pushed = images.busybox(images.files_layer({"a": "b"}), user="7")
    image = await service.pull_of(registry, "status", pushed)
    answer = await service.status(f"{registry.address}/status", verbose=True)
    assert answer.image.id == image.id
    assert answer.image.uid.value == 7
    info = json.loads(answer.info["info"])
    assert info["chainID"] == image.layers[-1]
    assert info["imageSpec"]["config"]["User"] == "7"
    assert dict((await service.status(image.id)).info) == {}
    for absent in ("absent", "sha256:" + "0" * 64, "Not/Valid"):
        assert not (await service.status(absent)).HasField("image")


async def test_removing_an_image_removes_everything(service: Images, registry: Registry) -> None:
    for number, by in enumerate(("tag", "digest", "id", "prefix")):
        pushed = images.busybox(images.files_layer({"n": str(number)}))
        image = await service.pull_of(registry, "remove", pushed)
        assert service.left() != []
        name = {
            "tag": f"{registry.address}/remove",
            "digest": image.repo_digests[0],
            "id": image.id,
            "prefix": image.id.removeprefix("sha256:")[:12],
        }[by]
        await service.remove(name)
        assert service.left() == []
        assert await service.listed() == []
        await service.remove(name)  # unknown by now, and no error


async def test_what_images_share_is_fetched_once_and_stays(
    service: Images, registry: Registry
) -> None:
    shared = images.files_layer({"shared": os.urandom(50_000)})
    names = []
    for number in range(3):
        own = images.files_layer({"own": f"{number}"})
        pushed = images.Image((shared, own), {"Env": [f"N={number}"]})
        images.push(registry.address, f"share{number}", pushed)
        names.append(f"{registry.address}/share{number}")
    pulled = await asyncio.gather(*(service.pull(name) for name in names * 3))
    assert len({image.id for image in pulled}) == 3
    assert gets_of(registry, images.digest(shared.blob)) == 1
    for image in pulled[:3]:
        base, _ = await service.layer_dirs(image)
        assert (base / "shared").stat().st_size == 50_000
    await service.remove(names[0])
    await service.remove(names[1])
    base, _ = await service.layer_dirs(pulled[2])
    assert (base / "shared").stat().st_size == 50_000
    await service.remove(names[2])
    assert service.left() == []


async def test_the_same_layer_twice_in_one_image_is_fetched_once(
    service: Images, registry: Registry
) -> None:
    layer = images.files_layer({"twice": os.urandom(200_000)})
    image = await service.pull_of(registry, "twice", images.Image((layer, layer)))
    assert len(await service.layer_dirs(image)) == 2
    assert gets_of(registry, images.digest(layer.blob)) == 1


async def test_a_pull_goes_on_while_somebody_waits(service: Images, registry: Registry) -> None:
    pushed = images.Image((images.files_layer({"big": os.urandom(5_000_000)}),))
    images.push(registry.address, "joined", pushed)
    name = f"{registry.address}/joined"
    first = asyncio.create_task(service.pull(name))
    second = asyncio.create_task(service.pull(name))
    await asyncio.sleep(0.005)
    first.cancel()
    assert (await second).id == pushed.id
    with pytest.raises(asyncio.CancelledError):
        await first
    assert gets_of(registry, images.digest(pushed.layers[0].blob)) == 1


async def test_an_image_survives_a_restart(service: Images, registry: Registry) -> None:
    image = await service.pull_of(registry, "restart", images.busybox())
    before = service.left()
    (service.root / "content/ingest/partial").write_bytes(b"x")
    (service.root / "layers/77/fs/etc").mkdir(parents=True)
    await service.close()
    service.open()
    await service.service.recover([])
    assert service.left() == before
    assert service.service.resolve(image.id) == image
    assert (await service.pull(f"{registry.address}/restart")) == image


async def test_the_filesystem_is_reported_before_there_is_an_image(
    service: Images, registry: Registry
) -> None:
    async def info() -> cri.ImageFsInfoResponse:
        return await service.service.image_fs_info(cri.ImageFsInfoRequest())

    empty = await info()
    (filesystem,) = empty.image_filesystems
    assert filesystem.fs_id.mountpoint == str(service.root)
    assert filesystem.timestamp > 0
    assert filesystem.used_bytes.value == 0
    assert len(empty.container_filesystems) == 1
    image = await service.pull_of(registry, "usage", images.busybox())
    rootfs = await service.service.prepare_rootfs(image, "c1")
    Path(rootfs.upperdir, "written").write_bytes(bytes(100_000))
    full = await info()
    assert full.image_filesystems[0].used_bytes.value > images.BUSYBOX.stat().st_size
    assert full.image_filesystems[0].inodes_used.value > 100
    assert full.container_filesystems[0].used_bytes.value >= 100_000
    assert full.container_filesystems[0].inodes_used.value == 1
    await service.service.remove_rootfs("c1")
    assert (await info()).container_filesystems[0].used_bytes.value == 0
