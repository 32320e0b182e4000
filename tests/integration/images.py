"""Images made on the spot, from Debian's busybox-static, and pushed by plain HTTP.

An image is layers and a config; what it becomes on the wire (OCI or docker schema 2) is chosen
when it is pushed or written to an archive. All bytes are the same in every run.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

BUSYBOX = Path("/bin/busybox")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ARCHITECTURE = ARCHITECTURES[platform.machine()]
TIMEOUT_SECONDS = 60
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class MediaTypes:
    """The media types of one of the two families of formats."""

    index: str
    manifest: str
    config: str
    layers: Mapping[str, str]  # compression -> media type


OCI_TYPE = "application/vnd.oci.image"
DOCKER_TYPE = "application/vnd.docker"
OCI = MediaTypes(
    index=f"{OCI_TYPE}.index.v1+json",
    manifest=f"{OCI_TYPE}.manifest.v1+json",
    config=f"{OCI_TYPE}.config.v1+json",
    layers={
        "gzip": f"{OCI_TYPE}.layer.v1.tar+gzip",
        "zstd": f"{OCI_TYPE}.layer.v1.tar+zstd",
        "none": f"{OCI_TYPE}.layer.v1.tar",
    },
)
DOCKER = MediaTypes(
    index=f"{DOCKER_TYPE}.distribution.manifest.list.v2+json",
    manifest=f"{DOCKER_TYPE}.distribution.manifest.v2+json",
    config=f"{DOCKER_TYPE}.container.image.v1+json",
    layers={
        "gzip": f"{DOCKER_TYPE}.image.rootfs.diff.tar.gzip",
        "zstd": f"{DOCKER_TYPE}.image.rootfs.diff.tar.zstd",
        "none": f"{DOCKER_TYPE}.image.rootfs.diff.tar",
    },
)


def digest(data: bytes) -> str:
    """The digest of `data` as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Layer:
    """A layer: its tar, and the form in which it is stored (gzip, zstd or none)."""

    tar: bytes
    compression: str = "gzip"

    @functools.cached_property
    def blob(self) -> bytes:
        """What a registry stores."""
        if self.compression == "gzip":
            return gzip.compress(self.tar, compresslevel=1, mtime=0)
        if self.compression == "zstd":
            return zstandard.ZstdCompressor(level=1).compress(self.tar)
        return self.tar

    @property
    def diff_id(self) -> str:
        """The digest of the tar, as the image's config lists it."""
        return digest(self.tar)


