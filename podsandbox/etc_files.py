"""A pod's /etc/hostname, /etc/hosts and /etc/resolv.conf, as containerd makes them.

The kubelet mounts its own hosts file over ours; crictl and others rely on this one.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError

_FILE_MODE = 0o644  # read by whatever user the containers run as

_HOST_HOSTS = Path("/etc/hosts")
_HOST_RESOLV_CONF = Path("/etc/resolv.conf")

# A host's files are small; what is larger is not what it seems to be.
_MAX_HOST_FILE = 1 << 20

_SELINUX_XATTR = "security.selinux"

_LOCAL_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def resolv_conf(dns: cri.DNSConfig) -> str:
    """Return the contents of resolv.conf (man 5 resolv.conf) for a DNS configuration."""
    for value in (*dns.servers, *dns.searches, *dns.options):
        if not value or any(char.isspace() or char == "\0" for char in value):
            raise InvalidArgumentError(f"dns_config: {value[:256]!r} is not one word")
    lines = []
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    lines.extend(f"nameserver {server}" for server in dns.servers)
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "".join(f"{line}\n" for line in lines)


def write_etc_files(
    directory: Path,
    config: cri.PodSandboxConfig,
    label: str = "",
    owner: tuple[int, int] | None = None,
) -> dict[str, str]:
    """Write the three files into `directory`; returns their names with their paths.

    Without a hostname the pod has the host's; without a DNS configuration, or with an empty one,
    the host's resolver. `label` is their SELinux label. `owner` is the uid and gid on the host of
    the pod's root: so they need no id-mapped mount, which a tmpfs takes since Linux 6.3 only.
    """
    hostname = config.hostname or socket.gethostname()
    resolver = resolv_conf(config.dns_config).encode()
    resolver = resolver or _read_host_file(_HOST_RESOLV_CONF, b"")
    contents = {
        "hostname": f"{hostname}\n".encode(),
        "hosts": _read_host_file(_HOST_HOSTS, _LOCAL_HOSTS.encode()),
        "resolv.conf": resolver,
    }
    files = {name: _write(directory / name, content, label) for name, content in contents.items()}
    if owner is not None:
        for path in files.values():
            os.chown(path, *owner)
    return files


def _read_host_file(path: Path, missing: bytes) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_HOST_FILE)
    except FileNotFoundError:  # a minimal host has none
        return missing


def _write(path: Path, content: bytes, label: str) -> str:
    path.write_bytes(content)
    os.chmod(path, _FILE_MODE)  # whatever the umask is
    if label:
        os.setxattr(path, _SELINUX_XATTR, label.encode() + b"\0")
    return str(path)
