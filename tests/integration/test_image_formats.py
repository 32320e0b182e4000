"""Images of umoci and skopeo in each format and compression: our trees are as umoci's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imageservice.objects import Image
from runtimeshim.linux import mounts
from tests.integration import images
from tests.integration.image_fixtures import Images, tree
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

CAPABILITY = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # cap_net_bind_service+ep
LARGEST_ID = 4294967294  # (uid_t) -1 means none


def command(*words: str | Path) -> bytes:
    result = subprocess.run(words, check=False, capture_output=True)
    assert result.returncode == 0, (words, result.stderr.decode())
    return result.stdout


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with one image `latest` of five layers, and umoci's own view of it beside."""
    home = tmp_path_factory.mktemp("formats")
    layout, image = home / "layout", f"{home}/layout:latest"
    command("umoci", "init", "--layout", layout)
    command("umoci", "new", "--image", image)
    for change in (everything, changed):
        bundle = home / change.__name__
        command("umoci", "unpack", "--image", image, bundle)
        change(bundle / "rootfs")
        command("umoci", "repack", "--image", image, bundle)
        shutil.rmtree(bundle)
    for form in ("gnu", "posix"):
        archive = odd_archive(home / form, form)
        command("umoci", "raw", "add-layer", "--image", image, archive)
    command("umoci", "insert", "--image", image, "--whiteout", "/removed")
    command("umoci", "unpack", "--image", image, home / "bundle")
    return layout


def everything(root: Path) -> None:
    """What a filesystem can hold."""
    for name in ("etc", "opt/deep/er", "data", "removed", "emptied", "replaced"):
        (root / name).mkdir(parents=True)
    for name in ("data/kept", "data/gone", "removed/x", "emptied/x", "replaced/x"):
        (root / name).write_text(name)
    (root / "etc/setuid").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "etc/setuid", 10, 20)
    (root / "etc/setuid").chmod(0o6755)
    os.link(root / "etc/setuid", root / "opt/hard")
    (root / "opt/soft").symlink_to("../etc/setuid")
    os.chown(root / "opt/soft", 7, 8, follow_symlinks=False)
    (root / "opt/nowhere").symlink_to("/does/not/exist")
    os.mkfifo(root / "opt/fifo", 0o640)
    os.mknod(root / "opt/null", 0o20666, os.makedev(1, 3))
    os.mknod(root / "opt/disk", 0o60600, os.makedev(259, 1_000_000 % 256))
    (root / "opt/capable").write_bytes(b"\x7fELF")
    os.setxattr(root / "opt/capable", "security.capability", CAPABILITY)
    os.setxattr(root / "data/kept", "user.note", b"\0binary\xff")
    os.setxattr(root / "opt/deep", "user.on-a-directory", b"1")
    (root / ("opt/" + "n" * 255)).write_bytes(b"long name")
    (root / "/".join(["opt", *["d" * 200] * 3])).mkdir(parents=True)
    (root / "opt/link-to-long").symlink_to("t" * 300)
    (root / "opt/\u00fcmlaut \u4e2d").write_text("unicode")
    os.fsencode(root)
    with open(os.fsencode(root) + b"/opt/latin-\xff", "wb"):
        pass
    (root / "opt/huge-ids").write_text("")
    os.chown(root / "opt/huge-ids", LARGEST_ID, 2_000_000_000)
    (root / "data/sticky").mkdir()
    (root / "data/sticky").chmod(0o1777)
    (root / "data/setgid").mkdir()
    (root / "data/setgid").chmod(0o2750)
    os.utime(root / "data/kept", ns=(1_000_000_007_123_456_789, 1_000_000_007_123_456_789))
    os.utime(root / "data", ns=(5_000_000_000, 5_000_000_000))
    (root / "empty").touch()


def changed(root: Path) -> None:
    """A second layer: changes, whiteouts, and other kinds in the place of what was there."""
    (root / "data/gone").unlink()
    (root / "data/kept").chmod(0o400)
    (root / "emptied/x").unlink()
    shutil.rmtree(root / "replaced")
    (root / "replaced").symlink_to("data")
    (root / "opt/soft").unlink()
    (root / "opt/soft").mkdir()
    (root / "opt/soft/now-a-directory").write_text("x")
    (root / "etc/added").write_text("added")
    os.chown(root / "opt/deep/er", 33, 34)


def odd_archive(home: Path, form: str) -> Path:
    """What GNU tar writes and umoci does not: sparse files, and long names in its own format.

    Its own format of sparse files umoci cannot read; tests/unit/test_image_tar.py has that.
    """
    source = home / "source" / form
    source.mkdir(parents=True)
    with (source / "sparse").open("wb") as file:
        for offset in (1 << 20, 5 << 20, 9 << 20):
            file.seek(offset)
            file.write(os.urandom(5000))
        file.truncate(20 << 20)
    with (source / "hole").open("wb") as file:
        file.truncate(3 << 20)
    (source / ("f" * 180)).write_text("long")
    (source / "l").symlink_to("t" * 250)
    os.setxattr(source / "hole", "user.tag", b"on a hole")
    archive = home / "odd.tar"
    more = ["--sparse", "--xattrs", "--xattrs-include=*"] if form == "posix" else []
    words = [f"--format={form}", *more, "-C", home / "source", "-cf", archive, form]
    command("tar", *words)
    return archive


