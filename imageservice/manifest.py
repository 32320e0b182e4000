"""Manifests, indexes and image configurations: OCI image-spec 1.1 and Docker's schema 2.

Everything here is a function of bytes: parse, check against named limits, choose a platform.
"""

from __future__ import annotations

import hashlib
import json
import platform as host_platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imageservice.errors import BadContentError
from imageservice.reference import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = frozenset((OCI_INDEX, DOCKER_LIST))
MANIFEST_TYPES = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
# Every type that a registry is asked for, the preferred first.
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))

# distribution-spec: registries take manifests of 4 MiB at least; none of ours needs more.
MAX_MANIFEST = 4 << 20
# Image configurations carry the whole build history; the largest seen are far below.
MAX_CONFIG = 8 << 20
# Overlayfs takes 500 lower layers; Docker makes 127 at most.
MAX_LAYERS = 500
# An index may point to an index; a loop or a tower ends here.
MAX_INDEX_DEPTH = 4
# Entries of one index that are looked at.
MAX_INDEX_ENTRIES = 4096

_FOREIGN = ("foreign", "nondistributable")


@dataclass(frozen=True)
class Descriptor:
    """A piece of content: digest "sha256:…", size in bytes."""

    media_type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the image-spec's form."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Platform:
    """GOOS, GOARCH and variant, as image-spec uses them."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True)
class Candidate:
    """One entry of an index."""

    descriptor: Descriptor
    platform: Platform | None
    annotations: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Manifest:
    """An image: its configuration and its layers, the base first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class ImageConfig:
    """A parsed image configuration; `raw` is the whole document."""

    raw: dict[str, Any] = field(hash=False)
    diff_ids: tuple[str, ...] = ()

    @property
    def is_artifact(self) -> bool:
        """Tell whether it was made for an artifact: the layer is of files, and nothing runs."""
        return "artifactType" in self.raw

    @property
    def chain_ids(self) -> tuple[str, ...]:
        """The chain id of each layer (image-spec config.md, "Layer ChainID")."""
        return chain_ids(self.diff_ids)


def digest_of(data: bytes) -> str:
    """Return "sha256:…"."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the chain ids of layers that are stacked in this order."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def host() -> Platform:
    """Return the platform of this machine."""
    machine = host_platform.machine()
    known = {
        "x86_64": Platform("linux", "amd64"),
        "aarch64": Platform("linux", "arm64", "v8"),
        "armv7l": Platform("linux", "arm", "v7"),
        "armv6l": Platform("linux", "arm", "v6"),
    }
    return known.get(machine, Platform("linux", machine))


def acceptable(machine: Platform) -> list[Platform]:
    """Return the platforms that `machine` runs, the best first."""
    system, arch, variant = machine.os, machine.architecture, machine.variant
    if arch == "amd64":
        levels = [variant] if variant else []
        known = [Platform(system, arch, level) for level in (*levels, "", "v1")]
        return [*known, Platform(system, "386")]
    if arch == "arm64":
        arm = [Platform(system, "arm", f"v{n}") for n in (8, 7, 6, 5)]
        return [Platform(system, arch, "v8"), Platform(system, arch), *arm]
    if arch == "arm":
        newest = int(variant[1:] or "7") if variant else 7
        levels = [f"v{n}" for n in range(newest, 4, -1)]
        return [*(Platform(system, arch, level) for level in levels), Platform(system, arch)]
    return [machine]


def media_type_of(document: dict[str, Any], header: str) -> str:
    """Return the type of a manifest: its own word, else the registry's, else what it looks like."""
    declared = document.get("mediaType")
    if isinstance(declared, str) and declared:
        return declared
    header = header.partition(";")[0].strip()
    if header in INDEX_TYPES | MANIFEST_TYPES:
        return header
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST


