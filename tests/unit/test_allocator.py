"""One heap for all threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A thread that finds no heap of its own is given a new one: 64 MiB of addresses, not of memory
# (glibc, malloc/arena.c, HEAP_MAX_SIZE). Sizes are too large for Python's own allocator.
SCRIPT = """
import threading, zlib
from pathlib import Path
from runtimeshim.linux import allocator
if {one}:
    allocator.use_one_arena()
def addresses():
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if "VmSize" in l)
    return int(line.split()[1]) // 1024
def work():
    held = [zlib.compressobj() for _ in range(4)]
    grown.append(addresses())
grown = []
before = addresses()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(grown[0] - before)
"""


@pytest.mark.parametrize(("one", "has_its_own"), [(True, False), (False, True)])
def test_a_thread_has_a_heap_of_its_own_unless_there_is_one_for_all(
    one: bool, has_its_own: bool
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(one=one)], capture_output=True, text=True, check=True
    )
    assert (int(ran.stdout) > 60) is has_its_own, ran.stdout
