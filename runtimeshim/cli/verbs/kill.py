"""kill: a signal to the init, or to all processes of the container."""

from __future__ import annotations

from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, UsageError
from runtimeshim.linux import cgroups
from runtimeshim.linux.signals import signal
from runtimeshim.oci import lifecycle, state

FLAGS = (Flag("all a", "", "signal all processes, also after the init has ended"),)
STOP_AT = None


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Send the signal."""
    if not 1 <= len(arguments) <= 2:
        raise UsageError("these arguments are needed: ID [SIGNAL]")
    number = parse_signal(arguments[1] if len(arguments) == 2 else "TERM")
    with state.opened(context.root, arguments[0]) as directory:
        record = directory.record()
        lifecycle.kill(record, cgroups.manager(), number, everyone=options.flag("all"))
    return 0


def parse_signal(given: str) -> int:
    """Return the number of a signal given as 15, TERM, SIGTERM or RTMIN+3. Raises UsageError."""
    if given.isdigit():
        number = int(given)
    else:
        name, plus, offset = given.upper().removeprefix("SIG").partition("+")
        found = getattr(signal, f"SIG{name}", None)
        # SIG_BLOCK and the like are no signals.
        if found is None or name.startswith("_") or (plus and not offset.isdigit()):
            raise UsageError(f"unknown signal {given!r}")
        number = int(found) + int(offset or 0)
    if not 1 <= number < signal.NSIG:
        raise UsageError(f"unknown signal {given!r}")
    return number
