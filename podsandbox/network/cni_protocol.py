"""What a CNI plugin is given and what it answers (CNI spec 1.1, sections 2 and 4); no I/O."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.errors import InvalidArgumentError
from podsandbox.network import INTERFACE, PodNetworkRequest
from podsandbox.network.bandwidth import bandwidth_of
from podsandbox.network.cni_config import CNIConfig, Plugin, from_json

# Plugins call iptables, ip, tc; the daemon's own environment is not theirs to see.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Of a plugin's stderr, this much of the end goes into the error.
_MAX_STDERR = 2048

Result = dict[str, Any]


class CNIPluginError(Exception):
    """A plugin failed, or answered something that is not a result."""


@dataclass(frozen=True)
class Attachment:
    """One pod on one network: all that DEL needs, whatever the configuration says by then."""

    sandbox_id: str
    config: CNIConfig
    capabilities: Mapping[str, Any]
    args: str
    result: Result | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {
            "sandbox_id": self.sandbox_id,
            "config": self.config.as_json(),
            "capabilities": dict(self.capabilities),
            "args": self.args,
            "result": self.result,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Attachment:
        """Read what as_json has made."""
        return cls(
            stored["sandbox_id"],
            from_json(stored["config"]),
            stored["capabilities"],
            stored["args"],
            stored["result"],
        )


def cni_args(pod: PodNetworkRequest) -> str:
    """Return CNI_ARGS as containerd and CRI-O fill it."""
    pairs = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.sandbox_id,
        "K8S_POD_UID": pod.uid,
    }
    for key, value in pairs.items():
        if ";" in value:  # would begin another pair
            raise InvalidArgumentError(f"{key} must not contain ';': {value!r}")
    return ";".join(f"{key}={value}" for key, value in pairs.items())


def capabilities(pod: PodNetworkRequest, ranges: Sequence[str] = ()) -> dict[str, Any]:
    """Return the runtime's values for the capabilities that a plugin may declare (CONVENTIONS.md).

    What the pod does not ask for is left out. `ranges` are the node's pod CIDRs, one for each IP
    family. Raises InvalidArgumentError for the pod's annotations.
    """
    values: dict[str, Any] = {"io.kubernetes.cri.pod-annotations": dict(pod.annotations)}
    mappings = [
        {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol,
            "hostIP": mapping.host_ip,
        }
        for mapping in pod.port_mappings
        if mapping.host_port > 0
    ]
    if mappings:
        values["portMappings"] = mappings
    bandwidth = bandwidth_of(pod.annotations)
    if bandwidth:
        values["bandwidth"] = bandwidth
    if pod.dns is not None:
        values["dns"] = {
            "servers": list(pod.dns.servers),
            "searches": list(pod.dns.searches),
            "options": list(pod.dns.options),
        }
    if ranges:
        values["ipRanges"] = [[{"subnet": subnet}] for subnet in ranges]
    if pod.cgroup_path:
        values["cgroupPath"] = pod.cgroup_path
    return values


def environment(
    command: str, attachment: Attachment, netns: str, bin_dirs: Sequence[str]
) -> dict[str, str]:
    """Return the environment of a plugin; `netns` is "" when the namespace is gone."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.sandbox_id,
        "CNI_NETNS": netns,
        "CNI_IFNAME": INTERFACE,
        "CNI_ARGS": attachment.args,
        "CNI_PATH": ":".join(bin_dirs),
        "PATH": _PATH,
    }


def plugin_input(attachment: Attachment, plugin: Plugin, previous: Result | None) -> bytes:
    """Return what a plugin reads on stdin: its configuration, with what the runtime adds to it."""
    declared = plugin.get("capabilities")
    wanted = {name for name, on in declared.items() if on} if isinstance(declared, dict) else set()
    runtime_config = {
        name: value for name, value in attachment.capabilities.items() if name in wanted
    }
    document = {key: value for key, value in plugin.items() if key != "capabilities"}
    document |= {"name": attachment.config.name, "cniVersion": attachment.config.version}
    if runtime_config:
        document["runtimeConfig"] = runtime_config
    if previous is not None:
        document["prevResult"] = previous
    return json.dumps(document).encode()


