"""CDI edits applied to an OCI spec. What they say of the host's devices is looked up there."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api.errors import InvalidArgumentError

Document = dict[str, Any]

HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)

# A node that is there and cannot be opened.
NO_ACCESS = "none"

# What CDI 1.1 and the runtime-spec have in common.
_RDT = ("closID", "l3CacheSchema", "memBwSchema", "schemata", "enableMonitoring")


def apply(spec: Document, all_edits: Sequence[Mapping[str, Any]]) -> None:
    """Change an OCI spec in place. Raises InvalidArgumentError for edits that make no sense."""
    for edits in all_edits:
        unknown = edits.keys() - _CHANGES.keys() - {"intelRdt"}
        if unknown:
            raise _wrong("containerEdits", f"unknown member {sorted(unknown)[0]!r}")
        for name, change in _CHANGES.items():
            for index, value in enumerate(_entries(edits, name)):
                change(spec, f"{name}[{index}]", value)
        if (rdt := edits.get("intelRdt")) is not None:
            _set_intel_rdt(spec, rdt)
    # Shallow ones first, so that none covers another.
    spec["mounts"].sort(key=lambda mount: mount["destination"].rstrip("/").count("/"))


def _wrong(where: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"CDI: {where}: {why}")


def _entries(edits: Mapping[str, Any], name: str) -> list[Any]:
    entries = edits.get(name) or []
    if not isinstance(entries, list):
        raise _wrong(name, "is not a list")
    return entries


def _text(where: str, holder: Any, member: str, *, needed: bool = True) -> str:
    value = holder.get(member) if isinstance(holder, dict) else None
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong(f"{where}.{member}", f"{value!r} is not a non-empty text")
    return value


def _absolute(where: str, holder: Any, member: str) -> str:
    path = _text(where, holder, member)
    if not path.startswith("/"):
        raise _wrong(f"{where}.{member}", f"{path!r} is not an absolute path")
    return posixpath.normpath(path)


def _set_env(spec: Document, where: str, entry: Any) -> None:
    """Set one "NAME=value"; the later one wins."""
    name, separator, _ = entry.partition("=") if isinstance(entry, str) else ("", "", "")
    if not (name and separator) or "\0" in entry:
        raise _wrong(where, f"{entry!r} is not of the form NAME=value")
    env: list[str] = spec["process"]["env"]
    env[:] = [each for each in env if each.partition("=")[0] != name]
    env.append(entry)


def _add_device(spec: Document, where: str, node: Any) -> None:
    """Add a device node, in place of another one with its path, and allow it.

    What the edit leaves open is the host's; the owner, that of the container's process.
    """
    path = _absolute(where, node, "path")
    host = _absolute(where, node, "hostPath") if node.get("hostPath") else path
    kind, major, minor = _numbers(where, node, host)
    device: Document = {"path": path, "type": kind}
    if kind != "p":
        device |= {"major": major, "minor": minor}
    user = spec["process"]["user"]
    for member, default in (("uid", user.get("uid", 0)), ("gid", user.get("gid", 0))):
        value = node.get(member)
        if value is not None or default:
            device[member] = _integer(f"{where}.{member}", default if value is None else value)
    mode = node.get("fileMode")
    device["fileMode"] = _mode(host) if mode is None else _integer(f"{where}.fileMode", mode)
    devices: list[Document] = spec["linux"].setdefault("devices", [])
    devices[:] = [each for each in devices if each["path"] != path]
    devices.append(device)
    access = node.get("permissions") or "rwm"
    if kind in ("b", "c") and access != NO_ACCESS:
        if not isinstance(access, str) or not set(access) <= set("rwm"):
            raise _wrong(f"{where}.permissions", f"{access!r} is not made of r, w and m")
        rule = {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}
        spec["linux"]["resources"].setdefault("devices", []).append(rule)


def _numbers(where: str, node: Mapping[str, Any], host: str) -> tuple[str, int, int]:
    """Return type, major and minor: the edit's, or those of the node on the host."""
    kind = node.get("type") or ""
    if kind not in ("", "b", "c", "u", "p"):
        raise _wrong(f"{where}.type", f"{kind!r} is none of b, c, u and p")
    if kind == "p":
        return kind, 0, 0
    if kind and node.get("major") is not None:
        major = _integer(f"{where}.major", node["major"])
        minor = _integer(f"{where}.minor", node.get("minor", 0))
    else:
        found, major, minor = _on_host(where, host)
        if kind and found != ("c" if kind == "u" else kind):
            raise _wrong(f"{where}.type", f"{host} is a device of type {found}, not {kind}")
        kind = kind or found
    return "c" if kind == "u" else kind, major, minor


