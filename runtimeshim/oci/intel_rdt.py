"""linux.intelRdt: the class of service that the container's processes run in (resctrl).

See config-linux.md, "IntelRdt", and Documentation/filesystems/resctrl.rst of the kernel.
"""

from __future__ import annotations

import errno
import os

from runtimeshim.oci.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

ROOT = "/sys/fs/resctrl"


def prepare(wanted: Mapping[str, Any], container_id: str, root: str = ROOT) -> str:
    """Make or find the class of service; returns its directory. Raises SpecError, OSError."""
    if not os.path.exists(f"{root}/schemata"):
        raise SpecError(f"linux.intelRdt: no resctrl filesystem is mounted at {root}")
    name = wanted.get("closID") or container_id
    if "/" in name or name in (".", ".."):
        raise SpecError(f"linux.intelRdt.closID: {name!r} is not a name")
    directory = f"{root}/{name}"
    schemata = _schemata(wanted)
    if not os.path.isdir(directory):
        if wanted.get("closID") and not schemata:
            raise SpecError(f"linux.intelRdt.closID: there is no class {name!r}")
        os.mkdir(directory)
        _write_schemata(directory, schemata)
    elif schemata:
        _check_schemata(directory, schemata)
    if wanted.get("enableMonitoring"):
        os.makedirs(f"{directory}/mon_groups/{container_id}", exist_ok=True)
    return directory


def _schemata(wanted: Mapping[str, Any]) -> list[str]:
    """Return the lines to write, in their order; memBwSchema goes before an MB line of l3's."""
    bandwidth = wanted.get("memBwSchema")
    cache = (wanted.get("l3CacheSchema") or "").splitlines()
    if bandwidth:
        cache = [line for line in cache if not line.startswith("MB:")] + [bandwidth]
    return [line for line in [*cache, *(wanted.get("schemata") or ())] if line]


def _write_schemata(directory: str, lines: list[str]) -> None:
    try:
        for line in lines:
            with open(f"{directory}/schemata", "w", encoding="ascii") as file:
                file.write(f"{line}\n")
    except OSError as err:
        os.rmdir(directory)
        raise OSError(
            err.errno, f"linux.intelRdt: {directory}: {lines}: {err.strerror}{_why(directory)}"
        ) from err


def _why(directory: str) -> str:
    """Return what the kernel has to say about the last failure."""
    try:
        with open(f"{os.path.dirname(directory)}/info/last_cmd_status", encoding="ascii") as file:
            return f" ({file.read().strip()})"
    except OSError:  # a kernel before 4.14 explains nothing
        return ""


def _check_schemata(directory: str, lines: list[str]) -> None:
    with open(f"{directory}/schemata", encoding="ascii") as file:
        there = {line.strip() for line in file}
    for line in lines:
        if line not in there:
            raise SpecError(f"linux.intelRdt: the class at {directory} has not {line!r}")


def join(directory: str, pid: int) -> None:
    """Put a process into the class; its children will be in it."""
    with open(f"{directory}/tasks", "w", encoding="ascii") as file:
        file.write(str(pid))


def remove(wanted: Mapping[str, Any], container_id: str, root: str = ROOT) -> None:
    """Remove the class that is the container's own; one with a closID is its owner's."""
    if wanted.get("closID"):
        return
    try:
        os.rmdir(f"{root}/{container_id}")
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
