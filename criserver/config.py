# ruff: noqa: RUF009 - setting() and table() return dataclasses.field(), which is immutable.
"""The daemon's settings: TOML with drop-ins, typed and checked, overridden by flags.

Read in this order, later wins: the defaults, the configuration file, the `*.toml` in its
`config.d/` by name, the flags. A list replaces the list before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from criserver import config_schema
from criserver.config_observability import (
    MAX_SOCKET_PATH,
    AuditConfig,
    MetricsConfig,
    TracingConfig,
)
from criserver.config_schema import ConfigError, Given, setting, table, tables
from imageservice import pinning

DEFAULT_CONFIG = Path("/etc/criserver/config.toml")
DROP_INS = "config.d"  # beside the configuration file

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("plain", "json")
CGROUP_DRIVERS = ("cgroupfs", "systemd")

# IFNAMSIZ less the NUL (man 7 netdevice).
MAX_INTERFACE_NAME = 15

__all__ = [
    "AuditConfig",
    "Config",
    "ConfigError",
    "ContainersConfig",
    "ImagesConfig",
    "Loaded",
    "MetricsConfig",
    "NetworkConfig",
    "RegistriesConfig",
    "RuntimeConfig",
    "StreamingConfig",
    "TracingConfig",
    "load",
    "read",
]


def _is_interface(name: str) -> bool:
    return bool(re.fullmatch(rf"[^\s/:]{{1,{MAX_INTERFACE_NAME}}}", name)) and name not in (
        ".",
        "..",
    )


def _is_subnets(subnets: tuple[str, ...]) -> bool:
    try:
        networks = [ipaddress.ip_network(subnet) for subnet in subnets]
    except ValueError:
        return False
    versions = [network.version for network in networks]
    roomy = all(
        network.num_addresses >= 4 for network in networks
    )  # network, bridge, pod, broadcast
    return len(set(versions)) == len(versions) and roomy


def _is_listen(address: str) -> bool:
    return address == "" or (
        address.startswith("unix:///") and len(address) <= MAX_SOCKET_PATH + len("unix://")
    )


def _is_label(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name))


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _is_positive(number: float) -> bool:
    return number > 0


@dataclass(frozen=True)
class NetworkConfig:
    """How pods get their network."""

    cni_conf_dirs: tuple[Path, ...] = setting(
        (Path("/etc/cni/net.d"),),
        "CNI network configurations: the first usable file counts, by directory and then by name.\n"
        "While there is no file, the built-in bridge network is used.",
        reloaded=True,
    )
    cni_bin_dirs: tuple[Path, ...] = setting(
        (Path("/opt/cni/bin"), Path("/usr/lib/cni")),
        "Where CNI plugins are looked for, in order.",
        reloaded=True,
    )
    cni_timeout_seconds: float = setting(
        60.0, "How long one CNI plugin may take.", "more than 0", _is_positive, reloaded=True
    )
    bridge: str = setting(
        "",
        "The bridge of the built-in network, made when the first pod needs it; empty: the first\n"
        "of criserver0, criserver1, ... that is free.",
        f"an interface name (1 to {MAX_INTERFACE_NAME} characters, no '/', ':' or space)",
        lambda name: name == "" or _is_interface(name),
    )
    subnets: tuple[str, ...] = setting(
        (),
        "The built-in network's addresses: one IPv4 subnet, one IPv6 subnet, or one of each;\n"
        "empty: an IPv4 subnet that the host has no route for, chosen once.",
        "one IPv4 and/or one IPv6 subnet of at least 4 addresses, without host bits",
        _is_subnets,
    )


@dataclass(frozen=True)
class ContainersConfig:
    """What holds for every container."""

    pids_limit: int = setting(
        0,
        "The most processes and threads in one container; 0 is no limit of its own.",
        "0 or more",
        lambda limit: limit >= 0,
        reloaded=True,
    )
    cdi_spec_dirs: tuple[Path, ...] = setting(
        (Path("/etc/cdi"), Path("/var/run/cdi")),
        "Where the Container Device Interface's specs are; a later directory goes before an\n"
        "earlier one.",
        reloaded=True,
    )
    exec_drain_seconds: float = setting(
        2.0,
        "How long ExecSync reads on after its command has exited while a child of the command\n"
        "still holds the output open.",
        "0 or more",
        lambda seconds: seconds >= 0,
        reloaded=True,
    )


@dataclass(frozen=True)
class RegistriesConfig:
    """How registries are reached."""

    certs_dir: Path = setting(
        Path("/etc/criserver/certs.d"),
        "Mirrors and TLS of registries: <certs_dir>/<host>/hosts.toml, as containerd reads it.",
        reloaded=True,
    )
    max_parallel_layers: int = setting(
        4, "How many layers are downloaded and unpacked at a time.", "1 or more", _is_positive
    )
    stall_timeout_seconds: float = setting(
        60.0,
        "How long a registry may send nothing before the connection counts as broken.",
        "more than 0",
        _is_positive,
    )


def _is_address(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _is_file_or_nothing(path: str) -> bool:
    return path == "" or (path.startswith("/") and "\0" not in path)


@dataclass(frozen=True)
class StreamingConfig:
    """The HTTP server of exec, attach and port-forward, whose URLs the CRI gives out."""

    address: str = setting(
        "127.0.0.1",
        "The address to listen on. The kubelet and crictl are on this machine.",
        "an IPv4 or IPv6 address",
        _is_address,
    )
    port: int = setting(
        0, "The port; 0 is any that is free.", "0 to 65535", lambda port: 0 <= port <= 65535
    )
    idle_timeout_seconds: float = setting(
        4 * 3600.0,
        "How long a stream may be idle both ways before it is ended.",
        "more than 0",
        _is_positive,
    )
    tls: bool = setting(False, "Serve HTTPS.")
    tls_cert_file: str = setting(
        "",
        "The certificate for TLS (PEM, with its chain); empty: the daemon makes its own. A file\n"
        "that changes is read again.",
        "an absolute path, or empty",
        _is_file_or_nothing,
    )
    tls_key_file: str = setting(
        "", "The certificate's key (PEM).", "an absolute path, or empty", _is_file_or_nothing
    )


@dataclass(frozen=True)
class ImagesConfig:
    """What is kept, and what may be pulled."""

    pinned_images: tuple[str, ...] = setting(
        (),
        "Images that the kubelet and `criserver image gc` never remove: a name with its tag or\n"
        "digest, a beginning followed by '*', or a part between two '*'.",
        "names, each with at most a '*' at its end, or at both ends",
        pinning.is_patterns,
        reloaded=True,
    )
    signature_policy: str = setting(
        "",
        "A TOML file that says which repositories' images must be signed (see docs/images.md);\n"
        "empty: none. It is read anew for each pull.",
        "an absolute path, or empty",
        lambda path: path == "" or (path.startswith("/") and "\0" not in path),
    )
    volatile_rootfs: bool = setting(
        False,
        "Mount containers' root filesystems with overlayfs' `volatile`: no sync reaches the disk,\n"
        "so removing a container never waits for it. What a container wrote to its root is void\n"
        "after a crash of the machine, as its container is.",
    )


@dataclass(frozen=True)
class RuntimeConfig:
    """A runtime handler that is an OCI runtime's binary."""

    path: Path = setting(
        dataclasses.MISSING,
        "The OCI runtime: runc, crun, youki, runsc, or another with their command line.",
        "a program that can be executed",
        _is_program,
        reloaded=True,
    )


