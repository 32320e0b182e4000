"""HTTP proxies from the daemon's environment. No I/O.

HTTP_PROXY, HTTPS_PROXY and NO_PROXY mean what they mean to containerd and the kubelet, so that one
systemd drop-in serves all three. Source: golang.org/x/net/http/httpproxy.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from yarl import URL

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Proxy:
    """A proxy; `authorization` is the value of a Proxy-Authorization header, "" for none."""

    url: URL
    authorization: str = field(default="", repr=False)


class Proxies:
    """Which URL goes through which proxy."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Take the settings; the variables may be in upper or lower case."""
        self._variables = {
            scheme: (name, _value(environment, name).strip())
            for scheme, name in (("http", "HTTP_PROXY"), ("https", "HTTPS_PROXY"))
        }
        direct = _value(environment, "NO_PROXY").replace(",", " ").split()
        self._direct = [rule.lower() for rule in direct]

    def of(self, url: URL) -> Proxy | None:
        """Return the proxy for `url`, None if it is reached directly.

        Raises ValueError, naming the variable, if that is no URL of an HTTP proxy.
        """
        name, text = self._variables.get(url.scheme, ("", ""))
        if not text or self._is_direct((url.host or "").rstrip("."), url.port):
            return None
        return _proxy(name, text)

    def _is_direct(self, host: str, port: int | None) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(_matches(rule, host, port, address) for rule in self._direct)


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.lower()) or ""


def _proxy(name: str, text: str) -> Proxy:
    try:
        url = URL(text if "://" in text else f"http://{text}")
        url.origin()
    except ValueError:
        # Not repeated and not chained: there may be a password in it.
        raise ValueError(f"{name} is not the URL of a proxy") from None
    if url.scheme not in _PORTS:
        raise ValueError(f"{name} is a {url.scheme} proxy; only http and https are supported")
    if url.user is None:
        return Proxy(url.origin())
    pair = f"{url.user}:{url.password or ''}".encode()
    return Proxy(url.origin(), f"Basic {base64.b64encode(pair).decode()}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _matches(
    rule: str,
    host: str,
    port: int | None,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
) -> bool:
    """Tell whether a NO_PROXY entry covers the host: *, a network, an address, or a domain.

    A domain stands for itself and what is below it; with a leading dot (or *.) only for the latter.
    """
    if rule == "*":
        return True
    if "/" in rule:
        return address is not None and _in_network(rule, address)
    name, rule_port = _split_port(rule)
    if rule_port is not None and rule_port != port:
        return False
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*")
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")


def _in_network(rule: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False  # not a network: it covers nothing, as in Go


def _split_port(rule: str) -> tuple[str, int | None]:
    name, colon, port = rule.rpartition(":")
    if colon and port.isdecimal() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return rule.strip("[]"), None
