"""Challenges of registries, and the credentials of CRI's AuthConfig."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cri.api_pb2 import AuthConfig
from api.errors import InvalidArgumentError
from imageservice.auth import Credentials, from_cri, parse_challenges


@pytest.mark.parametrize(
    ("header", "scheme", "parameters"),
    [
        (
            'Bearer realm="https://auth/token",service="reg",scope="repository:a/b:pull,push"',
            "bearer",
            {"realm": "https://auth/token", "service": "reg", "scope": "repository:a/b:pull,push"},
        ),
        ('bEaReR Realm="r" , SERVICE=plain', "bearer", {"realm": "r", "service": "plain"}),
        ('Basic realm="a \\"quoted\\" realm"', "basic", {"realm": 'a "quoted" realm'}),
        ("Negotiate", "negotiate", {}),
        ('Bearer realm=""', "bearer", {"realm": ""}),
    ],
)
def test_a_challenge_is_parsed(header: str, scheme: str, parameters: dict[str, str]) -> None:
    (challenge,) = parse_challenges([header])
    assert (challenge.scheme, challenge.parameters) == (scheme, parameters)


def test_several_challenges_come_in_one_or_several_headers() -> None:
    found = parse_challenges(['Basic realm="a", Bearer realm="b"', 'Digest nonce="c"'])
    assert [challenge.scheme for challenge in found] == ["basic", "bearer", "digest"]
    assert found[1].parameters == {"realm": "b"}


@given(st.text(max_size=200))
def test_any_header_is_survived(text: str) -> None:
    for challenge in parse_challenges([text]):
        assert challenge.scheme == challenge.scheme.lower()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_username_and_password_make_basic_authentication() -> None:
    credentials = from_cri(AuthConfig(username="me", password="pa:ss"))
    assert credentials.basic == f"Basic {encoded('me:pa:ss')}"


def test_the_auth_field_holds_both() -> None:
    credentials = from_cri(AuthConfig(auth=encoded("me:pa:ss")))
    assert (credentials.username, credentials.password) == ("me", "pa:ss")


def test_tokens_are_taken_as_they_are() -> None:
    credentials = from_cri(AuthConfig(identity_token="i", registry_token="r"))
    assert (credentials.identity_token, credentials.registry_token) == ("i", "r")
    assert credentials.basic is None


@pytest.mark.parametrize("auth", ["%%%", encoded("nocolon"), encoded(":x"), "ab", "/w=="])
def test_an_auth_field_that_is_not_base64_of_a_pair_is_refused(auth: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        from_cri(AuthConfig(auth=auth))
    assert auth not in str(raised.value)


@pytest.mark.parametrize(
    ("server", "host", "allowed"),
    [
        ("", "anything:5000", True),
        ("https://reg:5000", "reg:5000", True),
        ("reg:5000", "reg:5000", True),
        ("https://reg:5000/v2/", "other:5000", False),
        ("https://index.docker.io/v1/", "registry-1.docker.io", True),
        ("docker.io", "registry-1.docker.io", True),
        ("https://reg", "reg.evil.example", False),
        ("[", "reg", False),
    ],
)
def test_credentials_go_to_their_server_only(server: str, host: str, allowed: bool) -> None:
    credentials = from_cri(AuthConfig(username="u", password="p", server_address=server))
    assert credentials.allowed_for(host) is allowed


def test_a_secret_is_not_printed() -> None:
    credentials = Credentials("me", "secret1", "secret2", "secret3")
    assert "secret" not in repr(credentials)
