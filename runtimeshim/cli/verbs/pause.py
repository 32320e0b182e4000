"""pause: freeze all processes of a container."""

from __future__ import annotations

from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import state
from runtimeshim.oci.state import ContainerError

FLAGS: tuple[Flag, ...] = ()
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Freeze the container."""
    (container_id,) = exactly(arguments, "ID")
    manager = cgroups.manager()
    with state.opened(context.root, container_id, lock=True) as directory:
        record = directory.record()
        now = state.status(directory.path, record, manager)
        if now not in (state.RUNNING, state.CREATED):
            raise ContainerError(f"container not running or created: {now}")
        manager.freeze(record.cgroup_path)
    return 0
