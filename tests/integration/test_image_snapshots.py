"""Root filesystems of containers, and reading users out of images that may be hostile."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from api.errors import InvalidArgumentError
from imageservice.snapshots import Usage
from runtimeshim.client import Rootfs
from runtimeshim.linux import mounts
from tests.integration import images
from tests.integration.image_fixtures import Images
from tests.integration.images import entry
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration


def mount(rootfs: Rootfs, target: Path) -> None:
    target.mkdir()
    lower = ":".join(rootfs.lowerdirs)
    data = f"lowerdir={lower},upperdir={rootfs.upperdir},workdir={rootfs.workdir}"
    mounts.mount("overlay", str(target), "overlay", 0, data)


async def test_a_container_writes_above_its_image(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    top = images.layer(entry("./", kind=tarfile.DIRTYPE, mode=0o751, uid=9), entry("etc/new", b"n"))
    image = await service.pull_of(registry, "rootfs", images.busybox(top))
    rootfs = await service.service.prepare_rootfs(image, "c1")
    assert len(rootfs.lowerdirs) == 2
    assert Path(rootfs.lowerdirs[0], "etc/new").read_bytes() == b"n"  # the top comes first
    upper = os.stat(rootfs.upperdir)
    assert (stat.S_IMODE(upper.st_mode), upper.st_uid) == (0o751, 9)
    mount(rootfs, tmp_path / "merged")
    try:
        assert stat.S_IMODE((tmp_path / "merged").stat().st_mode) == 0o751
        (tmp_path / "merged/etc/passwd").unlink()
        (tmp_path / "merged/written").write_bytes(bytes(5000))
    finally:
        mounts.umount(str(tmp_path / "merged"))
    usage = await service.service.writable_usage("c1")
    assert usage.used_bytes >= 5000
    assert usage.inodes == 3  # etc, its whiteout, the file
    await service.service.remove_rootfs("c1")
    await service.service.remove_rootfs("c1")
    await service.service.settle()
    assert not any((service.root / "containers").iterdir())
    for lower in rootfs.lowerdirs:
        assert not Path(lower, "written").exists()


async def test_a_retry_begins_with_an_empty_layer(service: Images, registry: Registry) -> None:
    image = await service.pull_of(registry, "retry", images.busybox())
    first = await service.service.prepare_rootfs(image, "c1")
    Path(first.upperdir, "left").touch()
    second = await service.service.prepare_rootfs(image, "c1")
    assert second == first
    assert list(Path(second.upperdir).iterdir()) == []


async def test_a_containers_layers_outlive_its_image(service: Images, registry: Registry) -> None:
    image = await service.pull_of(registry, "outlive", images.busybox())
    rootfs = await service.service.prepare_rootfs(image, "c1")
    await service.remove(image.id)
    assert await service.listed() == []
    assert Path(rootfs.lowerdirs[0], "bin/busybox").exists()
    again = await service.pull(f"{registry.address}/outlive")
    assert (await service.service.prepare_rootfs(again, "c2")).lowerdirs == rootfs.lowerdirs
    await service.service.remove_rootfs("c1")
    await service.remove(again.id)
    assert Path(rootfs.lowerdirs[0], "bin/busybox").exists()
    await service.service.remove_rootfs("c2")
    await service.service.settle()
    assert service.left() == []


async def test_recovery_removes_what_belongs_to_nobody(service: Images, registry: Registry) -> None:
    image = await service.pull_of(registry, "recover", images.busybox())
    for name in ("kept", "lost", "half"):
        await service.service.prepare_rootfs(image, name)
    (service.root / "containers/half").rename(service.root / "containers/.removed-0123")
    (service.root / "containers/stray/upper").mkdir(parents=True)
    await service.remove(image.id)
    await service.close()
    service.open()
    # What recovery itself undoes may still be on its way when the sweep finds it.
    undone = service.root / "containers/undone/upper"
    undone.mkdir(parents=True)
    for number in range(2000):
        (undone / str(number)).touch()
    await service.service.remove_rootfs("undone")
    await service.service.recover(["kept"])
    await service.service.settle()
    assert [path.name for path in (service.root / "containers").iterdir()] == ["kept"]
    await service.service.remove_rootfs("kept")
    await service.service.settle()
    assert service.left() == []


async def test_a_removed_writable_layer_is_out_of_the_way_at_once_and_deleted_later(
    service: Images, registry: Registry
) -> None:
    image = await service.pull_of(registry, "later", images.busybox())
    containers = service.root / "containers"
    for name in ("c1", "c2"):
        rootfs = await service.service.prepare_rootfs(image, name)
        Path(rootfs.upperdir, "written").write_text("much")
        await service.service.remove_rootfs(name)
        assert not (containers / name).exists()
    assert all(path.name.startswith(".removed-") for path in containers.iterdir())
    await service.service.settle()
    assert list(containers.iterdir()) == []
    await service.remove(image.id)
    assert service.left() == []


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".removed-1", "a\n"])
async def test_what_is_no_container_id_is_refused(
    service: Images, registry: Registry, name: str
) -> None:
    image = await service.pull_of(registry, "ids", images.busybox())
    with pytest.raises(InvalidArgumentError):
        await service.service.prepare_rootfs(image, name)
    with pytest.raises(InvalidArgumentError):
        await service.service.remove_rootfs(name)


# -- users ------------------------------------------------------------------------------------


async def test_the_users_are_those_of_the_merged_image(service: Images, registry: Registry) -> None:
    plain = await service.pull_of(registry, "users", images.busybox())
    database = await service.service.user_database(plain)
    assert (database.passwd, database.group) == (images.PASSWD, images.GROUP)
    upper = images.layer(entry("etc/.wh.group"), entry("etc/passwd", b"me:x:5:6::/:/bin/sh\n"))
    layered = await service.pull_of(registry, "users", images.busybox(upper))
    database = await service.service.user_database(layered)
    assert (database.passwd, database.group) == (b"me:x:5:6::/:/bin/sh\n", b"")
    assert await service.service.user_database(layered) is database


async def test_an_image_without_users_has_none(service: Images, registry: Registry) -> None:
    scratch = await service.pull_of(registry, "nousers", images.Image(()))
    database = await service.service.user_database(scratch)
    assert (database.passwd, database.group) == (b"", b"")


def fifo() -> images.Layer:
    return images.layer(entry("etc/passwd", kind=tarfile.FIFOTYPE))


def char_device() -> images.Layer:
    info, content = entry("etc/passwd", kind=tarfile.CHRTYPE)
    info.devmajor, info.devminor = 1, 5  # /dev/zero: endless
    return images.layer((info, content))


HOSTILE = {
    "a link to the host": lambda: images.layer(images.symlink("etc/passwd", "/etc/shadow")),
    "a link up": lambda: images.layer(images.symlink("etc/passwd", "../../../../etc/shadow")),
    "a magic link": lambda: images.layer(images.symlink("etc/passwd", "/proc/self/exe")),
    "a loop": lambda: images.layer(images.symlink("etc/passwd", "passwd")),
    "etc as a link": lambda: images.layer(images.symlink("etc", "/etc")),
    "etc as a file": lambda: images.files_layer({"etc": "x"}),
    "a FIFO": fifo,
    "a device": char_device,
    "a directory": lambda: images.layer(images.directory("etc/passwd")),
    "a huge file": lambda: images.files_layer({"etc/passwd": b"x" * ((1 << 20) + 1)}),
}


@pytest.mark.parametrize("layers", [1, 2], ids=["one layer", "merged"])
@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_users_are_none(
    service: Images, registry: Registry, layers: int, make: object
) -> None:
    assert callable(make)
    below = [images.files_layer({"below": "x"})] * (layers - 1)
    image = await service.pull_of(registry, "hostile-users", images.Image((*below, make())))
    assert (await service.service.user_database(image)).passwd == b""


async def test_a_link_inside_the_image_is_followed(service: Images, registry: Registry) -> None:
    layer = images.layer(
        images.symlink("etc/passwd", "/usr/lib/passwd"), entry("usr/lib/passwd", b"inside")
    )
    image = await service.pull_of(registry, "inside", images.Image((layer,)))
    assert (await service.service.user_database(image)).passwd == b"inside"


async def test_an_image_of_many_layers_is_usable(service: Images, registry: Registry) -> None:
    layers = [images.files_layer({f"etc/{number}": "x"}) for number in range(127)]
    last = images.files_layer({"etc/passwd": "last"})
    image = await service.pull_of(registry, "many", images.Image((*layers, last)))
    assert len(image.layers) == 128
    assert (await service.service.user_database(image)).passwd == b"last"
    await service.remove(image.id)
    assert service.left() == []


# -- usage ------------------------------------------------------------------------------------


async def test_the_usage_of_all_containers_is_summed_up_and_kept(
    service: Images, registry: Registry
) -> None:
    image = await service.pull_of(registry, "usage", images.busybox())
    roots = [await service.service.prepare_rootfs(image, f"c{n}") for n in range(3)]
    for number, rootfs in enumerate(roots):
        (Path(rootfs.upperdir) / "file").write_bytes(bytes(10_000 * (number + 1)))
    total = await service.service._snapshots.total_usage()
    usages = [await service.service.writable_usage(f"c{n}") for n in range(3)]
    assert total == (sum(u.used_bytes for u in usages), 3)
    assert [u.used_bytes for u in usages] == [12288, 20480, 32768]
    (Path(roots[0].upperdir) / "more").touch()
    assert await service.service.writable_usage("c0") == usages[0]  # of the last 10 s
    await service.service.remove_rootfs("c0")
    assert (await service.service._snapshots.total_usage())[1] == 2
    assert (await service.service.writable_usage("c0")).inodes == 0


def test_a_figure_that_took_long_is_kept_for_long() -> None:
    quick, slow = Usage(1, 1, 0, duration=1), Usage(1, 1, 0, duration=10**10)
    assert not quick.is_stale(9 * 10**9)
    assert quick.is_stale(11 * 10**9)
    assert not slow.is_stale(190 * 10**9)
    assert slow.is_stale(210 * 10**9)
    assert quick.is_stale(-1)  # the clock was set back
