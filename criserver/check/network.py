"""The network: netfilter, sysctls, CNI."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from criserver.check.finding import Finding, fail, good, warn
from criserver.config import Config
from podsandbox.network.cni_config import CNIConfig, ConfigDirectories
from podsandbox.network.cni_plugins import find_program
from podsandbox.network.cni_protocol import CNIPluginError
from runtimeshim.linux import capabilities
from runtimeshim.linux.nftables import Nftables, NftablesError

SYSCTLS = Path("/proc/sys/net")

# A transaction that is undone: what it needs of the kernel has to be there for it to succeed.
TRIAL = """
add table inet criserver_check
add chain inet criserver_check nat { type nat hook postrouting priority 300; }
add rule inet criserver_check nat oifname "criserver-none" masquerade
delete table inet criserver_check
"""


def check(config: Config) -> Iterator[Finding]:
    """Look at what pods' networks need."""
    yield _netfilter()
    cni, cni_finding = _cni(config)
    yield cni_finding
    if cni is not None:
        yield from _plugins(config, cni)
    yield from _forwarding(config, builtin=cni is None)
    yield from _bridge_calls()


def _netfilter() -> Finding:
    if "CAP_NET_ADMIN" not in capabilities.to_names(capabilities.current().effective):
        return fail("netfilter", "cannot be tried without CAP_NET_ADMIN", "run this as root")
    try:
        nft = Nftables()
    except OSError as err:
        return fail("netfilter", str(err), "install libnftables (Debian: libnftables1)")
    try:
        nft.run(TRIAL)
    except NftablesError as err:
        return fail(
            "netfilter",
            " ".join(str(err).split()),
            "load the modules nf_tables and nft_masq, or a kernel with CONFIG_NF_TABLES_INET and "
            "CONFIG_NFT_MASQ",
        )
    finally:
        nft.close()
    return good("netfilter", "nftables with nat")


def _cni(config: Config) -> tuple[CNIConfig | None, Finding]:
    """Return the configuration that pods would get, None for the built-in network."""
    directories = ConfigDirectories(config.network.cni_conf_dirs)
    if not directories.exists():
        return None, good("CNI", f"nothing in {directories}: pods get the built-in network")
    found, reasons = directories.load()
    if found is None:
        return None, fail(
            "CNI",
            f"no usable configuration in {directories}: {'; '.join(reasons)}",
            "correct it, or remove it to get the built-in network",
        )
    if reasons:
        return found, warn("CNI", f"network {found.name}; {'; '.join(reasons)}", "correct these")
    return found, good("CNI", f"network {found.name}, version {found.version}")


def _plugins(config: Config, cni: CNIConfig) -> Iterator[Finding]:
    directories = [str(directory) for directory in config.network.cni_bin_dirs]
    names = [str(plugin["type"]) for plugin in cni.plugins]
    names += [str(p["ipam"]["type"]) for p in cni.plugins if (p.get("ipam") or {}).get("type")]
    missing = []
    for name in names:
        try:
            find_program(name, directories)
        except CNIPluginError:
            missing.append(name)
    where = ", ".join(directories)
    if missing:
        yield fail(
            "CNI plugins",
            f"{', '.join(missing)} not in {where}",
            "install them (Debian: containernetworking-plugins), or set network.cni_bin_dirs",
        )
    else:
        yield good("CNI plugins", ", ".join(names))


def _forwarding(config: Config, *, builtin: bool) -> Iterator[Finding]:
    versions = {ipaddress.ip_network(subnet).version for subnet in config.network.subnets}
    names = {"ip_forward": "ipv4/ip_forward"}
    if 6 in versions:
        names["IPv6 forwarding"] = "ipv6/conf/all/forwarding"
    for name, path in names.items():
        value = _sysctl(path)
        if value == "1":
            yield good(name, "on")
        elif builtin:
            yield good(name, "off; the built-in network switches it on")
        else:
            key = f"net.{path.replace('/', '.')}"
            yield fail(name, "off: no pod reaches beyond its node", f"sysctl -w {key}=1")


def _bridge_calls() -> Iterator[Finding]:
    name = "bridge-nf-call-iptables"
    value = _sysctl(f"bridge/{name}")
    if value == "1":
        yield good(name, "on")
        return
    found = "the module br_netfilter is not loaded" if value is None else "off"
    yield warn(
        name,
        f"{found}: with kube-proxy's iptables mode, pods of one node may not reach services",
        f"modprobe br_netfilter; sysctl -w net.bridge.{name}=1; not needed with Cilium or nftables "
        "mode without a bridge",
    )


def _sysctl(path: str) -> str | None:
    try:
        return (SYSCTLS / path).read_text().strip()
    except FileNotFoundError:
        return None
