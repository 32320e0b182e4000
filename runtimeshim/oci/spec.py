"""What a config.json asks for as a whole: the check before anything is made.

What is wrong is named by its field. The types and ranges are in oci/fields.py; here is what fields
ask of each other.
"""

from __future__ import annotations

import os

from runtimeshim.linux.cgroups import units
from runtimeshim.oci import fields, sysctls
from runtimeshim.oci.errors import SpecError
from runtimeshim.oci.schema import Wrong, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

# What lxcfs and its like show instead of the host's, as runc lets them.
OVER_PROC = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "net/dev",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)


def check(spec: Mapping[str, Any]) -> None:
    """Refuse a config.json that cannot be carried out. Raises SpecError."""
    try:
        fields.SPEC(spec)
        _check_process(spec["process"])
        _check_linux(spec, spec.get("linux") or {})
    except Wrong as err:
        raise SpecError(f"{err.path}: {err.reason}") from err


def check_process(process: Mapping[str, Any]) -> None:
    """Refuse a process object, of exec, that cannot be started. Raises SpecError."""
    try:
        try:
            fields.PROCESS(process)
        except Wrong as err:
            err.within("process")
            raise
        _check_process(process)
    except Wrong as err:
        raise SpecError(f"{err.path}: {err.reason}") from err


def check_resources(resources: Mapping[str, Any]) -> None:
    """Refuse limits, of update, that cannot be set. Raises SpecError."""
    try:
        fields.RESOURCES(resources)
    except Wrong as err:
        raise SpecError(f"linux.resources.{err.path}: {err.reason}") from err


def _check_process(process: Mapping[str, Any]) -> None:
    if not process.get("args"):
        raise Wrong("empty; there is nothing to execute", "process.args")
    _once("process.rlimits", [limit["type"] for limit in process.get("rlimits") or ()], "type")
    for number, limit in enumerate(process.get("rlimits") or ()):
        if limit["soft"] > limit["hard"]:
            raise Wrong(
                f"soft {limit['soft']} is above hard {limit['hard']}", f"process.rlimits[{number}]"
            )


def _once(field: str, names: Sequence[str], kind: str) -> None:
    """Refuse a name that is there twice."""
    if len(set(names)) < len(names):
        for number, name in enumerate(names):
            if name in names[:number]:
                raise Wrong(f"{name!r} is there twice", f"{field}[{number}].{kind}")


def _check_linux(spec: Mapping[str, Any], linux: Mapping[str, Any]) -> None:
    listed_namespaces = linux.get("namespaces") or ()
    kinds = [namespace["type"] for namespace in listed_namespaces]
    _once("linux.namespaces", kinds, "type")
    paths: dict[str, str] = {
        namespace["type"]: namespace.get("path") or "" for namespace in listed_namespaces
    }
    for number, namespace in enumerate(listed_namespaces):
        path = namespace.get("path")
        if path and path[:1] != "/":
            raise Wrong(
                f"{quote(path)} is not an absolute path", f"linux.namespaces[{number}].path"
            )
    for field in ("hostname", "domainname"):
        if spec.get(field) and "uts" not in paths:
            raise Wrong("set, but linux.namespaces has no uts", field)
    _check_user_namespace(linux, paths)
    if linux.get("timeOffsets"):
        _check_time_offsets(linux["timeOffsets"], paths)
    if linux.get("netDevices") and "network" not in paths:
        raise Wrong("set, but linux.namespaces has no network", "linux.netDevices")
    if linux.get("sysctl"):
        sysctls.check(linux["sysctl"], paths)
    if linux.get("personality") and linux["personality"].get("flags"):
        raise Wrong("no flag is supported", "linux.personality.flags")
    for number, device in enumerate(linux.get("devices") or ()):
        if device["type"] != "p" and (device.get("major") is None or device.get("minor") is None):
            raise Wrong("major and minor are needed", f"linux.devices[{number}]")
    _check_mounts(spec.get("mounts") or (), paths)
    _check_seccomp(linux.get("seccomp"))


