"""delete: what is left of a container goes."""

from __future__ import annotations

from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import lifecycle, state
from runtimeshim.oci.state import NotFoundError

FLAGS = (Flag("force f", "", "kill it if it runs; one that does not exist is no error"),)
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Delete the container."""
    (container_id,) = exactly(arguments, "ID")
    force = options.flag("force")
    try:
        with state.opened(context.root, container_id, lock=True) as directory:
            warnings = lifecycle.delete(directory, cgroups.manager(), force=force)
    except NotFoundError:
        if not force:
            raise
        return 0
    for warning in warnings:
        context.log.warning(warning)
    return 0
