"""SELinux labels of files: the extended attribute security.selinux (man 5 selinux, man 7 xattr)."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ATTRIBUTE = "security.selinux"

# What a volume may be mounted from and never be relabelled: the host would lose its own labels.
# The same as in container engines that use the go-selinux library.
PROTECTED = frozenset(
    {"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home"}
    | {"/lib", "/lib64", "/media", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys"}
    | {"/system", "/tmp", "/usr", "/var", "/var/lib", "/var/log"}
)


def relabel(path: str, label: str) -> bool:
    """Give a file, or a directory with all below it, a label; returns whether anything was done.

    One whose root has the label already is left alone: to walk a volume of a million files takes
    minutes, at every start of a pod. So is one on a file system without labels. Links are not
    followed. Raises OSError; PermissionError for what is PROTECTED.
    """
    real = os.path.realpath(path)
    if real in PROTECTED:
        raise PermissionError(errno.EPERM, "a directory of the host is not relabelled", path)
    value = os.fsencode(label)
    try:
        if _label(real) == value:
            return False
        for each in _walk(real):
            _set(each, value)
        # The root comes last: a walk that was cut off is done again.
        os.setxattr(real, ATTRIBUTE, value, follow_symlinks=False)
    except OSError as err:
        if err.errno == errno.ENOTSUP:
            return False
        raise
    return True


def _label(path: str) -> bytes | None:
    """Return a file's label, with or without the NUL that some tools write behind it."""
    try:
        return os.getxattr(path, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0")
    except OSError as err:
        if err.errno == errno.ENODATA:
            return None
        raise


def _walk(root: str) -> Iterator[str]:
    """Yield all that is below a directory, on this file system and those mounted in it."""
    pending = [root] if os.path.isdir(root) else []
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    yield entry.path
        except FileNotFoundError:  # removed meanwhile
            continue


def _set(path: str, value: bytes) -> None:
    try:
        os.setxattr(path, ATTRIBUTE, value, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as err:
        # A file system without labels, or a read-only one, mounted below the volume.
        if err.errno not in (errno.ENOTSUP, errno.EROFS):
            raise
