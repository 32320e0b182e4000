"""What processes cost: proportional memory and processor time, as the kernel counts them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from tests.integration import leaks

KIB = 1024


def pss(pids: Iterable[int]) -> int:
    """Bytes of memory of these processes, shared pages in shares (man 5 proc, smaps_rollup)."""
    total = 0
    for pid in pids:
        for line in leaks.read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * KIB
    return total


def resident(pids: Iterable[int]) -> dict[int, int]:
    """Resident bytes of each process that is there."""
    pages = {pid: leaks.read(Path(f"/proc/{pid}/statm")).split() for pid in pids}
    return {pid: int(fields[1]) * 4096 for pid, fields in pages.items() if fields}


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of all threads of these processes (kernel, scheduler/sched-stats.rst)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int(leaks.read(task / "schedstat").split()[0])
    return total / 1e9


def below(*roots: int) -> set[int]:
    """The processes below these, without them."""
    return leaks.below(set(roots), leaks.process_table()) - set(roots)


def named(text: str) -> set[int]:
    """The processes whose command line holds `text`."""
    return {
        int(directory.name)
        for directory in leaks.PROC.iterdir()
        if directory.name.isdigit() and text in leaks.read(directory / "cmdline")
    }


def comm(pid: int) -> str:
    """What a process is called; empty when it has gone."""
    return leaks.read(Path(f"/proc/{pid}/comm")).strip()


def without(pids: Collection[int], name: str) -> set[int]:
    """These processes but those called `name`."""
    return {pid for pid in pids if comm(pid) != name}
