"""References are parsed as distribution does, and normalised as Docker does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import InvalidArgumentError
from imageservice.reference import MAX_NAME, Reference, id_prefix, is_digest, parse

HEX = "a" * 64
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("user/app", "docker.io/user/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry.k8s.io/e2e/pause:3.9", "registry.k8s.io/e2e/pause:3.9"),
        ("registry/app", "docker.io/registry/app:latest"),
        ("registry:5000/app", "registry:5000/app:latest"),
        ("REGISTRY/app", "REGISTRY/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"host:5000/a/b/c:tag@{DIGEST}", f"host:5000/a/b/c@{DIGEST}"),
        ("a.b/c__d.e-f--g:T_1.x-y", "a.b/c__d.e-f--g:T_1.x-y"),
    ],
)
def test_a_reference_is_normalised(text: str, normal: str) -> None:
    assert str(parse(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "Upper",
        "host/Upper",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a:-tag",
        f"a:{'t' * 129}",
        "a@sha256:abc",
        f"a@sha512:{HEX * 2}",
        f"a@{DIGEST}@{DIGEST}",
        HEX,
        "a b",
        "a\n",
        "-host.com/a",
        "host:port/a",
        f"host/{'a' * MAX_NAME}",
        "a:" + "b" * 10_000,
        "https://host/a",
        "ä",
        "a\u0660",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse(text)


@given(st.text(max_size=300))
def test_any_text_is_a_reference_or_an_invalid_argument(text: str) -> None:
    try:
        reference = parse(text)
    except InvalidArgumentError:
        return
    assert parse(str(reference)) == reference


_PART = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-)[a-z0-9]{1,4})?", fullmatch=True)


@given(
    domain=st.sampled_from(["docker.io", "localhost", "h.example:5000", "[::1]:80"]),
    parts=st.lists(_PART, min_size=2, max_size=4),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
)
def test_a_normal_reference_is_its_own_normal_form(domain: str, parts: list[str], tag: str) -> None:
    reference = Reference(domain, "/".join(parts), tag=tag)
    assert parse(str(reference)) == reference
    by_digest = reference.with_digest(DIGEST)
    assert parse(str(by_digest)) == by_digest


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        (HEX, HEX),
        (DIGEST, HEX),
        ("sha256:ab", "ab"),
        ("ab12", "ab12"),
        ("busybox", None),
        ("sha256:", None),
        ("AB", None),
        (HEX + "a", None),
    ],
)
def test_an_id_or_its_beginning_is_told_by_its_digits(text: str, digits: str | None) -> None:
    assert id_prefix(text) == digits


def test_only_sha256_is_a_digest() -> None:
    assert is_digest(DIGEST)
    assert not is_digest(HEX)
    assert not is_digest(DIGEST + "\n")
