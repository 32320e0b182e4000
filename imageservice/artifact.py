"""OCI artifacts: manifests whose layers are files, not root filesystems (image-spec, manifest.md).

An artifact can be pulled and shown as an image volume. It is kept as an image of one layer, whose
directory holds a hard link to each blob: the files take no space of their own, and what is mounted
read-only is the verified blob itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageservice import manifest as m
from imageservice.errors import BadContentError
from imageservice.manifest import Descriptor, ImageConfig
from imageservice.tar import TarError, clean_path

# The layer's chain id and diff id; an unpacked layer's begin with "sha256:".
FILES = "files:"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
_IMAGE_CONFIGS = frozenset(
    (
        m.OCI_CONFIG,
        "application/vnd.docker.container.image.v1+json",
        "application/octet-stream",  # as the first registries of schema 2 were filled
        "",
    )
)
# The verified blob may be read by whatever user a container runs as; its directory is root's.
FILE_MODE = 0o444


@dataclass(frozen=True)
class File:
    """A file of an artifact: its path in the volume, and its content."""

    path: str
    blob: Descriptor


def is_artifact(document: Mapping[str, Any]) -> bool:
    """Tell a parsed manifest of an artifact from an image's: by the type of its configuration."""
    config = document.get("config")
    return isinstance(config, dict) and config.get("mediaType", "") not in _IMAGE_CONFIGS


def is_files(chain_id: str) -> bool:
    """Tell whether a layer is the files of an artifact."""
    return chain_id.startswith(FILES)


def files_of(document: Mapping[str, Any], what: str) -> tuple[File, ...]:
    """Return the files of an artifact's manifest; one without a title is named by its digest.

    Raises BadContentError for a path that leaves the volume, or that two files have.
    """
    manifest = m.parse_manifest(dict(document), what)
    files: dict[str, File] = {}
    for raw, blob in zip(document["layers"], manifest.layers, strict=True):
        if blob.media_type == EMPTY_TYPE:
            continue
        annotations = raw.get("annotations")
        title = annotations.get(TITLE) if isinstance(annotations, dict) else None
        path = _path(title, what) if title else blob.digest.replace(":", "-")
        if path in files:
            raise BadContentError(f"{what} has two files {path!r}")
        files[path] = File(path, blob)
    return tuple(files.values())


def _path(title: Any, what: str) -> str:
    try:
        path = os.fsdecode(clean_path(str(title).encode()))
    except (TarError, UnicodeEncodeError) as err:
        raise BadContentError(f"{what} has a file with a wrong title: {err}") from err
    if not path or "\0" in path:
        raise BadContentError(f"{what} has a file with the title {str(title)[:80]!r}")
    return path


def config_of(document: Mapping[str, Any], files: Sequence[File]) -> ImageConfig:
    """Return the configuration under which an artifact is kept: nothing in it can be run."""
    listed = [[file.path, file.blob.digest] for file in files]
    digest = m.digest_of(json.dumps(listed).encode())
    layer = f"{FILES}{digest.removeprefix('sha256:')}"
    kind = document.get("artifactType") or document["config"].get("mediaType")
    raw = {
        "artifactType": str(kind),
        "rootfs": {"type": "files", "diff_ids": [layer]},
    }
    return ImageConfig(raw, (layer,))


def link_files(files: Sequence[File], blobs: Sequence[Path], directory: Path) -> tuple[int, int]:
    """Fill an empty directory; returns bytes beyond the blobs' own, and inodes.

    Raises BadContentError for a file that is another's directory, OSError.
    """
    directories = {directory}
    for file, blob in zip(files, blobs, strict=True):
        target = directory / file.path
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            os.chmod(blob, FILE_MODE)
            os.link(blob, target)
        except (FileExistsError, NotADirectoryError) as err:
            raise BadContentError(f"{file.path!r} is both a file and a directory") from err
        directories.update(directory / parent for parent in Path(file.path).parents)
    return 4096 * len(directories), len(directories)


def damage_of(directory: Path, blobs: Path) -> list[str]:
    """Return which files of an artifact's directory are no blob's; `blobs` is where those are."""
    known = {entry.inode() for entry in os.scandir(blobs)}
    damages = []
    for path, _, names in os.walk(directory):
        for name in names:
            file = Path(path, name)
            if file.lstat().st_ino not in known:
                damages.append(f"{str(file.relative_to(directory))!r}: it is not the blob's file")
    return damages
