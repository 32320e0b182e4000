"""What a cgroup manager does, whatever the version of the hierarchy."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class OomWatch:
    """A file that tells when the OOM killer may have come, for poll(2)."""

    __slots__ = ("eventfd", "fd")

    def __init__(self, fd: int, *, eventfd: bool) -> None:
        self.fd = fd  # the caller's to close
        self.eventfd = eventfd  # readable then, and to be read; else an exceptional condition

    def clear(self) -> None:
        """Take the notification, so that the next one is seen."""
        if self.eventfd:
            os.eventfd_read(self.fd)
        else:
            os.pread(self.fd, 4096, 0)


class CgroupManager(ABC):
    """The cgroups of one machine. Every failure is a CgroupError.

    Paths are absolute within the hierarchy: "/kubepods/podX/ID". No method waits for processes
    to end, but for a bounded time.
    """

    version: int  # 1 (also for hybrid) or 2
    controllers: frozenset[str]  # that can limit a container: "cpu", "memory", "hugetlb", …
    swap: bool  # the kernel accounts swap per cgroup

    @abstractmethod
    def create(self, path: str) -> None:
        """Make the cgroup and its parents, ready to be joined. On failure nothing new is left."""

    @abstractmethod
    def apply(self, path: str, resources: Mapping[str, object]) -> None:
        """Write OCI linux.resources; an absent field stays as it is.

        A `devices` list, even an empty one, makes the cgroup an allowlist of these rules and of
        devices.DEFAULT_RULES. A field whose controller the machine lacks is an error.
        """

    @abstractmethod
    def join(self, path: str, pid: int) -> None:
        """Move a process with its threads into the cgroup; 0 is the caller."""

    def begin(self, path: str, pid: int) -> None:
        """Make a cgroup that can only be made with a first process; it may join again by itself.

        For the process that has called `apply`: the limits are known to no other yet.
        """
        return

    def join_beside(self, path: str, init: int) -> None:
        """Move the caller into a container's cgroup; `init` is a process of the container.

        On version 2 a cgroup whose children are limited takes no process (EBUSY): where the
        container has made such children, the caller goes where `init` is.
        """
        self.join(path, 0)

    @abstractmethod
    def join_own(self, path: str, name: str, init: int) -> str:
        """Move the caller into the cgroup, to be killed apart from the others that are in it.

        Where the kernel lets it, that is a child `name`, without limits of its own; returns its
        path, "" for none. `init` is a process of the cgroup, whose own is taken where version 2
        admits no process to `path` since its cgroups below have controllers.
        """

    def open_own(self, path: str, name: str) -> tuple[str, int] | None:
        """Make the child of `join_own` for a process that is forked into it, on version 2.

        Returns its path and its directory's fd; None where `join_own` is the way.
        """
        return None

    @abstractmethod
    def remove_empty(self, path: str) -> bool:
        """Remove a cgroup of `join_own`; False when a process is still in it. Does not wait."""

    @abstractmethod
    def pids(self, path: str) -> list[int]:
        """Return the processes of the cgroup and its descendants; none when it does not exist."""

    @abstractmethod
    def kill(self, path: str) -> None:
        """SIGKILL every process of the cgroup and its descendants, frozen ones too.

        The caller must be in none of them: it would be frozen or killed with the rest.
        """

    @abstractmethod
    def freeze(self, path: str) -> None:
        """Stop every process of the cgroup and its descendants until `thaw`.

        Raises CgroupError (EBUSY), thawed again, when one does not stop within 5 s.
        """

    @abstractmethod
    def thaw(self, path: str) -> None:
        """Undo `freeze`."""

    @abstractmethod
    def is_frozen(self, path: str) -> bool:
        """Tell whether the cgroup has been frozen; False when it does not exist."""

    @abstractmethod
    def watch_oom(self, path: str) -> OomWatch | None:
        """Return what tells of the OOM killer in the cgroup; None where nothing does.

        It also tells when the cgroup is removed: `oom_kills` has to be asked.
        """

    @abstractmethod
    def oom_kills(self, path: str) -> int:
        """Return how many processes the OOM killer took in the cgroup; 0 when it is gone."""

    def was_oom_killed(self, path: str) -> bool:
        """Tell whether the OOM killer ended what was in a cgroup that is gone, counter and all.

        Asked of a cgroup whose last process got SIGKILL. False where a cgroup stays until `delete`.
        """
        return False

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove the cgroup with its descendants; idempotent. EBUSY is retried for 0.5 s."""

    @abstractmethod
    def mounts(self) -> list[tuple[str, str, str]]:
        """Return what a container's /sys/fs/cgroup needs: (name, fstype, options).

        Version 2 has one entry with the name "". On version 1 a tmpfs holds one directory per
        entry; the fstype "link" is a symlink `name` to `options`.
        """

    @abstractmethod
    def directories(self, path: str) -> list[tuple[str, str]]:
        """Return the cgroup's (name as in `mounts`, directory on the host) per hierarchy."""