def _check_user_namespace(linux: Mapping[str, Any], paths: Mapping[str, str]) -> None:
    uids, gids = linux.get("uidMappings"), linux.get("gidMappings")
    if "user" not in paths:
        for field, mappings in (("uidMappings", uids), ("gidMappings", gids)):
            if mappings:
                raise Wrong("set, but linux.namespaces has no user", f"linux.{field}")
    elif not paths["user"]:
        for field, mappings in (("uidMappings", uids), ("gidMappings", gids)):
            if not mappings:
                raise Wrong("empty: a new user namespace needs one", f"linux.{field}")


def _check_time_offsets(offsets: Mapping[str, Any], paths: Mapping[str, str]) -> None:
    if "time" not in paths:
        raise Wrong("set, but linux.namespaces has no time", "linux.timeOffsets")
    if paths["time"]:
        raise Wrong("set, but the time namespace is given by path", "linux.timeOffsets")
    for clock in offsets:
        if clock not in fields.CLOCKS:
            raise Wrong(
                f"{quote(clock)} is none of {', '.join(fields.CLOCKS)}", "linux.timeOffsets"
            )


def _check_mounts(mounts: Sequence[Mapping[str, Any]], paths: Mapping[str, str]) -> None:
    for number, mount in enumerate(mounts):
        options = mount.get("options") or ()
        bind = mount.get("type") == "bind" or "bind" in options or "rbind" in options
        if bind and not mount.get("source"):
            raise Wrong("empty: a bind mount needs one", f"mounts[{number}].source")
        if "proc" in mount["destination"]:
            _check_proc(mount, bind, f"mounts[{number}].destination")
        mapped = bool(mount.get("uidMappings"))
        if mapped != bool(mount.get("gidMappings")):
            raise Wrong("uidMappings and gidMappings go together", f"mounts[{number}]")
        if not (mapped or "idmap" in options or "ridmap" in options):
            continue
        if not bind:
            raise Wrong("only a bind mount can be id-mapped", f"mounts[{number}]")
        if not mapped and "user" not in paths:
            raise Wrong(
                "idmap needs mappings, or a user namespace of the container's",
                f"mounts[{number}].options",
            )


def _check_proc(mount: Mapping[str, Any], bind: bool, field: str) -> None:
    """Refuse what would take the place of procfs: labels and masks rely on it (CVE-2019-16884)."""
    path = "/" + os.path.normpath("/" + mount["destination"]).lstrip("/")
    if path == "/proc":
        procfs = mount.get("type") == "proc" and not bind
        if not procfs and os.path.normpath(mount.get("source") or "") != "/proc":
            raise Wrong("only procfs can be mounted on /proc", field)
    elif path.startswith("/proc/") and path not in OVER_PROC:
        raise Wrong(f"nothing can be mounted on {quote(path)}, as it is in /proc", field)


def _check_seccomp(profile: Mapping[str, Any] | None) -> None:
    if not profile:
        return
    if profile.get("listenerMetadata") and not profile.get("listenerPath"):
        raise Wrong("set without a listenerPath", "linux.seccomp.listenerMetadata")
    for number, rule in enumerate(profile.get("syscalls") or ()):
        if rule["action"] != "SCMP_ACT_NOTIFY":
            continue
        if not profile.get("listenerPath"):
            raise Wrong("SCMP_ACT_NOTIFY needs one", "linux.seccomp.listenerPath")
        for name in ("sendmsg", "write"):
            if name in rule["names"]:
                raise Wrong(
                    f"{name} cannot be notified: it is how the notifier gets its fd",
                    f"linux.seccomp.syscalls[{number}].names",
                )


def check_cgroup_path(path: str) -> None:
    """Refuse a path that is not below the hierarchy's root: all in it is killed at the end.

    Raises SpecError. Apart from `check`, since a command line may choose another path.
    """
    if units.is_unit(path):
        try:
            unit = units.parse(path)
        except OSError as err:
            raise SpecError(f"linux.cgroupsPath: {err.strerror}") from err
        if not unit.scope:
            raise SpecError(f"linux.cgroupsPath: {path!r} is a slice, which holds no processes")
        return
    parts = path.strip("/").split("/")
    if not path.startswith("/") or not parts[0] or {"", ".", ".."} & set(parts):
        raise SpecError(f"linux.cgroupsPath: {path!r} is not an absolute path below the root")
