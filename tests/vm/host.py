"""What this machine must have for a VM, said before anything is downloaded or booted."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def check_architecture() -> None:
    """Exit with a message on a machine that no image can be made for."""
    if platform.machine() != "x86_64":
        sys.exit(f"hack/vm: it boots Debian's kernel of x86_64, and this is {platform.machine()}")


def check_memory(needed: int) -> None:
    """Exit with a message where less than `needed` bytes of memory are to be had."""
    available = _available_memory()
    if available < needed:
        sys.exit(
            f"hack/vm: the VM needs {_mebibytes(needed)} of memory, and {MEMINFO} says that "
            f"{_mebibytes(available)} are available: end something, or run it on a larger machine"
        )


def check_disk(directory: Path, needed: int, remedy: str) -> None:
    """Exit with a message and a `remedy` where less than `needed` bytes are free for files."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        sys.exit(
            f"hack/vm: {_mebibytes(needed)} are needed below {directory}, and {_mebibytes(free)} "
            f"are free: {remedy}"
        )


def _available_memory() -> int:
    """Return what can be used without swapping, in bytes (proc(5), MemAvailable)."""
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    return int(lines["MemAvailable"].removesuffix("kB")) << 10


def _mebibytes(size: int) -> str:
    return f"{size >> 20} MiB"
