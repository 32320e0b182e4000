"""state: the state of the runtime-spec, as JSON."""

from __future__ import annotations

from runtimeshim import json_text
from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import state

FLAGS: tuple[Flag, ...] = ()
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print the state."""
    (container_id,) = exactly(arguments, "ID")
    with state.opened(context.root, container_id) as directory:
        record = directory.record()
        now = directory.status(record, cgroups.manager())
    members = [
        f'  "{name}": {json_text.dumps(value)}'
        for name, value in state.describe(record, now).items()
    ]
    print("{", ",\n".join(members), "}", sep="\n")
    return 0