def network_environment(command: str, bin_dirs: Sequence[str]) -> dict[str, str]:
    """Return the environment of an operation on a whole network: GC, STATUS."""
    return {"CNI_COMMAND": command, "CNI_PATH": ":".join(bin_dirs), "PATH": _PATH}


def network_input(config: CNIConfig, plugin: Plugin, **more: Any) -> bytes:
    """Return what a plugin reads on stdin in an operation on a whole network."""
    document = {key: value for key, value in plugin.items() if key != "capabilities"}
    return json.dumps(
        document | {"name": config.name, "cniVersion": config.version} | more
    ).encode()


def gc_input(config: CNIConfig, plugin: Plugin, valid: Sequence[str]) -> bytes:
    """Return what GC reads on stdin; everything of other sandboxes than `valid` may go."""
    attachments = [{"containerID": sandbox_id, "ifname": INTERFACE} for sandbox_id in valid]
    # The spec names the first, the library's first releases the second: both are sent, as there.
    keys = ("cni.dev/valid-attachments", "cni.dev/attachments")
    return network_input(config, plugin, **dict.fromkeys(keys, attachments))


def result_for_del(attachment: Attachment) -> Result | None:
    """Return the result that DEL passes on; versions before 0.4.0 do not know it."""
    return attachment.result if attachment.config.since("0.4.0") else None


def parse_result(stdout: bytes, version: str) -> Result:
    """Read the answer to ADD. Raises CNIPluginError."""
    try:
        result = json.loads(stdout)
    except ValueError as err:
        raise CNIPluginError(f"answered no JSON: {stdout[:200]!r}") from err
    if not isinstance(result, dict):
        raise CNIPluginError(f"answered no result: {stdout[:200]!r}")
    result.setdefault("cniVersion", version)
    for name in ("ips", "interfaces"):
        entries = result.get(name) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise CNIPluginError(f"answered a result whose {name} is no list of objects")
    return result


def parse_error(exit_code: int, stdout: bytes, stderr: bytes) -> CNIPluginError:
    """Say why a plugin failed: its error object (spec 1.1, section 5), else what it printed."""
    try:
        document = json.loads(stdout)
    except ValueError:
        document = None
    if isinstance(document, dict) and document.get("msg"):
        words = f"{document['msg']}"
        if document.get("details"):
            words += f": {document['details']}"
        words += f" (code {document.get('code')})"
    else:
        words = f"exit code {exit_code}, without a CNI error"
    return CNIPluginError(words + stderr_of(stderr))


def stderr_of(stderr: bytes) -> str:
    """Return the end of what a plugin printed to stderr, as a part of an error message."""
    text = stderr[-_MAX_STDERR:].decode(errors="replace").strip()
    return f"; stderr: {text}" if text else ""


def pod_ips(result: Result) -> list[str]:
    """Return the addresses of the pod's interface, an IPv4 one first. Raises CNIPluginError.

    The order is containerd's default: the first IPv4 address, then the others as they come.
    """
    interfaces = result.get("interfaces") or []
    ips = []
    for entry in result.get("ips") or []:
        index = entry.get("interface")
        if index is not None and not _is_pods(interfaces, index):
            continue
        try:
            ips.append(ipaddress.ip_interface(entry["address"]).ip)
        except (KeyError, ValueError) as err:
            raise CNIPluginError(f"answered an address that is none: {entry}") from err
    first = next((ip for ip in ips if ip.version == 4), ips[0] if ips else None)
    if first is None:
        raise CNIPluginError(f"answered no address for {INTERFACE}")
    return [str(first), *(str(ip) for ip in ips if ip is not first)]


def _is_pods(interfaces: list[dict[str, Any]], index: object) -> bool:
    if not isinstance(index, int) or not 0 <= index < len(interfaces):
        raise CNIPluginError(f"answered an address of interface {index!r}, which is not listed")
    return interfaces[index].get("name") == INTERFACE