def entry(
    path: str,
    content: bytes = b"",
    *,
    mode: int = 0o644,
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    uid: int = 0,
    gid: int = 0,
    xattrs: Mapping[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    """One member of a layer's tar; `kind` is one of tarfile's types, `target` a link's."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.type, info.linkname = len(content), mode, kind, target
    info.uid, info.gid, info.mtime = uid, gid, 0
    info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in (xattrs or {}).items()}
    return info, content


def directory(path: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    """A directory in a layer."""
    return entry(path, mode=mode, kind=tarfile.DIRTYPE)


def symlink(path: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link in a layer."""
    return entry(path, kind=tarfile.SYMTYPE, target=target, mode=0o777)


def layer(*entries: tuple[tarfile.TarInfo, bytes], compression: str = "gzip") -> Layer:
    """A layer of these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return Layer(buffer.getvalue(), compression)


def files_layer(files: Mapping[str, bytes | str], compression: str = "gzip") -> Layer:
    """A layer of plain files: path -> content."""
    contents = {p: c.encode() if isinstance(c, str) else c for p, c in files.items()}
    return layer(*(entry(p, c) for p, c in contents.items()), compression=compression)


@functools.cache
def busybox_layer(compression: str = "gzip") -> Layer:
    """/bin with busybox and all its applets, /etc with users, and the usual empty directories."""
    listing = subprocess.run([BUSYBOX, "--list"], capture_output=True, check=True, text=True)
    applets = sorted(set(listing.stdout.split()) - {"busybox"})
    return layer(
        *(directory(path) for path in ("bin", "etc", "root", "var", "usr")),
        directory("tmp", 0o1777),
        entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(symlink(f"bin/{applet}", "busybox") for applet in applets),
        entry("etc/passwd", PASSWD),
        entry("etc/group", GROUP),
        compression=compression,
    )


@dataclass(frozen=True)
class Image:
    """An image for one platform; `config` is the OCI config's own `config` object."""

    layers: tuple[Layer, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = ARCHITECTURE
    os: str = "linux"
    types: MediaTypes = OCI

    @functools.cached_property
    def config_blob(self) -> bytes:
        """The config that the image's id is the digest of."""
        return encode(
            {
                "created": "1970-01-01T00:00:00Z",
                "architecture": self.architecture,
                "os": self.os,
                "config": dict(self.config),
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
                "history": [{"created_by": "tests"} for _ in self.layers],
            }
        )

    @property
    def id(self) -> str:
        """The CRI's id of the image."""
        return digest(self.config_blob)

    @functools.cached_property
    def manifest(self) -> bytes:
        """The manifest that a registry stores."""
        config = descriptor(self.types.config, self.config_blob)
        layers = [descriptor(self.types.layers[one.compression], one.blob) for one in self.layers]
        return encode(
            {
                "schemaVersion": 2,
                "mediaType": self.types.manifest,
                "config": config,
                "layers": layers,
            }
        )

    @property
    def blobs(self) -> list[bytes]:
        """What the manifest refers to, the config first."""
        return [self.config_blob, *(layer.blob for layer in self.layers)]


def encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    """An OCI content descriptor."""
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


def busybox(
    *layers: Layer,
    entrypoint: Sequence[str] | None = None,
    cmd: Sequence[str] | None = ("/bin/sh",),
    env: Sequence[str] = ("PATH=/bin",),
    user: str = "",
    working_dir: str = "",
    types: MediaTypes = OCI,
    **config: Any,
) -> Image:
    """An image of busybox with more layers on top; `config` holds further keys of its config."""
    given = {
        "Entrypoint": entrypoint and list(entrypoint),
        "Cmd": cmd and list(cmd),
        "Env": list(env),
        "User": user,
        "WorkingDir": working_dir,
        **config,
    }
    settings = {key: value for key, value in given.items() if value}
    return Image((busybox_layer(), *layers), settings, types=types)


def index(images: Sequence[Image], types: MediaTypes = OCI) -> bytes:
    """An index (or docker's manifest list) of images for several platforms."""
    manifests = [
        descriptor(
            image.types.manifest,
            image.manifest,
            platform={"architecture": image.architecture, "os": image.os},
        )
        for image in images
    ]
    return encode({"schemaVersion": 2, "mediaType": types.index, "manifests": manifests})


def push(address: str, repository: str, image: Image, reference: str = "latest") -> str:
    """Push an image to the registry at HOST:PORT; returns `HOST:PORT/repository@digest`.

    `reference` is a tag, or "" to push by digest only. Raises HTTPError.
    """
    for blob in image.blobs:
        push_blob(address, repository, blob)
    return push_manifest(address, repository, image.manifest, image.types.manifest, reference)


def push_index(
    address: str,
    repository: str,
    images: Sequence[Image],
    reference: str = "latest",
    types: MediaTypes = OCI,
) -> str:
    """Push images by digest and an index of them under `reference`; returns as `push` does."""
    for image in images:
        push(address, repository, image, "")
    return push_manifest(address, repository, index(images, types), types.index, reference)


def push_manifest(
    address: str, repository: str, manifest: bytes, media_type: str, reference: str
) -> str:
    """Put a manifest or index as it is, malformed or not; what it refers to must be there."""
    url = f"http://{address}/v2/{repository}/manifests/{reference or digest(manifest)}"
    request(url, "PUT", manifest, media_type)
    return f"{address}/{repository}@{digest(manifest)}"


def push_blob(address: str, repository: str, blob: bytes) -> None:
    """Upload a blob unless the repository has it (distribution-spec: POST, then PUT)."""
    base = f"http://{address}/v2/{repository}/blobs"
    try:
        request(f"{base}/{digest(blob)}", "HEAD")
        return
    except urllib.error.HTTPError as err:
        if err.code != 404:
            raise
    location = request(f"{base}/uploads/", "POST")["Location"]
    separator = "&" if "?" in location else "?"
    url = f"{location}{separator}digest={digest(blob)}"
    request(url, "PUT", blob, "application/octet-stream")


def request(url: str, method: str, body: bytes | None = None, kind: str = "") -> Mapping[str, str]:
    """Make one HTTP request without a proxy; returns the answer's headers, raises HTTPError."""
    headers = {"Content-Type": kind} if kind else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    message = urllib.request.Request(url, data=body, method=method, headers=headers)
    with opener.open(message, timeout=TIMEOUT_SECONDS) as answer:
        answer.read()
        return dict(answer.headers.items())


def fetch(url: str, accept: str) -> bytes:
    """Get a body by plain HTTP without a proxy; raises HTTPError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    message = urllib.request.Request(url, headers={"Accept": accept})
    with opener.open(message, timeout=TIMEOUT_SECONDS) as answer:
        return bytes(answer.read())


def write_oci_archive(path: Path, images: Mapping[str, Image]) -> None:
    """Write a tar of an OCI image layout: name (`HOST/REPOSITORY:TAG`) -> image."""
    manifests = [
        descriptor(
            image.types.manifest,
            image.manifest,
            annotations={
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name,
            },
            platform={"architecture": image.architecture, "os": image.os},
        )
        for name, image in images.items()
    ]
    blobs = {digest(b): b for image in images.values() for b in (image.manifest, *image.blobs)}
    files = {f"blobs/{name.replace(':', '/')}": blob for name, blob in blobs.items()}
    files["oci-layout"] = encode({"imageLayoutVersion": "1.0.0"})
    files["index.json"] = encode(
        {"schemaVersion": 2, "mediaType": OCI.index, "manifests": manifests}
    )
    path.write_bytes(files_layer(files).tar)


def write_docker_archive(path: Path, images: Mapping[str, Image]) -> None:
    """Write a tar as `docker save` does: name (`HOST/REPOSITORY:TAG`) -> image."""
    files: dict[str, bytes | str] = {}
    manifest = []
    for name, image in images.items():
        config = f"{image.id.removeprefix('sha256:')}.json"
        layers = [f"{one.diff_id.removeprefix('sha256:')}/layer.tar" for one in image.layers]
        files[config] = image.config_blob
        files.update(zip(layers, (one.tar for one in image.layers), strict=True))
        manifest.append({"Config": config, "RepoTags": [name], "Layers": layers})
    path.write_bytes(files_layer({**files, "manifest.json": encode(manifest)}).tar)