@dataclass(frozen=True)
class Config:
    """All settings of the daemon."""

    root: Path = setting(Path("/var/lib/criserver"), "What survives a reboot: database and images.")
    run_dir: Path = setting(
        Path("/run/criserver"),
        "What a reboot voids: sockets, bundles, pinned namespaces. Should be a tmpfs.",
    )
    listen: str = setting(
        "",
        "Where the CRI is served; empty is criserver.sock in run_dir.",
        f"unix:///PATH, the path at most {MAX_SOCKET_PATH} bytes",
        _is_listen,
    )
    log_level: str = setting(
        "info",
        "One of debug, info, warning, error. Logs go to the standard error.",
        f"one of {', '.join(LOG_LEVELS)}",
        lambda level: level in LOG_LEVELS,
        reloaded=True,
    )
    log_format: str = setting(
        "plain",
        "plain: lines for a person; json: one object per line, with what the line is about in\n"
        "fields of their own.",
        f"one of {', '.join(LOG_FORMATS)}",
        lambda name: name in LOG_FORMATS,
    )
    default_runtime: str = setting(
        "runtimeshim",
        "The name of the embedded executor as a runtime handler; it is also the handler ''.",
        "a non-empty DNS label",
        _is_label,
    )
    cgroup_driver: str = setting(
        "cgroupfs",
        "Who manages cgroups; the kubelet is told.",
        f"one of {', '.join(CGROUP_DRIVERS)}",
        lambda driver: driver in CGROUP_DRIVERS,
    )
    network: NetworkConfig = table(NetworkConfig)
    containers: ContainersConfig = table(ContainersConfig)
    registries: RegistriesConfig = table(RegistriesConfig)
    images: ImagesConfig = table(ImagesConfig)
    streaming: StreamingConfig = table(StreamingConfig)
    audit: AuditConfig = table(AuditConfig)
    metrics: MetricsConfig = table(MetricsConfig)
    tracing: TracingConfig = table(TracingConfig)
    runtimes: dict[str, RuntimeConfig] = tables(
        "More runtime handlers, each an OCI runtime's binary, run by the same shim.",
        '[runtimes.runc]\npath = "/usr/sbin/runc"',
        "a DNS label",
        _is_label,
    )

    @property
    def handlers(self) -> tuple[str, ...]:
        """The names of all runtime handlers but "", which is the default's second one."""
        return (self.default_runtime, *self.runtimes)

    @property
    def listen_path(self) -> Path:
        """The path of the CRI socket."""
        if self.listen:
            return Path(self.listen.removeprefix("unix://"))
        return self.run_dir / "criserver.sock"

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, for Status and for a person to read."""
        result: dict[str, Any] = _json(dataclasses.asdict(self))
        result["listen"] = f"unix://{self.listen_path}"
        return result


def _json(value: Any) -> Any:
    match value:
        case dict():
            return {key: _json(item) for key, item in value.items()}
        case tuple():
            return [_json(item) for item in value]
        case Path():
            return str(value)
        case _:
            return value


FLAGS = {  # flag -> setting
    "--listen": "listen",
    "--root": "root",
    "--run-dir": "run_dir",
    "--certs-dir": "registries.certs_dir",
    "--cni-conf-dir": "network.cni_conf_dirs",
    "--cni-bin-dir": "network.cni_bin_dirs",
    "--log-level": "log_level",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and the flags that override settings."""
    parser.add_argument("--config", type=Path, help=f"TOML file (default {DEFAULT_CONFIG})")
    for flag, key in FLAGS.items():
        repeatable = flag in ("--cni-conf-dir", "--cni-bin-dir")
        parser.add_argument(
            flag,
            dest=key,
            action="append" if repeatable else "store",
            metavar=flag.rsplit("-", 1)[-1].upper(),
            help=f"overrides the setting {key}" + ("; repeatable" if repeatable else ""),
        )


