"""The interpreter of a command that forks into a container: a copy that nobody can write.

Until execve a container's init is this very program: an image whose entrypoint is /proc/self/exe
would otherwise reach the host's interpreter, and could overwrite it (CVE-2019-5736). runc copies
itself for the same reason. The new interpreter starts without site and environment, so it starts
faster than the first.
"""

from __future__ import annotations

import fcntl
import os
import sys

TYPE_CHECKING = False  # typing's own would import it, and that takes longer than all the rest here
if TYPE_CHECKING:
    from typing import NoReturn

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# Linux 6.3: the file is meant to be executed (vm.memfd_noexec).
_MFD_EXEC = 0x10

# Ends by _exit: to take a hundred modules apart first would take as long as a container's setup.
_MAIN = """\
import os, sys
sys.path.insert(0, sys.argv.pop(1))
from runtimeshim.cli import main
code = main()
sys.stdout.flush()
os._exit(code)
"""


def is_sealed() -> bool:
    """Tell whether this process runs from a sealed copy, by asking the kernel."""
    fd = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:  # EINVAL: an ordinary file has no seals
        return False
    finally:
        os.close(fd)


def run_again(argv: list[str]) -> NoReturn:
    """Replace this process by a sealed one that is called with `argv`; fds and pid stay."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # -I, -S: modules are looked for where neither environment nor site has a say.
    flags = ["-I", "-S", "-X", "utf8", "-c", _MAIN]
    os.execve(_copy(), [sys.executable, *flags, root, *argv], os.environ)


def _copy() -> int:
    with open("/proc/self/exe", "rb", buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        copy = _memfd()
        offset = 0
        while offset < size:
            offset += os.sendfile(copy, source.fileno(), offset, size - offset)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
    return copy


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("runtimeshim", flags | _MFD_EXEC)
    except OSError:  # EINVAL before 6.3
        return os.memfd_create("runtimeshim", flags)
