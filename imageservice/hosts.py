"""Where an image's registry is: certs.d/<host>/hosts.toml, as containerd reads it.

Source: containerd docs/hosts.md. The directory is read anew at each pull, so an edit takes effect
with the next one. A file that cannot be read or understood is an error that names it: falling back
to the public registry, as containerd does, would hide the administrator's mirror.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from api.errors import ImagePullError
from imageservice.reference import DEFAULT_DOMAIN
from imageservice.retries import RetryPolicy

DEFAULT_CERTS_DIR = Path("/etc/criserver/certs.d")
# Docker Hub serves images of docker.io under this name.
DOCKER_HUB_HOST = "registry-1.docker.io"
CAPABILITIES = frozenset(("pull", "resolve", "push", "referrers"))
# A hosts.toml is a page of text.
MAX_HOSTS_FILE = 1 << 20
# An address that answers at all does so sooner; mirrors that are down must not hold up a pull.
DEFAULT_DIAL_TIMEOUT = 30.0

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class RegistryConfig:
    """The settings of the registry client.

    certs_dir: holds <host>/hosts.toml; it need not exist.
    """

    certs_dir: Path = DEFAULT_CERTS_DIR
    # Layers that are downloaded and unpacked at a time, over all pulls.
    max_parallel_layers: int = 4
    # Seconds without a byte from a registry after which the connection counts as broken.
    stall_timeout: float = 60.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    # Where HTTP_PROXY, HTTPS_PROXY and NO_PROXY are looked up: the daemon's environment.
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class RegistryHost:
    """One endpoint that is asked for an image; `base` is a URL that ends before /NAME/manifests."""

    base: str
    capabilities: frozenset[str] = CAPABILITIES
    ca: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT
    # The registry that the image names; a mirror says "?ns=" which one it stands for.
    namespace: str = field(default="")

    @property
    def host(self) -> str:
        """Host and port of the endpoint."""
        return urlsplit(self.base).netloc

    @property
    def is_mirror(self) -> bool:
        """Tell whether this is not the named registry itself."""
        return self.namespace != "" and canonical_host(self.host) != canonical_host(self.namespace)


def canonical_host(host: str) -> str:
    """Return the host with Docker Hub's three names made one."""
    aliases = (DOCKER_HUB_HOST, "index.docker.io", "registry.hub.docker.com")
    return DEFAULT_DOMAIN if host in aliases else host


def hosts_for(domain: str, certs_dir: Path) -> list[RegistryHost]:
    """Return the endpoints for images of `domain` in the order in which they are asked.

    Raises ImagePullError for a configuration that is wrong.
    """
    directory = find_directory(certs_dir, domain)
    if directory is not None:
        return load_directory(directory, domain)
    return [default_host(domain)]


def find_directory(certs_dir: Path, domain: str) -> Path | None:
    """Return the directory for `domain`: host_port_, then host:port, then _default."""
    name, colon, port = domain.rpartition(":")
    names = [f"{name}_{port}_", domain] if colon else [domain]
    for candidate in (*names, "_default"):
        directory = certs_dir / candidate
        if directory.is_dir():
            return directory
    return None


def load_directory(directory: Path, domain: str) -> list[RegistryHost]:
    """Read hosts.toml, or without one Docker's layout of *.crt, *.cert and *.key."""
    path = directory / "hosts.toml"
    try:
        text = _read_bounded(path)
    except FileNotFoundError:
        return [_docker_layout(directory, domain)]
    except (OSError, ValueError) as err:
        raise ImagePullError(f"cannot read {path}: {err}") from err
    if not text.strip():
        return [_docker_layout(directory, domain)]
    try:
        return parse_hosts(text, directory, domain)
    except (ValueError, TypeError) as err:
        raise ImagePullError(f"cannot use {path}: {err}") from err


def _read_bounded(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_HOSTS_FILE + 1)
    if len(data) > MAX_HOSTS_FILE:
        raise ValueError(f"it is larger than {MAX_HOSTS_FILE} bytes")
    return data.decode()


def parse_hosts(text: str, directory: Path, domain: str) -> list[RegistryHost]:
    """Parse the text of a hosts.toml; relative paths are below `directory`.

    Raises ValueError or TypeError, naming the key.
    """
    document = tomllib.loads(text)  # keeps the order of the tables
    tables = document.get("host", {})
    if not isinstance(tables, dict):
        raise TypeError("host is not a table")
    hosts = [_host(url, _table(url, table), directory, domain) for url, table in tables.items()]
    server = document.get("server") or ""
    if not isinstance(server, str):
        raise TypeError("server is not a string")
    hosts.append(_host(server, document, directory, domain))
    return hosts


