"""resume: let a paused container go on."""

from __future__ import annotations

from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.linux import cgroups
from runtimeshim.oci import state
from runtimeshim.oci.state import ContainerError

FLAGS: tuple[Flag, ...] = ()
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Thaw the container."""
    (container_id,) = exactly(arguments, "ID")
    manager = cgroups.manager()
    with state.opened(context.root, container_id, lock=True) as directory:
        record = directory.record()
        if not record.is_alive() or not manager.is_frozen(record.cgroup_path):
            raise ContainerError("container not paused")
        manager.thaw(record.cgroup_path)
    return 0
