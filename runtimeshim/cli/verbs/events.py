"""events: a line of JSON for each OOM kill, and the statistics at intervals."""

from __future__ import annotations

import json
import select

from runtimeshim.cli import stats
from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, UsageError, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import state

FLAGS = (
    Flag("interval", "duration", "between two statistics (default: 5s)"),
    Flag("stats", "", "print the statistics once"),
)
STOP_AT = None

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print the events until the container ends."""
    (container_id,) = exactly(arguments, "ID")
    interval = seconds(options.text("interval", "5s"))
    with state.opened(context.root, container_id) as directory:
        record = directory.record()
    manager = cgroups.manager()
    poller = select.poll()
    poller.register(record.open_init(), select.POLLIN)
    kills = manager.oom_kills(record.cgroup_path)
    while True:
        _print("stats", container_id, stats.read(manager, record.cgroup_path))
        if options.flag("stats") or poller.poll(interval * 1000):
            return 0
        before, kills = kills, manager.oom_kills(record.cgroup_path)
        if kills > before:
            _print("oom", container_id, None)


def _print(kind: str, container_id: str, data: object) -> None:
    event = {"type": kind, "id": container_id} | ({} if data is None else {"data": data})
    print(json.dumps(event), flush=True)


def seconds(given: str) -> float:
    """Return the seconds of a duration like 500ms, 5s or 1m. Raises UsageError."""
    number = given.rstrip("hms")
    unit = UNITS.get(given[len(number) :])
    if unit is None or not number.replace(".", "", 1).isdecimal():
        raise UsageError(f"--interval: {given!r} is no duration like 500ms, 5s or 1m")
    value = float(number) * unit
    if value <= 0:
        raise UsageError("--interval: has to be greater than 0")
    return value
