"""run: create, start, and wait for the end, unless detached."""

from __future__ import annotations

from runtimeshim.cli import foreground, launch
from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, exactly
from runtimeshim.linux import syscalls

FLAGS = (
    *launch.FLAGS,
    Flag("detach d", "", "end as soon as the program runs"),
    Flag("keep", "", "leave the ended container to be deleted later"),
    Flag("no-subreaper", "", "leave orphans of the container to the caller"),
)
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Run the container of a bundle; returns its program's exit code, 0 when detached."""
    (container_id,) = exactly(arguments, "ID")
    detached = options.flag("detach")
    if not detached:
        foreground.hold_signals()
        if not options.flag("no-subreaper"):
            syscalls.set_child_subreaper()
    launched = launch.launch(context, options, container_id, held=False, detached=detached)
    container = launched.container
    container.start()
    failure = container.started()
    if failure is not None:
        foreground.wait(container.pid)
        _remove(context, launched)
        raise failure
    launched.directory.close()
    if detached:
        return 0
    code = foreground.wait(container.pid, launched.master)
    if not options.flag("keep"):
        _remove(context, launched)
    return code


def _remove(context: Context, launched: launch.Launched) -> None:
    for warning in launched.remove():
        context.log.warning(warning)
