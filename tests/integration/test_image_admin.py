"""Export, garbage collection, pins, inspection and mounts of images, against the real store."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from aiohttp import web

from api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imageservice.objects import Image
from imageservice.settings import ImageSettings
from tests.integration import images
from tests.integration.image_fixtures import Images, running_images, tree
from tests.integration.odd_registry import odd_registry
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration


def command(*words: str | Path) -> bytes:
    return subprocess.run(words, check=True, capture_output=True).stdout


async def export(service: Images, path: Path, *names: str) -> None:
    with path.open("wb") as file:
        async for piece in service.service.admin.export(names):
            assert piece
            file.write(piece)


# -- export -----------------------------------------------------------------------------------


async def test_an_export_comes_back_as_the_same_images(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    layers = [
        images.files_layer({f"f{n}": "x" * n}, kind) for n, kind in enumerate(("zstd", "none"))
    ]
    one = await service.pull_of(registry, "one", images.busybox(*layers))
    two = await service.pull_of(registry, "two", images.busybox(types=images.DOCKER))
    trees = [tree(layer) for layer in await service.layer_dirs(one)]
    names = [f"{registry.address}/{name}:latest" for name in ("one", "two")]
    await export(service, tmp_path / "both.tar", *names)
    for image in (one, two):
        await service.remove(image.id)
    assert service.left() == []
    assert await service.service.import_archive(tmp_path / "both.tar") == names
    assert [service.service.resolve(name).id for name in names] == [one.id, two.id]
    assert service.service.resolve(one.id).repo_digests == ()  # of a registry, only a pull knows
    found = [tree(layer) for layer in await service.layer_dirs(service.service.resolve(one.id))]
    assert [strip(each) for each in found] == [strip(each) for each in trees]


def strip(found: dict[str, tuple[object, ...]]) -> dict[str, object]:
    return {path: (*values[:5], *values[6:]) for path, values in found.items()}


async def test_others_read_an_export(service: Images, registry: Registry, tmp_path: Path) -> None:
    image = await service.pull_of(registry, "read", images.busybox())
    archive = tmp_path / "out.tar"
    await export(service, archive, image.id)
    name = f"{registry.address}/read:latest"
    for source in (f"oci-archive:{archive}:{name}", f"docker-archive:{archive}:{name}"):
        assert json.loads(command("skopeo", "inspect", "--config", source))["rootfs"][
            "diff_ids"
        ] == [layer.diff_id for layer in images.busybox().layers]
    copied = tmp_path / "copied"
    command("skopeo", "copy", f"oci-archive:{archive}:{name}", f"dir:{copied}")
    with tarfile.open(archive) as tar:
        assert len(tar.getnames()) == len(set(tar.getnames()))


async def test_an_export_of_what_is_not_whole_is_refused(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    image = await service.pull_of(registry, "part", images.busybox())
    digest = images.digest(images.busybox_layer().blob)
    blob = service.root / "content/blobs/sha256" / digest.removeprefix("sha256:")
    blob.unlink()
    with pytest.raises(FailedPreconditionError, match="pull it again"):
        await export(service, tmp_path / "out.tar", image.id)
    with pytest.raises(NotFoundError):
        await export(service, tmp_path / "out.tar", "example.com/none:1")


# -- collection and pins ----------------------------------------------------------------------


async def used(service: Images, registry: Registry) -> Image:
    image = await service.pull_of(registry, "used", images.busybox(images.files_layer({"u": "1"})))
    await service.service.prepare_rootfs(image, "c1")
    return image


async def test_what_is_used_or_pinned_is_never_collected(
    registry: Registry, tmp_path: Path
) -> None:
    settings = ImageSettings(pinned_images=(f"{registry.address}/pinned", "*volum*"))
    async with running_images(tmp_path, settings) as service:
        running = await used(service, registry)
        pinned = await service.pull_of(registry, "pinned", images.busybox())
        unused = await service.pull_of(
            registry, "unused", images.busybox(images.files_layer({"x": "2"}))
        )
        assert [(i.id, i.pinned) for i in await service.listed(pinned.id)] == [(pinned.id, True)]
        assert not (await service.status(running.id)).image.pinned
        kept = await service.service.admin.collect(unused=False)
        assert (kept.images, kept.layers) == ((), 0)
        collected = await service.service.admin.collect(unused=True)
        assert collected.images == (f"{registry.address}/unused:latest",)
        assert (collected.layers, collected.freed_bytes > 0) == (1, True)
        assert {i.id for i in await service.listed()} == {running.id, pinned.id}
        await service.service.remove_rootfs("c1")
        assert (await service.service.admin.collect(unused=True)).layers == 1
        assert unused.id != running.id
        await service.remove(pinned.id)  # whoever names it means it
        assert service.left() == []


async def test_what_a_broken_pull_left_is_collected(service: Images, registry: Registry) -> None:
    image = await service.pull_of(registry, "broken", images.busybox())
    top = image.layers[-1]
    with service.database:
        for table in ("images", "image_names", "image_blobs"):
            service.database.execute(f"DELETE FROM {table}")
    await service.close()
    service.open()
    await service.service.recover([])
    assert service.service._store.layer(top) is not None  # for a day
    assert (await service.service.admin.collect(unused=False)).layers == 1
    assert service.left() == []


async def test_what_a_pull_in_progress_has_made_is_not_collected(service: Images) -> None:
    first = images.files_layer({"one": os.urandom(10_000)})
    second = images.files_layer({"two": os.urandom(10_000)})
    released = asyncio.Event()
    async with odd_registry() as odd:

        async def hold(request: web.Request) -> web.StreamResponse:
            await released.wait()
            return await odd.serve(request)

        odd.hooks[images.digest(second.blob)] = hold
        image = images.Image((first, second))
        pull = asyncio.create_task(service.pull(odd.add("app", image)))
        async with asyncio.timeout(30):
            while "layers: 1" not in service.left():  # noqa: ASYNC110 - the database does not signal
                await asyncio.sleep(0.01)
        collected = await service.service.admin.collect(unused=True)
        assert (collected.layers, collected.blobs) == (0, 0)
        released.set()
        assert (await pull).id == image.id
        assert sum(images.digest(first.blob) in path for path in odd.paths()) == 1


# -- inspection -------------------------------------------------------------------------------


async def test_inspection_tells_everything(service: Images, registry: Registry) -> None:
    image = await used(service, registry)
    found = service.service.admin.inspect(f"{registry.address}/used")
    assert found["id"] == image.id
    assert found["usedBy"] == ["c1"]
    assert [layer["chainID"] for layer in found["layers"]] == list(image.layers)
    assert all(Path(layer["directory"]).is_dir() for layer in found["layers"])
    assert {blob["digest"] for blob in found["blobs"]} >= {image.id}
    assert found["config"]["config"]["Cmd"] == ["/bin/sh"]
    json.dumps(found)
    with pytest.raises(NotFoundError):
        service.service.admin.inspect("example.com/none:1")


# -- mounts -----------------------------------------------------------------------------------


async def test_a_mounted_image_is_read_only_and_stays(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    image = await service.pull_of(registry, "mounted", images.busybox())
    target = tmp_path / "a b"  # mountinfo escapes it
    target.mkdir()
    await service.service.admin.mount(image.id, target)
    try:
        assert (target / "etc/passwd").read_bytes() == images.PASSWD
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        with pytest.raises(FailedPreconditionError, match="unmount that first"):
            await service.service.admin.mount(image.id, target)
        await service.remove(image.id)
        assert (target / "bin/busybox").exists()
        await service.close()
        service.open()
        await service.service.recover([])  # it is still mounted
        assert (target / "bin/busybox").exists()
    finally:
        await service.service.admin.unmount(target)
    assert not list(target.iterdir())
    assert service.left() == []
    with pytest.raises(FailedPreconditionError, match="no image"):
        await service.service.admin.unmount(target)


async def test_a_mount_that_fails_holds_nothing(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    image = await service.pull_of(registry, "unmounted", images.busybox())
    with pytest.raises(InvalidArgumentError):
        await service.service.admin.mount(image.id, tmp_path / "absent")
    await service.remove(image.id)
    assert service.left() == []


async def test_a_mount_that_a_reboot_has_undone_is_forgotten(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    image = await service.pull_of(registry, "rebooted", images.busybox())
    await service.service.admin.mount(image.id, tmp_path)
    command("umount", tmp_path)
    await service.remove(image.id)
    await service.close()
    service.open()
    await service.service.recover([])
    assert service.left() == []


# -- views ------------------------------------------------------------------------------------


def stack() -> tuple[images.Layer, ...]:
    return (
        images.layer(
            images.entry("data/low", b"low"),
            images.entry("data/both", b"below"),
            images.entry("data/gone", b"x"),
            images.entry("hidden/low", b"x"),
            images.symlink("link", "data"),
            images.symlink("out", "/etc"),
            images.entry("etc/inside", b"i"),
        ),
        images.layer(images.entry("other", b"o")),
        images.layer(
            images.entry("data/both", b"above"),
            images.entry("data/.wh.gone"),
            images.entry("hidden/.wh..wh..opq"),
            images.entry("hidden/high", b"h"),
        ),
    )


@pytest.mark.parametrize(
    ("sub_path", "expected"),
    [
        ("data", {"low": b"low", "both": b"above"}),
        ("/data/", {"low": b"low", "both": b"above"}),
        ("link", {"low": b"low", "both": b"above"}),
        ("data/../data/.", {"low": b"low", "both": b"above"}),
        ("hidden", {"high": b"h"}),
        ("out", {"inside": b"i"}),
        ("../../etc", {"inside": b"i"}),
    ],
)
async def test_a_view_of_a_directory(
    service: Images,
    registry: Registry,
    tmp_path: Path,
    sub_path: str,
    expected: dict[str, bytes],
) -> None:
    image = await service.pull_of(registry, "view", images.Image(stack()))
    await service.service.prepare_rootfs(image, "c1")
    lowerdirs = await service.service.image_volume(image, "c1", sub_path)
    data = "lowerdir=" + ":".join(lowerdirs)
    command("mount", "-t", "overlay", "-o", data, "none", tmp_path)
    try:
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == expected
    finally:
        command("umount", tmp_path)
    await service.remove(image.id)
    assert all(Path(lower).is_dir() for lower in lowerdirs)
    await service.service.remove_rootfs("c1")
    await service.service.settle()
    assert service.left() == []


@pytest.mark.parametrize("sub_path", ["absent", "data/low", "data/gone", "loop", "a\0b", "x" * 300])
async def test_a_view_of_what_is_no_directory_is_refused(
    service: Images, registry: Registry, sub_path: str
) -> None:
    loop = images.layer(images.symlink("loop", "loop"))
    image = await service.pull_of(registry, "noview", images.Image((*stack(), loop)))
    with pytest.raises(InvalidArgumentError):
        await service.service.image_volume(image, "c1", sub_path)


async def test_a_view_outlives_its_image_and_goes_with_its_container(
    service: Images, registry: Registry
) -> None:
    root = await service.pull_of(registry, "root", images.busybox())
    volume = await service.pull_of(registry, "volume", images.Image(stack()))
    await service.service.prepare_rootfs(root, "c1")
    lowerdirs = await service.service.image_volume(volume, "c1")
    for image in (root, volume):
        await service.remove(image.id)
    await service.close()
    service.open()
    await service.service.recover(["c1"])
    assert all(os.path.isdir(lower) for lower in lowerdirs)
    await service.close()
    service.open()
    await service.service.recover([])
    await service.service.settle()
    assert service.left() == []
