"""Which mounts of a spec show mapped ids, and by which user namespace (config.md, Mounts)."""

from __future__ import annotations

import os

from runtimeshim.linux import userns
from runtimeshim.oci.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class IdMaps:
    """The user namespaces of id-mapped mounts, by the number of the mount."""

    __slots__ = ("_made", "by_mount")

    def __init__(self, spec: Mapping[str, Any], own: int | None) -> None:
        """Make what the mounts ask for; `own` is the container's. Raises SpecError, OSError.

        Mappings that are the container's own need no namespace beside it.
        """
        self._made: dict[str, int] = {}
        self.by_mount: dict[int, int] = {}
        for number, mount in enumerate(spec.get("mounts") or ()):
            if is_mapped(mount):
                self.by_mount[number] = self._find(spec.get("linux") or {}, mount, own)

    def _find(self, linux: Mapping[str, Any], mount: Mapping[str, Any], own: int | None) -> int:
        uids, gids = mount.get("uidMappings"), mount.get("gidMappings")
        same = (uids, gids) == (linux.get("uidMappings"), linux.get("gidMappings"))
        if own is not None and (same or not uids):
            return own
        if not uids or not gids:
            raise SpecError(f"mounts: {mount['destination']}: idmap without mappings")
        key = repr((uids, gids))
        if key not in self._made:
            self._made[key] = userns.create(uids, gids)
        return self._made[key]

    def close(self) -> None:
        """Let go of the namespaces that were made for mounts alone."""
        for fd in self._made.values():
            os.close(fd)
        self._made.clear()


def is_mapped(mount: Mapping[str, Any]) -> bool:
    """Tell whether a mount is to be id-mapped."""
    options = mount.get("options") or ()
    return bool(mount.get("uidMappings")) or "idmap" in options or "ridmap" in options
