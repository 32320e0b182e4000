"""What a test may leave behind on the machine, as sets that can be compared.

A snapshot reads the kernel itself, not the runtime: links, mounts (pinned and named namespaces are
mounts of nsfs), cgroups of every hierarchy, processes, nftables objects, and files in directories
that only the runtime writes to. Nothing here knows what the runtime believes to have cleaned up.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runtimeshim.cli import sealed

# All private names of this session hold it: directories, and through them command lines,
# mount sources and environments of the processes that belong to the session.
SESSION = f"cri-{os.getpid()}-"
SESSION_VARIABLE = "CRISERVER_TEST_SESSION"

# Namespaces and what is in them are destroyed by a kernel worker after their last user has gone.
SETTLE_SECONDS = 10.0

# What processes of spawners call themselves that are there without a container or a request.
STANDING_BY = ("shim-template", "worker-standby")

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# Kept by the plugins of containernetworking themselves, so shared by all sandboxes and runs.
NAMED_NAMESPACES = "/run/netns"  # bound to itself by the first `ip netns add`, for good
CNI_STATE = (Path("/var/lib/cni"), Path(NAMED_NAMESPACES))
CNI_KEPT_FILES = ("lock", "last_reserved_ip.")
CNI_KEPT_CHAINS = ("CNI-HOSTPORT-", "CNI-FORWARD", "CNI-ADMIN")


@dataclass(frozen=True)
class Snapshot:
    """What there was at one moment; each entry is one line that a person can find again."""

    links: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    processes: frozenset[str]
    nftables: frozenset[str]
    files: frozenset[str]

    def added_since(self, before: Snapshot) -> list[str]:
        """The entries that `before` has not, each with its kind in front."""
        return [
            f"{field.name}: {entry}"
            for field in fields(self)
            for entry in sorted(getattr(self, field.name) - getattr(before, field.name))
        ]


def snapshot(directories: Collection[Path] = ()) -> Snapshot:
    """What is there now; `files` are those below `directories` and the CNI plugins' own state."""
    ours = session_processes()
    return Snapshot(
        links=frozenset(links()),
        mounts=frozenset(mounts()),
        cgroups=frozenset(cgroups(ours)),
        processes=frozenset(f"{pid} {name}" for pid, name in ours.items()),
        nftables=frozenset(nftables()),
        files=frozenset(files([*directories, *CNI_STATE])),
    )


def assert_nothing_left(
    before: Snapshot,
    directories: Collection[Path] = (),
    *,
    kept: Callable[[str], bool] = lambda line: False,
    settle: float = SETTLE_SECONDS,
) -> None:
    """Assert that everything now there was there `before`, waiting at most `settle` seconds.

    `directories` are those of the snapshot before; a line of `added_since` that is `kept` may be
    there. Raises AssertionError with a line for each entry that is left.
    """
    deadline = time.monotonic() + settle
    while left := [n for n in snapshot(directories).added_since(before) if not kept(n)]:
        if time.monotonic() > deadline:
            raise AssertionError("left behind:\n  " + "\n  ".join(left))
        time.sleep(0.1)


def links() -> Iterator[str]:
    """Network links of this network namespace; a link made anew has another index."""
    for link in Path("/sys/class/net").iterdir():
        index = read(link / "ifindex").strip()
        if index:
            yield f"{link.name} (index {index})"


