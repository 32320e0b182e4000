"""start: let a created container's program run."""

from __future__ import annotations

from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import lifecycle, state

FLAGS: tuple[Flag, ...] = ()
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Start the program."""
    (container_id,) = exactly(arguments, "ID")
    with state.opened(context.root, container_id, lock=True) as directory:
        lifecycle.start(directory, cgroups.manager())
    return 0
