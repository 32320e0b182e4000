"""The settings of metrics and traces; what they give is in docs/observability.md."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from criserver.config_schema import setting

# The kernel's limit on sun_path less the NUL (man 7 unix).
MAX_SOCKET_PATH = 107


@dataclass(frozen=True)
class Address:
    """Where metrics are served: a unix socket's `path`, or else `host`, an IP, and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0


def parse_address(text: str) -> Address | None:
    """Read unix:///PATH or IP:PORT ([IPv6]:PORT); None for anything else."""
    if text.startswith("unix:///"):
        path = text.removeprefix("unix://")
        fits = len(path.encode()) <= MAX_SOCKET_PATH and "\0" not in path
        return Address(path=path) if fits else None
    match = re.fullmatch(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+)):(?P<port>\d+)", text)
    if match is None or int(match["port"]) > 65535:
        return None
    try:
        host = ipaddress.IPv6Address(match["six"]) if match["six"] else None
        return Address(
            host=str(host or ipaddress.IPv4Address(match["four"])), port=int(match["port"])
        )
    except ValueError:
        return None


def _is_endpoint(text: str) -> bool:
    if text == "":
        return True
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 0) > 0
    except ValueError:
        return False


@dataclass(frozen=True)
class AuditConfig:
    """The periodic look for what belongs to nobody; see docs/troubleshooting.md."""

    interval_seconds: float = setting(
        300.0,
        "How often what is on the machine is compared with the records; 0 is never.",
        "0 or more",
        lambda seconds: seconds >= 0,
        reloaded=True,
    )
    remove: bool = setting(
        True,
        "Remove what two audits in a row have found and what provably was this daemon's.",
        reloaded=True,
    )


@dataclass(frozen=True)
class MetricsConfig:
    """Where Prometheus gets the metrics."""

    listen: str = setting(
        "",
        "Where GET /metrics is answered: unix:///PATH, or IP:PORT (port 0 is any that is free);\n"
        "empty: nowhere, and nothing is counted. Who can reach a TCP port can read the metrics.",
        f"unix:///PATH (at most {MAX_SOCKET_PATH} bytes), IP:PORT, [IPv6]:PORT, or empty",
        lambda address: address == "" or parse_address(address) is not None,
    )


@dataclass(frozen=True)
class TracingConfig:
    """Where an OpenTelemetry collector gets the traces."""

    endpoint: str = setting(
        "",
        "The collector that takes OTLP over gRPC, such as http://127.0.0.1:4317, or https:// with\n"
        "TLS; empty: nothing is traced.",
        "http://HOST:PORT or https://HOST:PORT, or empty",
        _is_endpoint,
    )
    sampling_ratio: float = setting(
        0.0,
        "Which part of the RPCs is traced whose caller sends no trace context, such as crictl's.\n"
        "One with a trace context, such as the kubelet's, is traced if its caller's span is.",
        "0 to 1",
        lambda ratio: 0.0 <= ratio <= 1.0,
    )