def mounts() -> Iterator[str]:
    """Mounts of this mount namespace (man 5 proc: mountinfo)."""
    for line in read(PROC / "self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        root, target = left.split()[3:5]
        kind, source = right.split()[:2]
        # Those of interpreters are made once a boot, and stay.
        if target != NAMED_NAMESPACES and not target.startswith(sealed.INTERPRETERS):
            yield f"{target} ({kind} from {source}, root {root})"


def cgroups(ours: Collection[int]) -> Iterator[str]:
    """Cgroups of all hierarchies, except those that hold processes of others only."""
    for directory in directories_below(CGROUPS):
        pids = {int(pid) for pid in read(directory / "cgroup.procs").split()}
        if not pids or pids & set(ours):
            yield str(directory)


def directories_below(top: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(top):
        yield from (Path(parent, name) for name in names if not Path(parent, name).is_symlink())


def session_processes() -> dict[int, str]:
    """Processes of this session but itself: pid -> its start time and command line.

    They, or an ancestor, are started by this process, hold the session's private name, or are in
    another PID namespace than this one, as all containers and pods are that share not the host's.
    """
    table = process_table()
    ours = below({os.getpid(), *filter(is_isolated, table), *named_processes(SESSION)}, table)
    return {pid: table[pid][1] for pid in ours - {os.getpid()}}


def named_processes(name: str) -> set[int]:
    """Processes that hold a private name (see `holds`) themselves."""
    return {pid for pid in process_table() if holds(pid, name)}


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`: pid -> start time and command line. Not `standing_by`."""
    table = process_table()
    return {other: table[other][1] for other in below({pid}, table) - {pid} - standing_by()}


def standing_by() -> set[int]:
    """The processes of spawners that are there without a container: they end with their spawner."""
    return {
        int(directory.name)
        for directory in PROC.iterdir()
        if directory.name.isdigit() and read(directory / "comm").strip() in STANDING_BY
    }


ProcessTable = dict[int, tuple[int, str]]  # pid -> parent, and what a person knows it by


def process_table() -> ProcessTable:
    table: ProcessTable = {}
    for directory in PROC.iterdir():
        status = read(directory / "stat").rpartition(") ")[2].split()
        # Else it exited while we looked, or before: reaping what it adopted is up to pid 1.
        if directory.name.isdigit() and status and status[:2] != ["Z", "1"]:
            name = f"started {status[19]}: {command(directory)}"
            table[int(directory.name)] = (int(status[1]), name)
    return table


def below(roots: Collection[int], table: ProcessTable) -> set[int]:
    """The processes of `roots` and all their descendants."""

    def ancestry(pid: int) -> Iterator[int]:
        while pid in table:
            yield pid
            pid = table[pid][0]

    return {pid for pid in table if any(ancestor in roots for ancestor in ancestry(pid))}


def command(directory: Path) -> str:
    line = read(directory / "cmdline").replace("\0", " ").strip()
    return line or f"[{read(directory / 'comm').strip()}]"


def holds(pid: int, name: str) -> bool:
    """Whether a process has `name` in its command line, environment, open files or mounts."""
    directory = PROC / str(pid)
    if any(name in read(directory / file) for file in ("cmdline", "environ")):
        return True
    try:
        links = [directory / "exe", directory / "cwd", *(directory / "fd").iterdir()]
        if any(name in str(link.readlink()) for link in links):
            return True
        # Others of our mount namespace see our mounts too; one with a root of its own is ours.
        return name in read(directory / "mountinfo") and not (directory / "root").samefile("/")
    except OSError:
        return False  # it exited while we looked, or is a kernel thread


def is_isolated(pid: int) -> bool:
    """Whether a process is in another PID namespace than this one."""
    try:
        return (PROC / str(pid) / "ns/pid").readlink() != (PROC / "self/ns/pid").readlink()
    except OSError:
        return False  # it exited while we looked


def nftables() -> Iterator[str]:
    """Tables, chains, sets, maps, their elements and rules, without handles and counters."""
    result = subprocess.run(
        ["nft", "--json", "list", "ruleset"], capture_output=True, check=True, timeout=60
    )
    for entry in json.loads(result.stdout)["nftables"]:
        for kind, item in entry.items():
            if kind == "metainfo" or is_kept_chain(item) or is_iptables_frame(kind, item):
                continue
            elements = item.pop("elem", [])
            name = f"{item['family']} {item.get('table', item.get('name'))}"
            yield f"{name}: {kind} {json.dumps(without_counts(item), sort_keys=True)}"
            for element in elements:
                if '"expires"' not in (text := json.dumps(element)):  # that goes by itself
                    yield f"{name}: element {text} of {item['name']}"


def is_kept_chain(item: dict[str, Any]) -> bool:
    """Whether an nftables object is part of the frame that the CNI plugins put up once."""
    text = json.dumps(item)
    return any(f'"{name}' in text for name in CNI_KEPT_CHAINS)


def is_iptables_frame(kind: str, item: dict[str, Any]) -> bool:
    """Whether it is a table or base chain of iptables-nft, which makes them and never removes."""
    table = item["name"] if kind == "table" else item.get("table")
    base = kind == "table" or (kind == "chain" and "hook" in item)
    return base and item["family"] in ("ip", "ip6") and table in ("nat", "filter", "mangle", "raw")


def without_counts(value: Any) -> Any:
    """An nftables object without what changes while it stays the same object."""
    if isinstance(value, dict):
        dropped = ("handle", "counter", "packets", "bytes")
        return {key: without_counts(item) for key, item in value.items() if key not in dropped}
    if isinstance(value, list):
        return [without_counts(item) for item in value]
    return value


def files(directories: Iterable[Path]) -> Iterator[str]:
    """Files and directories below `directories`."""
    for top in directories:
        for parent, names, others in os.walk(top):
            for name in (*names, *others):
                if top not in CNI_STATE or not name.startswith(CNI_KEPT_FILES):
                    yield str(Path(parent, name))


def private_directories() -> list[Path]:
    """Directories of this session that are still there."""
    return [path for top in ("/run", "/var/lib") for path in sorted(Path(top).glob(f"{SESSION}*"))]


def read(path: Path) -> str:
    """A file of /proc or /sys; empty when what it describes has gone."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