# -- what becomes of it -----------------------------------------------------------------------


def uncompressed(layout: Path, directory: Path) -> Path:
    """The layout with its layers as they are unpacked: skopeo compresses no layer twice."""
    plain = directory / "plain"
    command(
        *("skopeo", "copy", "--dest-decompress", f"oci:{layout}:latest", f"dir:{directory / 'dir'}")
    )
    command(
        *("skopeo", "copy", "--dest-oci-accept-uncompressed-layers"),
        *(f"dir:{directory / 'dir'}", f"oci:{plain}:latest"),
    )
    return plain


async def push(
    service: Images, registry: Registry, plain: Path, compression: str, form: str
) -> Image:
    name = f"{registry.address}/formats-{form}-{compression}:latest"
    command(
        *("skopeo", "copy", "--dest-tls-verify=false", "--format", form),
        *("--dest-compress-format", compression, f"oci:{plain}:latest", f"docker://{name}"),
    )
    return await service.pull(name)


async def push_plain(service: Images, registry: Registry, plain: Path) -> Image:
    """Uncompressed layers, which skopeo pushes to no registry: pushed as it wrote them."""
    index = json.loads((plain / "index.json").read_bytes())
    blobs = plain / "blobs/sha256"
    body = (blobs / index["manifests"][0]["digest"][7:]).read_bytes()
    manifest = json.loads(body)
    assert {layer["mediaType"] for layer in manifest["layers"]} == {images.OCI.layers["none"]}
    for blob in (manifest["config"], *manifest["layers"]):
        data = (blobs / blob["digest"][7:]).read_bytes()
        images.push_blob(registry.address, "formats-plain", data)
    address = registry.address
    images.push_manifest(address, "formats-plain", body, images.OCI.manifest, "latest")
    return await service.pull(f"{address}/formats-plain")


async def archive(service: Images, layout: Path, directory: Path, kind: str) -> Image:
    path = directory / "archive.tar"
    command("skopeo", "copy", f"oci:{layout}:latest", f"{kind}:{path}:example.com/formats:1")
    assert await service.service.import_archive(path) == ["example.com/formats:1"]
    return service.service.resolve("example.com/formats:1")


WAYS = ["oci gzip", "oci zstd", "oci none", "v2s2 gzip", "oci-archive", "docker-archive"]


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One of this test alone: skopeo takes a layer that it knows there in whatever compression."""
    running = Registry(tmp_path_factory.mktemp("registry"))
    yield running
    running.stop()


@pytest.mark.parametrize("way", WAYS)
async def test_the_tree_is_umocis(
    service: Images, registry: Registry, layout: Path, tmp_path: Path, way: str
) -> None:
    form, _, compression = way.partition(" ")
    if not compression:
        image = await archive(service, layout, tmp_path, form)
    elif compression == "none":
        image = await push_plain(service, registry, uncompressed(layout, tmp_path))
    else:
        plain = uncompressed(layout, tmp_path)
        image = await push(service, registry, plain, compression, form)
        assert magic(service, image) == {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5"}[compression]
    assert len(image.layers) == 5
    with merged(await service.layer_dirs(image), tmp_path / "merged") as ours:
        found, expected = tree(ours), tree(layout.parent / "bundle/rootfs")
        assert sorted(found) == sorted(expected)
        differing = {p: (found[p], expected[p]) for p in found if found[p] != expected[p]}
        assert {p: difference(*pair) for p, pair in differing.items()} == {}
        assert (ours / "posix/sparse").stat().st_blocks * 512 < 1 << 20
    findings = [each async for each in service.service.admin.verify((image.id,))]
    assert [each for each in findings if each.damages or each.note] == []


def magic(service: Images, image: Image) -> bytes:
    """The first bytes of the base layer's blob."""
    (digest,) = service.service._store.health.blobs_of(image.layers[0])
    with (service.root / "content/blobs/sha256" / digest[7:]).open("rb") as file:
        return file.read(2)


def difference(ours: tuple[object, ...], umocis: tuple[object, ...]) -> str:
    names = ("kind", "mode", "uid", "gid", "links", "mtime", "content", "xattrs")
    return ", ".join(
        f"{name}: {str(a)[:80]} not {str(b)[:80]}"
        for name, a, b in zip(names, ours, umocis, strict=True)
        if a != b
    )


@contextmanager
def merged(layers: list[Path], directory: Path) -> Iterator[Path]:
    """Mount layers, given base first."""
    directory.mkdir()
    lower = ":".join(str(layer) for layer in reversed(layers))
    mounts.mount("overlay", str(directory), "overlay", mounts.MS_RDONLY, f"lowerdir={lower}")
    try:
        yield directory
    finally:
        mounts.umount(str(directory))
