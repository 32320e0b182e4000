"""Credentials for the command line: docker's config.json, and helpers as real programs."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cri import api_pb2 as cri
from criserver.cli import credentials
from criserver.cli.errors import CommandError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".docker").mkdir()
    return tmp_path


def write(home: Path, **document: object) -> None:
    (home / ".docker/config.json").write_text(json.dumps(document))


def found(home: Path, image: str) -> cri.AuthConfig:
    return credentials.credentials_for(image, {"HOME": str(home)})


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_without_a_file_nobody_asks(home: Path) -> None:
    assert found(home, "busybox") == cri.AuthConfig()


def test_the_file_may_be_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {"reg:5000": {"auth": encoded("me:x")}}})
    )
    auth = credentials.credentials_for("reg:5000/app", {"DOCKER_CONFIG": str(tmp_path)})
    assert (auth.username, auth.password) == ("me", "x")


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("reg:5000", "reg:5000/app"),
        ("https://reg:5000", "reg:5000/app:v1"),
        ("https://reg:5000/v1/", "reg:5000/a/b"),
        ("https://index.docker.io/v1/", "busybox"),
        ("index.docker.io", "docker.io/library/busybox"),
        ("docker.io", "team/app"),
    ],
)
def test_a_key_is_a_host_or_a_url_of_it(home: Path, key: str, image: str) -> None:
    write(home, auths={"other": {"auth": encoded("no:no")}, key: {"auth": encoded("me:pa:ss")}})
    auth = found(home, image)
    assert (auth.username, auth.password) == ("me", "pa:ss")


def test_the_host_itself_goes_before_a_url(home: Path) -> None:
    write(
        home,
        auths={"https://reg/v1/": {"auth": encoded("old:x")}, "reg.io": {}, "reg:1": {}},
    )
    assert found(home, "reg:1/app") == cri.AuthConfig()
    write(home, auths={"https://reg:1/v1/": {"auth": encoded("old:x")}, "reg:1": {"username": "n"}})
    assert found(home, "reg:1/app").username == "n"


def test_every_field_of_an_entry_is_taken(home: Path) -> None:
    write(
        home,
        auths={
            "a:1": {"username": "u", "password": "p"},
            "b:1": {"auth": encoded("<token>:"), "identitytoken": "i"},
            "c:1": {"registrytoken": "r"},
        },
    )
    assert found(home, "a:1/x") == cri.AuthConfig(username="u", password="p")
    assert found(home, "b:1/x").identity_token == "i"
    assert found(home, "c:1/x") == cri.AuthConfig(registry_token="r")


def helper(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    path = home / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")


ECHO = """read server; echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"$server $1\\",\
\\"Secret\\":\\"s\\"}" """


def test_a_helper_is_asked_for_its_host(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, monkeypatch, "one", ECHO)
    write(home, credHelpers={"reg:1": "one"}, auths={"other:1": {"username": "file"}})
    assert found(home, "reg:1/app") == cri.AuthConfig(username="reg:1 get", password="s")
    assert found(home, "other:1/app").username == "file"


def test_the_store_is_asked_for_every_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, monkeypatch, "all", ECHO)
    write(home, credsStore="all", auths={"reg:1": {}})
    assert found(home, "busybox").username == "https://index.docker.io/v1/ get"
    assert found(home, "reg:1/app").username == "reg:1 get"


def test_a_helper_may_have_an_identity_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(home, monkeypatch, "t", """echo '{"Username":"<token>","Secret":"i"}'""")
    write(home, credsStore="t")
    assert found(home, "reg:1/app") == cri.AuthConfig(identity_token="i")


def test_where_a_helper_has_nothing_the_file_counts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(home, monkeypatch, "no", f"echo {credentials.NOTHING_FOUND}; exit 1")
    write(home, credsStore="no", auths={"reg:1": {"auth": encoded("me:x")}})
    assert found(home, "reg:1/app").username == "me"
    assert found(home, "reg:2/app") == cri.AuthConfig()


@pytest.mark.parametrize("script", ["echo broken; exit 1", "echo '[\"topsecret\"]'", "exit 0"])
def test_a_helper_that_fails_is_an_error_that_names_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    helper(home, monkeypatch, "bad", script)
    write(home, credsStore="bad")
    with pytest.raises(CommandError, match="docker-credential-bad") as raised:
        found(home, "reg:1/app")
    assert "topsecret" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"auths": 1}',
        '{"auths": {"reg:1": 1}}',
        '{"auths": {"reg:1": {"auth": "%%%"}}}',
        '{"auths": {"reg:1": {"auth": "/w=="}}}',
        '{"auths": {"reg:1": {"username": 5}}}',
        '{"credHelpers": [1]}',
        '{"credsStore": "../../bin/sh"}',
        '{"credsStore": 5}',
        '{"credsStore": "is-not-installed"}',
    ],
)
def test_a_wrong_file_is_an_error(home: Path, text: str) -> None:
    (home / ".docker/config.json").write_text(text)
    with pytest.raises(CommandError, match=r"config\.json|is-not-installed"):
        found(home, "reg:1/app")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_key_is_survived(key: str, host: str) -> None:
    credentials._same_host(key, host)
