"""Damage is found, named, counts as missing, and a pull repairs it."""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from api.errors import InternalError
from imageservice.objects import Image
from imageservice.verify import Finding
from tests.integration import images
from tests.integration.image_fixtures import Images, tree
from tests.integration.images import entry
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration


async def findings(service: Images, *names: str) -> list[Finding]:
    return [found async for found in service.service.admin.verify(names)]


async def damaged(service: Images, *names: str) -> list[Finding]:
    return [found for found in await findings(service, *names) if found.damages]


def everything() -> images.Layer:
    """A layer with an entry of each kind, and with entries that replace others."""
    device, _ = entry("dev/null", kind=tarfile.CHRTYPE, mode=0o666)
    device.devmajor, device.devminor = 1, 3
    return images.layer(
        entry("./", kind=tarfile.DIRTYPE, mode=0o755),
        images.directory("etc"),
        entry("etc/file", b"text", mode=0o4711, uid=70_000, gid=5),
        entry("etc/linked", b"", kind=tarfile.LNKTYPE, target="etc/file"),
        images.symlink("etc/link", "file"),
        entry("etc/fifo", kind=tarfile.FIFOTYPE, mode=0o600),
        (device, b""),
        entry("opt/tagged", b"t", xattrs={"user.tag": "v"}),
        entry("gone/.wh.one"),
        entry("gone/opaque/.wh..wh..opq"),
        entry("gone/opaque/kept", b"k"),
        entry("twice", b"first"),
        entry("twice", b"second"),
        images.directory("was/a/directory"),
        entry("was/a/directory/file", b"x"),
        entry("was/a", b"now a file"),
        entry("empty", b""),
    )


async def timeless(service: Images, image: Image) -> list[object]:
    """The layers' trees, without times that are of the unpacking: directories and whiteouts."""
    return [
        {
            path: found
            if found[0] not in (stat.S_IFDIR, stat.S_IFCHR)
            else (*found[:5], *found[6:])
            for path, found in tree(layer).items()
        }
        for layer in await service.layer_dirs(image)
    ]


async def pulled(service: Images, registry: Registry) -> Image:
    return await service.pull_of(registry, "damage", images.busybox(everything()))


async def test_what_is_whole_is_verified_clean(service: Images, registry: Registry) -> None:
    for compression in ("gzip", "zstd", "none"):
        layer = images.Layer(everything().tar + bytes(512), compression)
        await service.pull_of(registry, f"whole-{compression}", images.busybox(layer))
    found = await findings(service)
    assert [each for each in found if each.damages or each.note] == []
    assert len([each for each in found if each.kind == "layer"]) == 2  # the tars are the same
    assert all(each.images for each in found)