def _table(url: str, table: Any) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise TypeError(f"host.{url!r} is not a table")
    return table


def _host(url: str, table: Mapping[str, Any], directory: Path, domain: str) -> RegistryHost:
    plain = default_host(domain)
    capabilities = frozenset(c.lower() for c in _strings(table, "capabilities")) or CAPABILITIES
    unknown = capabilities - CAPABILITIES
    if unknown:
        raise ValueError(f"unknown capability {', '.join(sorted(unknown))}")
    skip = table.get("skip_verify")
    if skip is not None and not isinstance(skip, bool):
        raise TypeError("skip_verify is not a boolean")
    ca = tuple(directory / path for path in _strings(table, "ca"))
    clients = _clients(table.get("client"), directory)
    own = _with_tls(plain.base) if ca or clients else plain.base
    return RegistryHost(
        base=_base(url, bool(table.get("override_path"))) if url else own,
        capabilities=capabilities,
        ca=ca,
        clients=clients,
        skip_verify=plain.skip_verify if skip is None and not url else bool(skip),
        headers=_headers(table.get("header")),
        dial_timeout=_duration(table.get("dial_timeout")),
        namespace=domain,
    )


def _base(url: str, override_path: bool) -> str:
    if "://" not in url:
        url = f"https://{url}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise ValueError(f"{url!r} is not the URL of a registry")
    path = parts.path.rstrip("/")
    if not override_path and not path.endswith("/v2"):
        path += "/v2"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _strings(table: Mapping[str, Any], key: str) -> list[str]:
    value = table.get(key)
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise TypeError(f"{key} is neither a string nor a list of strings")
    return values


def _clients(value: Any, directory: Path) -> tuple[tuple[Path, Path | None], ...]:
    """One file with both, several such files, or pairs of certificate and key."""
    if value is None:
        return ()
    pairs: list[tuple[Path, Path | None]] = []
    for item in [value] if isinstance(value, str) else value:
        match item:
            case str():
                pairs.append((directory / item, None))
            case [str(cert), str(key)]:
                pairs.append((directory / cert, directory / key))
            case _:
                raise TypeError(f"client {item!r} is neither a file nor a pair of files")
    return tuple(pairs)


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise TypeError("header is not a table")
    return tuple((name, text) for name in value for text in _strings(value, name))


def _duration(value: Any) -> float:
    if value is None:
        return DEFAULT_DIAL_TIMEOUT
    text = str(value)
    for unit in ("ms", "s", "m", "h"):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return float(number) * _UNITS[unit]
    raise ValueError(f"dial_timeout {value!r} is not a duration such as 10s")


def _docker_layout(directory: Path, domain: str) -> RegistryHost:
    files = sorted(entry for entry in directory.iterdir() if entry.is_file())
    pairs: list[tuple[Path, Path | None]] = []
    for cert in (path for path in files if path.suffix == ".cert"):
        key = cert.with_suffix(".key")
        pairs.append((cert, key if key.is_file() else None))
    plain = default_host(domain)
    ca = tuple(path for path in files if path.suffix == ".crt")
    base = _with_tls(plain.base) if ca or pairs else plain.base
    return RegistryHost(base, ca=ca, clients=tuple(pairs), namespace=domain)


def _with_tls(base: str) -> str:
    """Return the URL for a registry that certificates are configured for."""
    return base.replace("http://", "https://", 1)


def default_host(domain: str) -> RegistryHost:
    """Return the endpoint of a registry that nothing is configured for.

    A port of the local machine speaks plain HTTP, everything else HTTPS; certificates of the local
    machine are not verified.
    """
    if domain == DEFAULT_DOMAIN:
        return RegistryHost(f"https://{DOCKER_HUB_HOST}/v2", namespace=domain)
    name, port = _split_port(domain)
    local = _is_local(name)
    plain = local and port not in ("", "443")
    base = f"{'http' if plain else 'https'}://{domain}/v2"
    return RegistryHost(base, skip_verify=local and not plain, namespace=domain)


def _split_port(domain: str) -> tuple[str, str]:
    name, colon, port = domain.rpartition(":")
    return (name, port) if colon and port.isdecimal() else (domain, "")


def _is_local(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
