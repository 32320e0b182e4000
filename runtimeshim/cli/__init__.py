"""The OCI command line, a drop-in for runc: the executor without daemon and spawner.

What a verb needs is imported when it runs: the start of a container is not to wait for modules
that only `events` has a use for.
"""

from __future__ import annotations

import gc
import os
import sys

from runtimeshim.cli import sealed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Their process is what a container's program replaces.
SEALED_VERBS = frozenset({"create", "run", "exec"})


def program() -> NoReturn:
    """Be the program: run the command line of this process, and exit."""
    code = main()
    sys.stdout.flush()
    # To take a hundred modules apart first would take as long as a container's setup.
    os._exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: the program's for run and exec."""
    gc.disable()  # a process of milliseconds: what it allocates goes with it
    given = sys.argv[1:] if argv is None else argv
    # A container of such a name costs a start too many, and no second parser of the command line.
    if not SEALED_VERBS.isdisjoint(given) and not sealed.is_sealed():
        sealed.run_again(given)
    from runtimeshim.cli import command  # not before the other start, which would import it again

    return command.run(given)
