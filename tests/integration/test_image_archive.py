"""Archives as skopeo, docker and our own tests write them."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from api.errors import CRIError, ImagePullError, InvalidArgumentError
from tests.integration import images
from tests.integration.image_fixtures import Images, tree
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration


def skopeo(source: str, target: str) -> None:
    command = ["skopeo", "copy", "--src-tls-verify=false", source, target]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("types", [images.OCI, images.DOCKER], ids=["from oci", "from docker"])
async def test_an_archive_of_skopeo_gives_the_same_image(
    service: Images,
    registry: Registry,
    tmp_path: Path,
    kind: str,
    types: images.MediaTypes,
) -> None:
    pushed = images.busybox(images.files_layer({"etc/added": "x"}), types=types)
    pulled = await service.pull_of(registry, "archived", pushed)
    expected = [tree(layer) for layer in await service.layer_dirs(pulled)]
    archive = tmp_path / "image.tar"
    source = f"docker://{registry.address}/archived:latest"
    skopeo(source, f"{kind}:{archive}:example.com/team/app:v1")
    await service.remove(pulled.id)
    assert await service.service.import_archive(archive) == ["example.com/team/app:v1"]
    (listed,) = await service.listed()
    assert list(listed.repo_tags) == ["example.com/team/app:v1"]
    image = service.service.resolve(listed.id)
    assert image.config["rootfs"] == pulled.config["rootfs"]
    assert [tree(layer) for layer in await service.layer_dirs(image)] == expected
    await service.remove(listed.id)
    assert service.left() == []


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("write", [images.write_oci_archive, images.write_docker_archive])
async def test_an_archive_of_several_images_may_be_compressed(
    service: Images, tmp_path: Path, compress: object, write: object
) -> None:
    assert callable(compress)
    assert callable(write)
    archive = tmp_path / "images.tar"
    made = {
        "example.com/one:1": images.busybox(),
        "example.com/two:2": images.busybox(images.files_layer({"two": "2"})),
    }
    write(archive, made)
    archive.write_bytes(compress(archive.read_bytes()))
    assert sorted(await service.service.import_archive(archive)) == sorted(made)
    for name, image in made.items():
        assert service.service.resolve(name).id == image.id
    assert sorted(await service.service.import_archive(archive)) == sorted(made)  # again
    for name in made:
        await service.remove(name)
    assert service.left() == []


async def test_an_image_without_a_full_name_has_its_id(
    service: Images, registry: Registry, tmp_path: Path
) -> None:
    pushed = images.busybox()
    images.push(registry.address, "unnamed", pushed)
    archive = tmp_path / "image.tar"
    skopeo(f"docker://{registry.address}/unnamed:latest", f"oci-archive:{archive}")
    assert await service.service.import_archive(archive) == [pushed.id]
    (listed,) = await service.listed()
    assert (listed.id, list(listed.repo_tags)) == (pushed.id, [])


async def test_the_platform_of_this_machine_is_taken(service: Images, tmp_path: Path) -> None:
    ours = images.busybox()
    other = images.Image(ours.layers, {"User": "other"}, architecture="s390x")
    archive = tmp_path / "image.tar"
    images.write_oci_archive(archive, {"example.com/other:1": other, "example.com/ours:1": ours})
    assert await service.service.import_archive(archive) == ["example.com/ours:1"]
    images.write_oci_archive(archive, {"example.com/other:1": other})
    with pytest.raises(ImagePullError, match="no image for"):
        await service.service.import_archive(archive)


def archive_of(files: dict[str, bytes]) -> bytes:
    return images.files_layer(files).tar


def docker_archive(config: bytes, layer: bytes) -> bytes:
    manifest = images.encode([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}])
    return archive_of({"c.json": config, "l/layer.tar": layer, "manifest.json": manifest})


def old_docker_archive() -> bytes:
    """As docker before 25 wrote a layer that it had written already: as a link."""
    layer = images.files_layer({"a": "b"})
    image = images.Image((layer, layer))
    manifest = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in (
            images.entry("c.json", image.config_blob),
            images.entry("1/layer.tar", layer.tar),
            images.symlink("2/layer.tar", "../1/layer.tar"),
            images.entry("manifest.json", images.encode(manifest)),
        ):
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


async def test_a_linked_layer_is_found(service: Images, tmp_path: Path) -> None:
    (tmp_path / "old.tar").write_bytes(old_docker_archive())
    assert await service.service.import_archive(tmp_path / "old.tar") == ["docker.io/library/a:1"]
    assert len(service.service.resolve("a:1").layers) == 2


GOOD = images.Image((images.files_layer({"a": "b"}),))
LIE = GOOD.config_blob.replace(GOOD.layers[0].diff_id.encode(), images.digest(b"").encode())
HOSTILE = {
    "not a tar": (b"<html>" * 1000, "checksum"),
    "empty": (b"", "neither an OCI nor a docker archive"),
    "something else": (archive_of({"a": b"b"}), "neither an OCI nor a docker archive"),
    "cut": (docker_archive(GOOD.config_blob, GOOD.layers[0].tar)[:1500], "ends early"),
    "cut gzip": (gzip.compress(archive_of({"a": b"b" * 5000}), mtime=0)[:-4], "ends early"),
    "lying configuration": (docker_archive(LIE, GOOD.layers[0].tar), "diff id"),
    "layer that is no tar": (docker_archive(GOOD.config_blob, b"<html>" * 100), "checksum"),
    "manifest that is no JSON": (archive_of({"manifest.json": b"{"}), "not JSON"),
    "manifest of numbers": (archive_of({"manifest.json": b"[1]"}), "something else"),
    "layers of numbers": (
        archive_of({"manifest.json": b'[{"Config": "c", "Layers": [1]}]'}),
        "as docker writes",
    ),
    "missing layer": (
        archive_of({"c": GOOD.config_blob, "manifest.json": b'[{"Config":"c","Layers":["x"]}]'}),
        "has no x",
    ),
    "path outside": (
        archive_of({"manifest.json": b'[{"Config":"../../etc/passwd","Layers":[]}]'}),
        "has no",
    ),
    "index of nothing": (archive_of({"index.json": b'{"manifests": 5}'}), "no list"),
    "index to nowhere": (
        archive_of({"index.json": images.encode({"manifests": [images.descriptor("x", b"x")]})}),
        "no image for",
    ),
    "missing manifest": (
        archive_of(
            {
                "index.json": images.encode(
                    {"manifests": [images.descriptor(images.OCI.manifest, b"x")]}
                )
            }
        ),
        "has no manifest",
    ),
    "bad name": (
        archive_of(
            {
                "c": GOOD.config_blob,
                "l": GOOD.layers[0].tar,
                "manifest.json": b'[{"Config":"c","Layers":["l"],"RepoTags":["A B"]}]',
            }
        ),
        "invalid image reference",
    ),
}


@pytest.mark.parametrize(("data", "reason"), HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_archive_is_refused_and_leaves_nothing(
    service: Images, tmp_path: Path, data: bytes, reason: str
) -> None:
    archive = tmp_path / "bad.tar"
    archive.write_bytes(data)
    with pytest.raises(CRIError, match=reason):
        await service.service.import_archive(archive)
    assert service.left() == []


async def test_a_file_that_cannot_be_read_is_an_invalid_argument(
    service: Images, tmp_path: Path
) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InvalidArgumentError, match=str(path)):
            await service.service.import_archive(path)
    assert service.left() == []
