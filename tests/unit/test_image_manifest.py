"""Manifests, indexes and configurations: what is taken, and what is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ImagePullError
from imageservice import manifest as m
from imageservice.manifest import Candidate, Descriptor, Platform

DIGEST = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64
AMD64 = Platform("linux", "amd64")


def descriptor(**fields: Any) -> dict[str, Any]:
    return {"mediaType": m.OCI_LAYER, "digest": DIGEST, "size": 5, **fields}


def image_manifest(**fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "config": descriptor(), "layers": [descriptor()], **fields}


def test_a_manifest_has_a_configuration_and_layers() -> None:
    parsed = m.parse_manifest(image_manifest(), "x")
    assert parsed.config == Descriptor(m.OCI_LAYER, DIGEST, 5)
    assert parsed.layers == (parsed.config,)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schemaVersion": 1}, "schemaVersion 1"),
        ({"config": None}, "not a descriptor"),
        ({"config": descriptor(digest="sha256:../../etc/passwd")}, "not sha256"),
        ({"config": descriptor(digest="sha512:" + "1" * 128)}, "not sha256"),
        ({"config": descriptor(size=-1)}, "no valid size"),
        ({"config": descriptor(size="5")}, "no valid size"),
        ({"config": descriptor(size=True)}, "no valid size"),
        ({"config": descriptor(mediaType=5)}, "no valid media type"),
        ({"layers": None}, "no list of layers"),
        ({"layers": [descriptor()] * 501}, "more than 500 layers"),
        (
            {
                "layers": [
                    descriptor(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar")
                ]
            },
            "does not hold",
        ),
        (
            {
                "layers": [
                    descriptor(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar")
                ]
            },
            "does not hold",
        ),
    ],
)
def test_a_wrong_manifest_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImagePullError, match=reason):
        m.parse_manifest(image_manifest(**fields), "x")


def candidate(platform: Platform | None, digest: str = DIGEST) -> Candidate:
    return Candidate(Descriptor(m.OCI_MANIFEST, digest, 1), platform)


@pytest.mark.parametrize(
    ("machine", "there", "chosen"),
    [
        ("linux/amd64", ["linux/arm64/v8", "linux/amd64"], 1),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], 1),
        ("linux/arm64/v8", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64", ["unknown/unknown", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64/v8", "linux/386"], 1),
    ],
)
def test_the_best_platform_is_chosen(machine: str, there: list[str], chosen: int) -> None:
    candidates = [
        candidate(Platform(*name.split("/")), f"sha256:{number:064d}")
        for number, name in enumerate(there)
    ]
    found = m.choose(candidates, Platform(*machine.split("/")), "x")
    assert found == candidates[chosen].descriptor


def test_an_entry_without_a_platform_is_the_last_resort() -> None:
    candidates = [candidate(None), candidate(Platform("linux", "s390x"), OTHER)]
    assert m.choose(candidates, AMD64, "x").digest == DIGEST


def test_what_there_is_instead_is_listed() -> None:
    with pytest.raises(ImagePullError, match="no image for linux/amd64; it has linux/s390x"):
        m.choose([candidate(Platform("linux", "s390x"))], AMD64, "x")


def test_an_index_passes_over_what_is_no_image() -> None:
    entries = [
        descriptor(mediaType="application/vnd.example+json"),
        descriptor(mediaType=m.OCI_MANIFEST, platform={"os": "linux", "architecture": "aarch64"}),
    ]
    (found,) = m.parse_index({"manifests": entries}, "x")
    assert found.platform == Platform("linux", "arm64", "v8")


def test_an_index_of_too_many_entries_is_refused() -> None:
    with pytest.raises(ImagePullError, match="more than"):
        m.parse_index({"manifests": [descriptor()] * 5000}, "x")


@pytest.mark.parametrize(
    ("document", "header", "kind"),
    [
        ({"mediaType": m.OCI_INDEX}, m.OCI_MANIFEST, m.OCI_INDEX),
        ({}, f"{m.DOCKER_MANIFEST}; charset=utf-8", m.DOCKER_MANIFEST),
        ({"manifests": []}, "application/json", m.OCI_INDEX),
        ({"layers": []}, "", m.OCI_MANIFEST),
    ],
)
def test_the_media_type_is_the_documents_own(
    document: dict[str, Any], header: str, kind: str
) -> None:
    assert m.media_type_of(document, header) == kind


def config(diff_ids: Any) -> bytes:
    return json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()


def test_chain_ids_are_those_of_the_specification() -> None:
    """The second is sha256 of "sha256:1… sha256:2…" (image-spec config.md)."""
    parsed = m.parse_config(config([DIGEST, OTHER]), 2, "x")
    assert parsed.chain_ids == (DIGEST, m.digest_of(f"{DIGEST} {OTHER}".encode()))


@pytest.mark.parametrize(
    "data",
    [
        b"<html>not found</html>",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        config([DIGEST, OTHER]),
        config(["sha256:x"]),
        config("x"),
        config(None),
        b"{}",
        b'{"rootfs": 1}',
        b'{"config": [1], "rootfs": {"diff_ids": ["' + DIGEST.encode() + b'"]}}',
    ],
)
def test_a_wrong_configuration_is_refused(data: bytes) -> None:
    with pytest.raises(ImagePullError):
        m.parse_config(data, 1, "x")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([DIGEST]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["schemaVersion", "manifests", "layers", "config", "digest", "size", "mediaType"]
                + ["platform", "os", "architecture", "rootfs", "diff_ids", "annotations"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_any_json_is_a_document_or_an_error(value: Any) -> None:
    try:
        document = m.parse_document(json.dumps(value).encode(), "x")
    except ImagePullError:
        return
    for parse in (m.parse_manifest, m.parse_index):
        try:
            parse(document, "x")
        except ImagePullError:
            continue
    try:
        m.parse_config(json.dumps(value).encode(), 1, "x")
    except ImagePullError:
        return
