"""ps: the processes of a container, with their pids on the host."""

from __future__ import annotations

import json
import os

from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, UsageError
from runtimeshim.linux import cgroups
from runtimeshim.oci import state

FLAGS = (Flag("format f", "format", "table (default): the lines of ps(1); json: the pids"),)
STOP_AT = 1
DEFAULT_ARGUMENTS = ("-ef",)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Print the processes."""
    form = options.text("format", "table")
    if not arguments or form not in ("table", "json"):
        raise UsageError("a container's ID is needed; formats are table and json")
    with state.opened(context.root, arguments[0]) as directory:
        pids = cgroups.manager().pids(directory.record().cgroup_path)
    if form == "json":
        print(json.dumps(pids))
        return 0
    header, *lines = _ps(arguments[1:] or DEFAULT_ARGUMENTS)
    if "PID" not in header.split():
        raise UsageError("the arguments for ps(1) have to leave it a column PID")
    print(header)
    for line in lines:
        if _pid(line, header.split().index("PID")) in pids:
            print(line)
    return 0


def _ps(arguments: list[str] | tuple[str, ...]) -> list[str]:
    """Return the lines of ps(1). Raises OSError, UsageError."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 1)]
        pid = os.posix_spawnp("ps", ["ps", *arguments], os.environ, file_actions=actions)
    except FileNotFoundError:
        os.close(ours)
        raise UsageError("ps(1) is not installed; without it there is `--format json`") from None
    finally:
        os.close(theirs)
    with open(ours, encoding="utf-8", errors="replace") as output:
        lines = output.read().splitlines()
    if os.waitpid(pid, 0)[1] or not lines:
        raise OSError(f"ps {' '.join(arguments)} failed")
    return lines


def _pid(line: str, column: int) -> int:
    fields = line.split()
    return int(fields[column]) if len(fields) > column and fields[column].isdigit() else 0
