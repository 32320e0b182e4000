"""Who pulls: docker's config.json and the credential helpers that it names.

Source: docker/cli's cli/config/configfile and docker/docker-credential-helpers. The daemon never
sees the file: the command line reads what belongs to the image's registry and sends that.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from criserver.cli.errors import CommandError
from imageservice import reference

CONFIG_VARIABLE = "DOCKER_CONFIG"
# What `docker login` without a host writes, and what helpers are asked for.
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
DOCKER_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
# A helper may ask a cloud's metadata service, or a person.
HELPER_SECONDS = 60.0
# What a helper prints when it has nothing, and exits with an error (docker-credential-helpers).
NOTHING_FOUND = "credentials not found in native keychain"
# The user name with which a helper says that the secret is an identity token.
TOKEN_USER = "<token>"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


def credentials_for(image: str, environment: Mapping[str, str] = os.environ) -> cri.AuthConfig:
    """Return what is known for the registry of `image`; empty if that is nothing.

    Raises CommandError for a file or a helper that cannot be used; never with a secret in it.
    """
    try:
        host = reference.parse(image).domain
    except InvalidArgumentError:
        return cri.AuthConfig()  # the daemon says what is wrong with the name
    path = config_path(environment)
    document = _read(path)
    helper = _helper(document, host, path)
    found = _ask(helper, host) if helper else None
    # As docker does: the file is looked at where the helper has nothing.
    return found or _from_file(document, host, path)


def config_path(environment: Mapping[str, str]) -> Path:
    """Return where docker's configuration is: $DOCKER_CONFIG/config.json, or below ~/.docker."""
    directory = environment.get(CONFIG_VARIABLE)
    if directory:
        return Path(directory) / "config.json"
    return Path(environment.get("HOME") or "/root") / ".docker" / "config.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as err:
        raise CommandError(f"cannot read credentials from {path}: {err}") from err
    if not isinstance(document, dict):
        raise CommandError(f"cannot read credentials from {path}: it is not a JSON object")
    return document


def _helper(document: Mapping[str, Any], host: str, path: Path) -> str:
    """Return the name of the helper for the host, "" for none."""
    helpers = _table(document, "credHelpers", path)
    name = next((helpers[key] for key in helpers if _same_host(key, host)), None)
    name = name if name is not None else document.get("credsStore") or ""
    if not isinstance(name, str) or (name and not _HELPER_NAME.fullmatch(name)):
        raise CommandError(f"{path} names the credential helper {name!r}, which is not a name")
    return name


def _ask(helper: str, host: str) -> cri.AuthConfig | None:
    """Return what a helper has for the host, None if that is nothing."""
    program = f"docker-credential-{helper}"
    server = DOCKER_HUB_KEY if host == reference.DEFAULT_DOMAIN else host
    try:
        result = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise CommandError(f"cannot get credentials for {host} from {program}: {err}") from err
    if result.returncode:
        said = (result.stdout or result.stderr).decode(errors="replace").strip()
        if NOTHING_FOUND in said:
            return None
        raise CommandError(f"cannot get credentials for {host} from {program}: {said[:200]}")
    return _from_helper(result.stdout, program, host)


def _from_helper(output: bytes, program: str, host: str) -> cri.AuthConfig:
    try:
        answer = json.loads(output)
        user, secret = answer["Username"], answer["Secret"]
        if user == TOKEN_USER:
            return cri.AuthConfig(identity_token=secret)
        return cri.AuthConfig(username=user, password=secret)
    except (ValueError, KeyError, TypeError, RecursionError):
        # Not chained: the answer has a secret in it.
        raise CommandError(
            f"cannot get credentials for {host} from {program}: its answer is not"
            ' {"Username": …, "Secret": …}'
        ) from None


def _from_file(document: Mapping[str, Any], host: str, path: Path) -> cri.AuthConfig:
    entries = _table(document, "auths", path)
    # A key that is the host itself goes before one that is some URL of it.
    keys = sorted((key for key in entries if _same_host(key, host)), key=lambda key: key != host)
    if not keys:
        return cri.AuthConfig()
    entry = entries[keys[0]]
    try:
        return _auth_config(entry)
    except (TypeError, ValueError, AttributeError):
        raise CommandError(f"the entry {keys[0]!r} of auths in {path} is malformed") from None


def _auth_config(entry: Any) -> cri.AuthConfig:
    """Return an entry of `auths`; raises TypeError, ValueError or AttributeError."""
    auth = cri.AuthConfig(
        username=entry.get("username") or "",
        password=entry.get("password") or "",
        identity_token=entry.get("identitytoken") or "",
        registry_token=entry.get("registrytoken") or "",
    )
    encoded = entry.get("auth")
    if encoded and not auth.username:
        user, _, password = _decoded(encoded).partition(":")
        auth.username, auth.password = user, password.strip("\0")
    return auth


def _decoded(encoded: Any) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except binascii.Error as err:
        raise ValueError("not base64") from err


def _table(document: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    table = document.get(key) or {}
    if not isinstance(table, dict):
        raise CommandError(f"cannot read credentials from {path}: {key} is not an object")
    return table


def _same_host(key: str, host: str) -> bool:
    """Tell whether a key (a host, or a URL below one) stands for the registry `host`."""
    named = key.rpartition("://")[2].partition("/")[0]
    if host == reference.DEFAULT_DOMAIN:
        return named in DOCKER_HUB_HOSTS
    return named == host
