"""create: all of a container but the start of its program; nobody is left behind to watch it."""

from __future__ import annotations

from runtimeshim.cli import launch
from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Options, exactly

FLAGS = launch.FLAGS
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Create the container of a bundle."""
    (container_id,) = exactly(arguments, "ID")
    launch.launch(context, options, container_id, held=True, detached=True)
    return 0
