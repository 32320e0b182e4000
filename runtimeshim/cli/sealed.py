"""The interpreter of a command that forks into a container: one that nobody can write to.

Until execve a container's init is this very program: an image whose entrypoint is /proc/self/exe
would otherwise reach the host's interpreter, and could overwrite it (CVE-2019-5736). What it finds
there instead is on an overlay without an upper layer, which is read-only for good: a mere read-only
mount could be made writable by a container with a volume of /run and CAP_SYS_ADMIN.

The first command of a boot mounts it, and starts anew from it; later ones are started from it by
cli/bin/runtimeshim, and spared a second start of Python. Where it cannot be mounted, that second
start is from a copy in sealed memory, made each time.
"""

from __future__ import annotations

import fcntl
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Below it, each interpreter by the path that it is called by; cli/bin/runtimeshim knows it too.
INTERPRETERS = "/run/runtimeshim/.interpreters"
_EMPTY = f"{INTERPRETERS}/.empty"  # an overlay takes two layers at least

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# Linux 6.3: the file is meant to be executed (vm.memfd_noexec).
_MFD_EXEC = 0x10

_MAIN = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
from runtimeshim.cli import program
program()
"""


def is_sealed() -> bool:
    """Tell whether this process runs from such a mount or copy, by asking the kernel."""
    if os.readlink("/proc/self/exe").startswith(f"{INTERPRETERS}/"):
        return bool(os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY)
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
    arguments = ["-I", "-S", "-X", "utf8", "-c", _MAIN, root, *argv]
    try:
        mounted = _mount(sys.executable)
        os.execv(mounted, [mounted, *arguments])
    except OSError:  # /run or overlays are not ours to have here
        os.execve(_copy(), [sys.executable, *arguments], os.environ)


def _mount(called: str) -> str:
    """Mount the directory of an interpreter, unless it is; returns the interpreter's path there."""
    interpreter, target = os.path.realpath(called), INTERPRETERS + called
    directory = os.path.dirname(target)
    os.makedirs(_EMPTY, 0o700, exist_ok=True)
    lock = os.open(_EMPTY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_copy(target, interpreter):
            _mount_layers(os.path.dirname(interpreter), directory)
    finally:
        os.close(lock)
    return target


def _mount_layers(source: str, directory: str) -> None:
    from runtimeshim.linux import mounts as m  # once a boot

    os.makedirs(directory, exist_ok=True)
    # By this file the interpreter finds its library from there (PEP 405).
    with open(f"{os.path.dirname(directory)}/pyvenv.cfg", "w", encoding="utf-8") as out:
        out.write(f"home = {sys.base_prefix}/bin\n")
    if os.path.ismount(directory):  # of an interpreter that has been replaced since
        m.umount(directory)
    flags = m.MS_RDONLY | m.MS_NOSUID | m.MS_NODEV
    m.mount("runtimeshim", directory, "overlay", flags, f"lowerdir={source}:{_EMPTY}")


def _is_copy(target: str, interpreter: str) -> bool:
    """Tell whether the mounted file is still the interpreter, as cli/bin/runtimeshim does."""
    try:
        return os.stat(target).st_mtime_ns == os.stat(interpreter).st_mtime_ns
    except FileNotFoundError:
        return False


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