def _on_host(where: str, host: str) -> tuple[str, int, int]:
    try:
        status = os.stat(host)
    except (OSError, ValueError) as err:
        raise _wrong(f"{where}.hostPath", str(err)) from err
    if stat.S_ISBLK(status.st_mode):
        kind = "b"
    elif stat.S_ISCHR(status.st_mode):
        kind = "c"
    else:
        raise _wrong(f"{where}.hostPath", f"{host} is not a device")
    return kind, os.major(status.st_rdev), os.minor(status.st_rdev)


def _mode(host: str) -> int:
    try:
        return stat.S_IMODE(os.stat(host).st_mode)
    except OSError:  # numbers were given; runc's default for a node of unknown mode
        return 0o666


def _integer(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise _wrong(where, f"{value!r} is not a number of 32 bits")
    return value


def _add_net_device(spec: Document, where: str, device: Any) -> None:
    """Move an interface of the host into the container (CDI 1.1, runtime-spec 1.3)."""
    host = _text(where, device, "hostInterfaceName")
    name = _text(where, device, "name")
    spec["linux"].setdefault("netDevices", {})[host] = {"name": name}


def _add_mount(spec: Document, where: str, mount: Any) -> None:
    """Add a mount, in place of another one at its destination."""
    destination = _absolute(where, mount, "containerPath")
    options = mount.get("options") or []
    if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
        raise _wrong(f"{where}.options", "is not a list of texts")
    kind = _text(where, mount, "type", needed=False) or "bind"
    made = {
        "destination": destination,
        "type": kind,
        "source": _text(where, mount, "hostPath"),
        "options": options,
    }
    if kind == "bind":
        made["options"] = [*_bind_options(spec, options), *options]
    mounts: list[Document] = spec["mounts"]
    mounts[:] = [each for each in mounts if each["destination"] != destination]
    mounts.append(made)


def _bind_options(spec: Document, options: Sequence[str]) -> list[str]:
    """Return what a bind lacks to be one, and to have the container's owners in it."""
    made = [] if {"bind", "rbind"} & set(options) else ["rbind"]
    namespaces = spec["linux"].get("namespaces", ())
    if any(each["type"] == "user" for each in namespaces) and "idmap" not in options:
        made.append("idmap")
    return made


def _add_hook(spec: Document, where: str, hook: Any) -> None:
    kind = _text(where, hook, "hookName")
    if kind not in HOOKS:
        raise _wrong(f"{where}.hookName", f"{kind!r} is none of {', '.join(HOOKS)}")
    made: Document = {"path": _absolute(where, hook, "path")}
    made |= {name: hook[name] for name in ("args", "env", "timeout") if hook.get(name) is not None}
    spec.setdefault("hooks", {}).setdefault(kind, []).append(made)


def _add_gid(spec: Document, where: str, gid: Any) -> None:
    """Add a group; 0 is never added: it would give more than a device."""
    number = _integer(where, gid)
    gids: list[int] = spec["process"]["user"].setdefault("additionalGids", [])
    if number and number not in gids:
        gids.append(number)


def _set_intel_rdt(spec: Document, rdt: Any) -> None:
    if not isinstance(rdt, dict):
        raise _wrong("intelRdt", "is not an object")
    spec["linux"]["intelRdt"] = {name: rdt[name] for name in _RDT if name in rdt}


_CHANGES: dict[str, Callable[[Document, str, Any], None]] = {
    "env": _set_env,
    "deviceNodes": _add_device,
    "netDevices": _add_net_device,
    "mounts": _add_mount,
    "hooks": _add_hook,
    "additionalGids": _add_gid,
}
