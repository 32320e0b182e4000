"""List the processes of a container, as this machine sees them.

PID is the process's number here, IN CONTAINER the one that it has in there, TIME what it has used
of the CPUs. The container needs no `ps` for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import NamedTuple

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.containers import find_container
from criserver.cli.errors import CommandError
from criserver.cli.table import format_table, size
from runtimeshim.linux import cgroups, process_state

HEADER = ("PID", "IN CONTAINER", "PARENT", "USER", "STATE", "TIME", "MEMORY", "COMMAND")

TICKS = os.sysconf("SC_CLK_TCK")

MAX_COMMAND = 1000  # characters of a command line


class Process(NamedTuple):
    """What /proc tells of a process (man 5 proc)."""

    pid: int
    inner_pid: str
    parent: str
    user: str
    state: str
    cpu_seconds: float
    resident_bytes: int
    command: str

    def row(self) -> tuple[str, ...]:
        """Return its line of the table."""
        minutes, seconds = divmod(self.cpu_seconds, 60)
        return (
            str(self.pid),
            self.inner_pid,
            self.parent,
            self.user,
            self.state,
            f"{int(minutes)}:{seconds:05.2f}",
            size(self.resident_bytes),
            self.command,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("container", metavar="CONTAINER", help="id, beginning of an id, or name")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    with Client(options.endpoint) as client:
        path = _cgroup(client, options.container)
    processes = [read(pid) for pid in sorted(cgroups.manager().pids(path))]
    rows = [process.row() for process in processes if process is not None]
    sys.stdout.write(format_table(HEADER, rows))
    return 0


def _cgroup(client: Client, reference: str) -> str:
    """Return the path of a running container's cgroup. Raises CommandError."""
    container = find_container(client, reference)
    request = cri.ContainerStatusRequest(container_id=container.id, verbose=True)
    with client.doing(f"get the status of {reference}"):
        answer = client.runtime.ContainerStatus(request)
    if answer.status.state != cri.CONTAINER_RUNNING:
        raise CommandError(f"container {reference!r} does not run: it has no processes")
    path: str = json.loads(answer.info["info"])["runtimeSpec"]["linux"]["cgroupsPath"]
    return path


def read(pid: int) -> Process | None:
    """Return what is known of a process; None when it has ended meanwhile."""
    try:
        status = process_state.status(pid)
        command = process_state.command(pid, MAX_COMMAND)
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    user_ticks, system_ticks = int(fields[11]), int(fields[12])
    return Process(
        pid=pid,
        inner_pid=status["NSpid"].split()[-1],
        parent=status["PPid"],
        user=status["Uid"].split()[1],
        state=status["State"][:1],
        cpu_seconds=(user_ticks + system_ticks) / TICKS,
        resident_bytes=int(status.get("VmRSS", "0 kB").split()[0]) * 1024,
        command=command or f"[{status['Name']}]",
    )
