"""User namespaces: their making, and ids seen from both sides (man 7 user_namespaces)."""

from __future__ import annotations

import os

from runtimeshim.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Mappings = Sequence[Mapping[str, int]]


def create(uids: Mappings, gids: Mappings) -> int:
    """Make a user namespace with these id maps; returns its nsfs fd. Raises OSError.

    A process of its own makes it and ends at once: the fd is what keeps it.
    """
    ready, told = os.pipe2(os.O_CLOEXEC)
    held, hold = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(hold)
        _be_held(told, held)
    try:
        os.close(told)
        os.close(held)
        errno = int.from_bytes(os.read(ready, 1) or b"\x01", "little")
        if errno:
            raise OSError(errno, f"unshare(CLONE_NEWUSER): {os.strerror(errno)}")
        for name, mappings in (("uid_map", uids), ("gid_map", gids)):
            _write_map(f"/proc/{pid}/{name}", mappings)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(hold)
        os.close(ready)
        os.waitpid(pid, 0)


def _be_held(told: int, held: int) -> None:
    """Make the namespace, tell the errno of it, and wait until it has been taken."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(told, b"\0")
        os.read(held, 1)
    except OSError as err:
        os.write(told, bytes([min(err.errno or 1, 255)]))
    finally:
        os._exit(0)


def _write_map(path: str, mappings: Mappings) -> None:
    """Write all lines by one write: the kernel takes no second one."""
    lines = [f"{m['containerID']} {m['hostID']} {m['size']}" for m in mappings]
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "\n".join(lines).encode())
    except OSError as err:
        raise OSError(err.errno, f"{path} of {lines}: {err.strerror}") from err
    finally:
        os.close(fd)


def host_id(mappings: Mappings, inside: int) -> int | None:
    """Return the host's id of one of the namespace; None where it has none."""
    for mapping in mappings:
        offset = inside - mapping["containerID"]
        if 0 <= offset < mapping["size"]:
            return mapping["hostID"] + offset
    return None


def become_root() -> None:
    """Take on the ids 0 of the user namespace that was just entered."""
    os.setgroups(())
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
