"""update: other limits for a container, by flags or by a JSON document."""

from __future__ import annotations

import json
import sys

from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, UsageError, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import state
from runtimeshim.oci.state import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# flag -> where its value belongs in linux.resources
NUMBERS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "pids-limit": ("pids", "limit"),
}
SIZES = {
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
}
TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# No kernel since 5.16 has such a limit; callers that were written for older ones still ask for it.
PASSED_OVER = ("kernel-memory", "kernel-memory-tcp")
RDT = ("l3-cache-schema", "mem-bw-schema")

FLAGS = (
    Flag("resources r", "path", "linux.resources of the runtime-spec as JSON; - is stdin"),
    *(Flag(name, "number", f"linux.resources.{'.'.join(to)}") for name, to in NUMBERS.items()),
    *(Flag(name, "size", f"linux.resources.{'.'.join(to)}") for name, to in SIZES.items()),
    *(Flag(name, "text", f"linux.resources.{'.'.join(to)}") for name, to in TEXTS.items()),
    *(Flag(name, "size", "accepted, and without effect") for name in PASSED_OVER),
    *(Flag(name, "text", "not supported") for name in RDT),
)
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Apply the limits; what is not named stays as it is."""
    (container_id,) = exactly(arguments, "ID")
    changed = resources(options)
    manager = cgroups.manager()
    with state.opened(context.root, container_id, lock=True) as directory:
        record = directory.record()
        if not record.is_alive():
            raise ContainerError("container not running")
        manager.apply(record.cgroup_path, changed)
    return 0


def resources(options: Options) -> dict[str, Any]:
    """Return linux.resources of --resources, or else of the other flags. Raises UsageError."""
    if options.text("resources"):
        return _read(options.text("resources"))
    for name in RDT:
        if options.text(name):
            raise UsageError(f"--{name} is not supported")
    changed: dict[str, Any] = {}
    for name, (section, field) in NUMBERS.items():
        number = options.number(name)
        if number is not None:
            changed.setdefault(section, {})[field] = number
    for name, (section, field) in SIZES.items():
        if options.text(name):
            changed.setdefault(section, {})[field] = size(options.text(name))
    for name, (section, field) in TEXTS.items():
        if options.text(name):
            changed.setdefault(section, {})[field] = options.text(name)
    return changed


def size(given: str) -> int:
    """Return the bytes of a size like 4096, 64m or 1g; -1 is no limit. Raises UsageError."""
    number = given.lower().removesuffix("b")
    unit = UNITS.get(number[-1:], 1)
    try:
        return int(number if unit == 1 else number[:-1]) * unit
    except ValueError:
        raise UsageError(f"{given!r} is no size like 4096, 64m or 1g") from None


def _read(path: str) -> dict[str, Any]:
    try:
        if path == "-":
            given = json.load(sys.stdin)
        else:
            with open(path, "rb") as source:
                given = json.load(source)
    except ValueError as err:
        raise UsageError(f"--resources: {err}") from err
    if not isinstance(given, dict):
        raise UsageError("--resources: no JSON object")
    return given
