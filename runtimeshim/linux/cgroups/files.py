"""Cgroup directories and their files: plain reads, writes and tree walks, with errors that explain.

Works on any directory, so that tests run on a temporary one.
"""

from __future__ import annotations

import errno
import os
import time

from runtimeshim.linux.signals import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PROCS = "cgroup.procs"

# Its name and its own "."; each subdirectory has a ".." to it. File systems that do not count
# (btrfs, overlayfs) say 1.
_LINKS_OF_A_LEAF = 2

# rmdir answers EBUSY until the last task has passed through do_exit: 0.5 ms doubling ten times
# is half a second in all, far beyond what an exit takes, and short enough to report a leak.
REMOVE_RETRIES = 10
REMOVE_FIRST_DELAY = 0.0005

# A process that forks faster than it is killed is caught in a few rounds, or never.
KILL_ROUNDS = 100
KILL_DELAY = 0.001

# A process in an uninterruptible sleep is not frozen before that ends: 5 s covers a slow disk.
FREEZE_SECONDS = 5.0
FREEZE_DELAY = 0.0005


# What the kernel says of a value, or of a name, that it cannot take.
UNACCEPTABLE = frozenset(
    {errno.EINVAL, errno.ERANGE, errno.E2BIG, errno.EOPNOTSUPP, errno.ENAMETOOLONG}
)


class CgroupError(OSError):
    """A cgroup operation failed: errno, what was tried and why, and the file or directory."""

    @property
    def is_unacceptable(self) -> bool:
        """Tell whether nobody could do it, since what was asked for is wrong."""
        return self.errno in UNACCEPTABLE


def write(path: str, value: str) -> None:
    """Write one value to a control file; the error names the value and the file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as err:
        raise _explained(err, f"write {value!r}", path) from err


def write_each(path: str, values: list[str]) -> None:
    """Write several values to one control file, each by a write(2) of its own."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as err:
        raise _explained(err, "open", path) from err
    try:
        for value in values:
            try:
                os.write(fd, value.encode())
            except OSError as err:
                raise _explained(err, f"write {value!r}", path) from err
    finally:
        os.close(fd)


def read(path: str) -> str:
    """Read a control file without its trailing newline."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as err:
        raise _explained(err, "read", path) from err


def counter(path: str, key: str) -> int:
    """Return the value of `key` in a file of "key value" lines; 0 without the key or the file.

    A file that is gone means that its cgroup is gone, not that something happened in it.
    """
    try:
        lines = read(path).splitlines()
    except CgroupError as err:
        if err.errno in (errno.ENOENT, errno.ENODEV):
            return 0
        raise
    for line in lines:
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _explained(err: OSError, what: str, path: str) -> CgroupError:
    number = err.errno or errno.EIO
    return CgroupError(number, f"{what}: {os.strerror(number)}", path)


def checked(path: str) -> str:
    """Return a cgroup path in the form "/a/b"; "" is the root of the hierarchy.

    A relative path or one with ".." is refused: it could name another's cgroup.
    """
    if not path.startswith("/") or "\0" in path:
        raise CgroupError(
            errno.EINVAL, "cgroup path is not absolute, and systemd's units need cgroup v2", path
        )
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CgroupError(errno.EINVAL, "cgroup path contains '..'", path)
    return "".join("/" + part for part in parts)


def checked_leaf(path: str) -> str:
    """As `checked`, and refuse the root: its processes and children are not ours to end."""
    leaf = checked(path)
    if not leaf:
        raise CgroupError(errno.EINVAL, "the root cgroup cannot be killed or removed", path)
    return leaf


def make(root: str, path: str) -> list[str]:
    """Make `root` + `path` and its missing parents; returns what was made, topmost first."""
    directory = root + path
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return []
    except FileNotFoundError as err:
        if not path:
            raise _explained(err, "mkdir", directory) from err
        made = make(root, path[: path.rindex("/")])
        return made + make(root, path)
    except OSError as err:
        raise _explained(err, "mkdir", directory) from err
    return [directory]


def remove_made(made: list[str]) -> None:
    """Undo `make` after a later step failed; a directory in use meanwhile is left to its user."""
    for directory in reversed(made):
        try:
            os.rmdir(directory)
        except OSError:
            continue


def below(directory: str) -> Iterator[str]:
    """Yield a cgroup and all its descendants, parents first; nothing when it does not exist."""
    try:
        with os.scandir(directory) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as err:
        if err.errno == errno.ENODEV:  # removed while it was open
            return
        raise
    yield directory
    for child in children:
        yield from below(child)


def _with_descendants(directory: str) -> Iterable[str]:
    """As `below`, without a listing where the kernel counts no subdirectories.

    A container's cgroup seldom has any, and it has forty files.
    """
    try:
        if os.stat(directory).st_nlink == _LINKS_OF_A_LEAF:
            return (directory,)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return below(directory)


def pids(directory: str) -> list[int]:
    """Return the processes of a cgroup and its descendants, in the caller's PID namespace.

    Processes that the caller's PID namespace cannot see are listed as 0 by the kernel and left
    out: signalling 0 would hit the caller's own process group.
    """
    found: dict[int, None] = {}
    for cgroup in _with_descendants(directory):
        try:
            text = read(f"{cgroup}/{PROCS}")
        except CgroupError as err:
            # Gone meanwhile, or a threaded cgroup, whose processes its domain lists.
            if err.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                continue
            raise
        found.update((int(pid), None) for pid in text.split())
    found.pop(0, None)
    return list(found)


def signal_all(processes: list[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to each process; those that ended meanwhile are passed over."""
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def await_frozen(directory: str, frozen: Callable[[], bool]) -> None:
    """Wait until `frozen`, bounded by FREEZE_SECONDS."""
    deadline = time.monotonic() + FREEZE_SECONDS
    while not frozen():
        if time.monotonic() > deadline:
            raise CgroupError(
                errno.EBUSY, "a process does not stop: it cannot be frozen", directory
            )
        time.sleep(FREEZE_DELAY)


def kill_until_empty(directory: str) -> None:
    """SIGKILL every process until none is left that has not been killed, bounded by KILL_ROUNDS.

    A killed process stays listed while it exits; a round that finds no new one ends the loop.
    """
    killed: set[int] = set()
    for _ in range(KILL_ROUNDS):
        fresh = [pid for pid in pids(directory) if pid not in killed]
        if not fresh:
            return
        signal_all(fresh)
        killed.update(fresh)
        time.sleep(KILL_DELAY)
    raise CgroupError(errno.EBUSY, "processes fork faster than they are killed", directory)


def remove(directory: str) -> None:
    """Remove a cgroup with its descendants; nothing to do when it does not exist."""
    for cgroup in reversed(list(below(directory))):
        _remove_one(cgroup)


def remove_if_empty(directory: str) -> bool:
    """Remove one cgroup, if it is there; False when somebody is in it, or below it."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise _explained(err, "rmdir", directory) from err
        return False
    return True


def _remove_one(directory: str) -> None:
    delay = REMOVE_FIRST_DELAY
    for attempt in range(REMOVE_RETRIES + 1):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise _explained(err, "rmdir", directory) from err
            if attempt == REMOVE_RETRIES:
                raise _in_use(directory) from err
            time.sleep(delay)
            delay *= 2
        else:
            return


def _in_use(directory: str) -> CgroupError:
    listed = " ".join(map(str, pids(directory))) or "none visible"
    return CgroupError(errno.EBUSY, f"cgroup is still in use (processes: {listed})", directory)
