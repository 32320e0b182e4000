"""list: the containers below --root."""

from __future__ import annotations

import pwd

from runtimeshim import json_text
from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, UsageError, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import state
from runtimeshim.oci.state import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = (
    Flag("format f", "format", "table (default) or json"),
    Flag("quiet q", "", "print the ids only"),
)
STOP_AT = None

COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")
MIN_WIDTH, GAP = 12, 3  # as runc sets its table


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print the containers, ordered by id."""
    exactly(arguments)
    form = options.text("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"unknown format {form!r}: table and json are known")
    found = containers(context)
    if options.flag("quiet"):
        lines = [str(each["id"]) for each in found]
    elif form == "json":
        lines = [json_text.dumps(found)]
    else:
        lines = table([COLUMNS, *([str(each[name]) for name in COLUMNS] for each in found)])
        lines[0] = lines[0].upper()
    for line in lines:
        print(line)
    return 0


def containers(context: Context) -> list[dict[str, Any]]:
    """Return the state of every container; one that is deleted meanwhile is not there."""
    found = []
    manager = cgroups.manager()
    for container_id in state.ids(context.root):
        try:
            with state.opened(context.root, container_id) as directory:
                record = directory.record()
                now = directory.status(record, manager)
        except ContainerError:
            continue
        found.append(state.describe(record, now) | {"owner": owner(record.owner)})
    return found


def owner(uid: int) -> str:
    """Return a user's name, or #UID where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def table(rows: list[Any]) -> list[str]:
    """Return the lines of a table; the last column is not padded."""
    widths = [max(MIN_WIDTH, *(len(row[n]) + GAP for row in rows)) for n in range(len(COLUMNS) - 1)]
    return [
        "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) + row[-1]
        for row in rows
    ]
