"""Checks of what the image store and the network keep: they find and remove their own."""

from __future__ import annotations

from collections.abc import Sequence

from criserver.audit.stray import Stray
from criserver.runtime import Runtime


class Images:
    """Writable layers, layers, blobs, partial blobs and views of nobody."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._strays = runtime.images.strays

    @property
    def kinds(self) -> Sequence[str]:
        """See imageservice.strays."""
        return self._strays.KINDS

    def _containers(self) -> set[str]:
        containers = self._runtime.containers.mirror
        return {each.id for each in (*containers.made(), *containers.unmade())}

    async def find(self) -> list[Stray]:
        """Find them."""
        there = self._strays.look()
        found = self._strays.compare(there, self._containers())
        return [Stray(one.kind, one.name, one.mark, one.owner) for one in found]

    async def remove(self, stray: Stray) -> None:
        """Remove it unless somebody has it by now."""
        if not (stray.owner and stray.owner in self._containers()):
            await self._strays.remove(stray.kind, stray.name)


class Network:
    """Links, leases, host ports and CNI attachments of nobody."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def kinds(self) -> Sequence[str]:
        """See podsandbox.network.strays."""
        return self._runtime.network.STRAY_KINDS

    def _sandboxes(self) -> set[str]:
        sandboxes = self._runtime.sandboxes.mirror
        return {each.id for each in (*sandboxes.made(), *sandboxes.unmade())}

    async def find(self) -> list[Stray]:
        """Find them."""
        found = await self._runtime.network.strays(self._sandboxes)
        return [Stray(one.kind, one.name, one.mark, one.owner) for one in found]

    async def remove(self, stray: Stray) -> None:
        """Remove it unless somebody has it by now."""
        if not (stray.owner and stray.owner in self._sandboxes()):
            await self._runtime.network.remove_stray(stray.kind, stray.name)