def parse_document(data: bytes, what: str) -> dict[str, Any]:
    """Decode JSON that must be an object.

    Raises BadContentError, saying what it looks like instead.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as err:
        start = data[:40].decode(errors="replace")
        raise BadContentError(f"{what} is not JSON ({err}); it begins with {start!r}") from err
    if not isinstance(document, dict):
        raise BadContentError(f"{what} is not a JSON object")
    return document


def parse_index(document: dict[str, Any], what: str) -> list[Candidate]:
    """Return the entries of an index that may be images."""
    entries = document.get("manifests")
    if not isinstance(entries, list):
        raise BadContentError(f"{what} has no list of manifests")
    if len(entries) > MAX_INDEX_ENTRIES:
        raise BadContentError(f"{what} has more than {MAX_INDEX_ENTRIES} entries")
    candidates = []
    for entry in entries:
        descriptor = _descriptor(entry, f"an entry of {what}")
        if descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES:
            annotations = entry.get("annotations")
            candidates.append(
                Candidate(
                    descriptor,
                    _platform(entry.get("platform")),
                    annotations if isinstance(annotations, dict) else {},
                )
            )
    return candidates


def choose(candidates: Sequence[Candidate], machine: Platform, what: str) -> Descriptor:
    """Return the entry that fits `machine` best; an entry without a platform fits last.

    Raises BadContentError, listing what there is.
    """
    wanted = acceptable(machine)
    fitting = [c for c in candidates if c.platform in wanted]
    if fitting:
        return min(fitting, key=lambda c: wanted.index(c.platform or machine)).descriptor
    for candidate in candidates:
        if candidate.platform is None:
            return candidate.descriptor
    there = ", ".join(sorted({str(c.platform) for c in candidates})) or "nothing"
    raise BadContentError(f"{what} has no image for {machine}; it has {there}")


def parse_manifest(document: dict[str, Any], what: str) -> Manifest:
    """Return an image manifest's content.

    Raises BadContentError for schema 1, foreign layers and anything malformed.
    """
    if document.get("schemaVersion") != 2:
        raise BadContentError(
            f"{what} has schemaVersion {document.get('schemaVersion')!r}; only 2 is supported: "
            "push the image again with a current tool"
        )
    config = _descriptor(document.get("config"), f"the configuration of {what}")
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise BadContentError(f"{what} has no list of layers")
    if len(layers) > MAX_LAYERS:
        raise BadContentError(f"{what} has more than {MAX_LAYERS} layers")
    parsed = tuple(_descriptor(layer, f"a layer of {what}") for layer in layers)
    for layer in parsed:
        if any(word in layer.media_type for word in _FOREIGN):
            raise BadContentError(
                f"layer {layer.digest} of {what} is of type {layer.media_type}, which its "
                "registry does not hold"
            )
    return Manifest(config, parsed)


def parse_config(data: bytes, layers: int, what: str) -> ImageConfig:
    """Return the image configuration, whose diff ids must be as many as the manifest's layers."""
    raw = parse_document(data, f"the configuration of {what}")
    if not isinstance(raw.get("config") or {}, dict):
        raise BadContentError(f"the configuration of {what} has a config that is no object")
    rootfs = raw.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None and layers == 0:
        diff_ids = []
    if not isinstance(diff_ids, list) or not all(
        isinstance(diff_id, str) and is_digest(diff_id) for diff_id in diff_ids
    ):
        raise BadContentError(f"the configuration of {what} has no valid rootfs.diff_ids")
    if len(diff_ids) != layers:
        raise BadContentError(
            f"the configuration of {what} has {len(diff_ids)} diff ids for {layers} layers"
        )
    return ImageConfig(raw, tuple(diff_ids))


def _platform(value: Any) -> Platform | None:
    if not isinstance(value, dict):
        return None
    parts = [value.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) for part in parts) or not parts[1]:
        return None
    system, arch, variant = parts
    arch = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}.get(arch, arch)
    if (arch, variant) == ("arm64", ""):
        variant = "v8"
    if arch == "arm":
        variant = variant or "v7"
    return Platform(system, arch, variant)


def _descriptor(value: Any, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise BadContentError(f"{what} is not a descriptor")
    media_type = value.get("mediaType") or ""
    digest = value.get("digest")
    size = value.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise BadContentError(f"{what} has the digest {str(digest)[:80]!r}, which is not sha256")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadContentError(f"{what} ({digest}) has no valid size")
    if not isinstance(media_type, str):
        raise BadContentError(f"{what} ({digest}) has no valid media type")
    return Descriptor(media_type, digest, size)
