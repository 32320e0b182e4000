"""Cgroups that only remember whether they are frozen."""

from __future__ import annotations

from collections.abc import Mapping

from runtimeshim.linux.cgroups import CgroupManager, OomWatch


class FakeCgroups(CgroupManager):
    """For tests of what is decided by a cgroup's state, not of cgroups."""

    version = 2
    controllers: frozenset[str] = frozenset()
    swap = False

    def __init__(self) -> None:
        self.frozen = False

    def create(self, path: str) -> None:
        raise NotImplementedError

    def apply(self, path: str, resources: Mapping[str, object]) -> None:
        raise NotImplementedError

    def join(self, path: str, pid: int) -> None:
        raise NotImplementedError

    def join_own(self, path: str, name: str, init: int) -> str:
        raise NotImplementedError

    def watch_oom(self, path: str) -> OomWatch | None:
        raise NotImplementedError

    def remove_empty(self, path: str) -> bool:
        raise NotImplementedError

    def pids(self, path: str) -> list[int]:
        return []

    def kill(self, path: str) -> None:
        raise NotImplementedError

    def freeze(self, path: str) -> None:
        self.frozen = True

    def thaw(self, path: str) -> None:
        self.frozen = False

    def is_frozen(self, path: str) -> bool:
        return self.frozen

    def oom_kills(self, path: str) -> int:
        return 0

    def delete(self, path: str) -> None:
        raise NotImplementedError

    def mounts(self) -> list[tuple[str, str, str]]:
        return []

    def directories(self, path: str) -> list[tuple[str, str]]:
        return []