@dataclass(frozen=True)
class Loaded:
    """The settings, and where they are from."""

    config: Config
    given: Mapping[str, Given]
    """By dotted key; what is not there is the default."""
    files: tuple[Path, ...]


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read the settings; as `read`, without where they are from."""
    return read(path, overrides).config


def read(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read the settings; `overrides` are {dotted key: value} of the flags that were given.

    The default file may be missing, one that was named may not. Raises ConfigError.
    """
    file = path or DEFAULT_CONFIG
    files = [file] if path is not None or file.exists() else []
    files += sorted((file.parent / DROP_INS).glob("*.toml"))
    given: dict[str, Given] = {}
    for each in files:
        given.update(config_schema.read_file(each, Config))
    flags = {key: flag for flag, key in FLAGS.items()}
    for key, value in (overrides or {}).items():
        where = flags.get(key, key)
        given[key] = Given(config_schema.check_value(key, value, Config, where), where)
    config: Config = config_schema.build(Config, {key: one.value for key, one in given.items()})
    _check_together(config, given)
    return Loaded(config, given, tuple(files))


def _check_together(config: Config, given: Mapping[str, Given]) -> None:
    """Check what only the settings together can say. Raises ConfigError."""

    def where(key: str) -> str:
        return given[key].where if key in given else "default"

    if not _is_listen(f"unix://{config.listen_path}"):
        raise ConfigError(
            where("run_dir"),
            f"listen must be set: {config.listen_path} is over {MAX_SOCKET_PATH} bytes long",
        )
    if config.default_runtime in config.runtimes:
        raise ConfigError(
            where(f"runtimes.{config.default_runtime}.path"),
            f"[runtimes.{config.default_runtime}]: the name is that of the embedded executor: "
            "choose another, or another default_runtime",
        )
    files = {name: getattr(config.streaming, name) for name in ("tls_cert_file", "tls_key_file")}
    for name, other in zip(files, reversed(files), strict=True):
        if files[name] and not files[other]:
            raise ConfigError(
                where(f"streaming.{name}"), "tls_cert_file and tls_key_file go together: set both"
            )
    if config.streaming.tls_cert_file and not config.streaming.tls:
        raise ConfigError(
            where("streaming.tls_cert_file"),
            "tls_cert_file is set, but streaming.tls is false: set it to true",
        )


def load_flags(options: argparse.Namespace) -> Config:
    """Read the settings that a command line parsed with `add_flags` asks for."""
    return read_flags(options).config


def read_flags(options: argparse.Namespace) -> Loaded:
    """As `load_flags`, with where they are from."""
    given = {key: value for key in FLAGS.values() if (value := getattr(options, key)) is not None}
    return read(options.config, given)