def overwrite(path: Path) -> None:
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def retarget(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another byte": (lambda top: overwrite(top / "etc/file"), "content is another"),
    "truncated": (lambda top: os.truncate(top / "etc/file", 0), "modified|bytes"),
    "mode": (lambda top: (top / "etc/file").chmod(0o711), "mode"),
    "owner": (lambda top: os.chown(top / "etc/file", 0, 0), "owner"),
    "time": (lambda top: os.utime(top / "etc/file", (1, 1)), "another time"),
    "missing": (lambda top: (top / "etc/link").unlink(), "missing"),
    "link": (lambda top: retarget(top / "etc/link"), "elsewhere|time"),
    "hard link": (lambda top: (top / "etc/linked").unlink(), "missing"),
    "xattr": (lambda top: os.removexattr(top / "opt/tagged", "user.tag"), "attributes"),
    "more xattrs": (lambda top: os.setxattr(top / "empty", "user.x", b"y"), "attributes"),
    "whiteout": (lambda top: (top / "gone/one").unlink(), "whiteout"),
    "opaque": (
        lambda top: os.removexattr(top / "gone/opaque", "trusted.overlay.opaque"),
        "not opaque",
    ),
    "kind": (lambda top: ((top / "etc/fifo").unlink(), (top / "etc/fifo").mkdir()), "kind"),
    "more": (lambda top: (top / "etc/added").touch(), "not in the layer's archive"),
    "all of it": (shutil.rmtree, "directory is missing"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_layer_is_named_and_a_pull_repairs_it(
    service: Images, registry: Registry, damage: Callable[[Path], object], reason: str
) -> None:
    image = await pulled(service, registry)
    before = await timeless(service, image)
    top = (await service.layer_dirs(image))[-1]
    damage(top)
    (found,) = await damaged(service)
    assert (found.kind, found.name) == ("layer", image.layers[-1])
    assert found.images == (f"{registry.address}/damage:latest",)
    assert any(re.search(reason, line) for line in found.damages), found.damages
    assert (await service.status(image.id)).image.id == ""  # so the kubelet pulls it again
    with pytest.raises(InternalError, match="pull its image again"):
        await service.service.prepare_rootfs(image, "c1")
    await service.pull(f"{registry.address}/damage")
    assert (await service.status(image.id)).image.id == image.id
    assert await damaged(service) == []
    assert await timeless(service, image) == before
    await service.remove(image.id)
    assert service.left() == []


async def test_damage_is_remembered_over_a_restart(service: Images, registry: Registry) -> None:
    image = await pulled(service, registry)
    overwrite((await service.layer_dirs(image))[-1] / "etc/file")
    assert await damaged(service)
    await service.close()
    service.open()
    await service.service.recover([])
    assert (await service.status(image.id)).image.id == ""
    await service.pull(f"{registry.address}/damage")
    assert await damaged(service) == []


async def test_a_damaged_layer_below_a_container_stays_for_it(
    service: Images, registry: Registry
) -> None:
    image = await pulled(service, registry)
    old = await service.service.prepare_rootfs(image, "old")
    (Path(old.lowerdirs[0]) / "etc/added").touch()
    assert await damaged(service)
    await service.pull(f"{registry.address}/damage")
    new = await service.service.prepare_rootfs(image, "new")
    assert new.lowerdirs[0] != old.lowerdirs[0]
    assert new.lowerdirs[1:] == old.lowerdirs[1:]
    await service.close()
    service.open()
    await service.service.recover(["old", "new"])
    assert Path(old.lowerdirs[0], "etc/added").exists()
    for container in ("old", "new"):
        await service.service.remove_rootfs(container)
    assert not Path(old.lowerdirs[0]).exists()
    await service.remove(image.id)
    assert service.left() == []


@pytest.mark.parametrize("how", ["byte", "truncated", "missing"])
async def test_a_damaged_blob_is_named_and_a_pull_repairs_it(
    service: Images, registry: Registry, how: str
) -> None:
    image = await pulled(service, registry)
    blobs = sorted((service.root / "content/blobs/sha256").iterdir())
    for path in blobs:
        if how == "byte":
            overwrite(path)
        elif how == "truncated":
            os.truncate(path, 1)
        else:
            path.unlink()
    found = await damaged(service)
    assert sorted(each.name for each in found) == [f"sha256:{path.name}" for path in blobs]
    assert len(await damaged(service)) == len(blobs)  # missing, until they are there again
    assert (await service.status(image.id)).image.id == image.id  # it can be run all the same
    await service.pull(f"{registry.address}/damage")
    assert await damaged(service) == []
    assert sorted((service.root / "content/blobs/sha256").iterdir()) == blobs


async def test_a_store_after_a_power_loss_starts_and_is_repaired(
    service: Images, registry: Registry
) -> None:
    """What a disk that lied about its syncs may leave: files empty, cut short or not there."""
    source = random.Random(4)
    image = await pulled(service, registry)
    name = f"{registry.address}/damage"
    for _ in range(8):
        files = [p for p in service.root.rglob("*") if p.is_file() and not p.is_symlink()]
        victims = [path for path in files if "criserver.db" not in path.name]
        await service.close()
        for path in source.sample(victims, 6):
            if source.random() < 0.5:
                path.unlink()
            else:
                os.truncate(path, 0)
        if source.random() < 0.3:
            layers = [p for p in (service.root / "layers").iterdir() if p.name != "empty"]
            shutil.rmtree(source.choice(layers))
        (service.root / "content/ingest/left").write_bytes(b"half")
        service.open()
        await service.service.recover([])
        await findings(service)
        assert (await service.pull(name)).id == image.id
        assert await damaged(service) == []
        assert await findings(service, name)
    await service.remove(image.id)
    assert service.left() == []


async def test_the_newest_layers_are_verified_after_a_crash(
    service: Images, registry: Registry
) -> None:
    image = await pulled(service, registry)
    overwrite((await service.layer_dirs(image))[-1] / "etc/file")
    await service.close()
    service.open()
    await service.service.recover([])
    assert (await service.status(image.id)).image.id == image.id  # nobody has looked yet
    service.service.admin.check_after_crash()
    check = service.service.admin._check
    assert check is not None
    await check
    assert (await service.status(image.id)).image.id == ""
