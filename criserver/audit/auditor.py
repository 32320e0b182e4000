"""The sweep over all checks, now and then or when somebody asks.

A stray counts when two sweeps, a while apart, have found the same one, with nothing being done to
its owner in between: what is being made or removed at this moment is nobody's for moments only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from api.errors import CRIError
from criserver.audit.stray import Check, Stray
from criserver.config_observability import AuditConfig

log = logging.getLogger(__name__)

# For so long at least a stray has to be one: what is on its way out is gone by then.
SETTLE_SECONDS = 1.0

# How often it is looked whether the sweeps that are off have been switched on.
IDLE_SECONDS = 60.0


# Takes what there is now, and what has been removed since the start, by kind with zeros.
Report = Callable[[Mapping[str, int], Mapping[str, int]], None]


class Auditor:
    """Runs the checks."""

    def __init__(
        self,
        checks: Sequence[Check],
        busy: Callable[[str], bool],
        report: Report = lambda found, removed: None,
        settle: float = SETTLE_SECONDS,
    ) -> None:
        """`busy` tells whether something is being done to the object with this id."""
        self._checks = checks
        self._busy = busy
        self._report = report
        self._settle = settle
        self._lock = asyncio.Lock()
        self._before: dict[Stray, float] = {}  # since when each is found, by time.monotonic()
        self._told: frozenset[Stray] = frozenset()  # in the log
        kinds = [kind for check in checks for kind in check.kinds]
        self.strays: Counter[str] = Counter(dict.fromkeys(kinds, 0))
        self.removed: Counter[str] = Counter(dict.fromkeys(kinds, 0))

    async def audit_forever(self, settings: Callable[[], AuditConfig]) -> None:
        """Sweep again and again, as the settings of the moment say."""
        while True:
            await asyncio.sleep(settings().interval_seconds or IDLE_SECONDS)
            if not settings().interval_seconds:
                continue
            async with self._lock:
                found, _ = await self._sweep()
                for stray in set(found) - self._told:
                    log.warning("audit: %s %s is a stray", stray.kind, stray.name)
                self._told = frozenset(found)
                if settings().remove:
                    await self._remove(found)

    async def audit(self, *, fix: bool) -> dict[str, Any]:
        """Return {strays, removed, failures}; see docs/troubleshooting.md.

        It takes SETTLE_SECONDS if there is something to be seen twice.
        """
        async with self._lock:
            self._before = {}
            found, failures = await self._sweep()
            if self._before:
                await asyncio.sleep(self._settle)
                found, failures = await self._sweep()
            removed: list[Stray] = []
            if fix:
                removed, more = await self._remove(found)
                failures += more
        return {
            "strays": [asdict(stray) for stray in found],
            "removed": [asdict(stray) for stray in removed],
            "failures": failures,
        }

    async def _sweep(self) -> tuple[list[Stray], list[str]]:
        """Return what is found since long enough, and what could not be looked at."""
        began = time.monotonic()
        candidates: set[Stray] = set()
        failures: list[str] = []
        for check in self._checks:
            try:
                found = await check.find()
            except (OSError, CRIError) as err:
                failures.append(f"{', '.join(check.kinds)} cannot be looked at: {err}")
                log.warning("audit: %s", failures[-1])
                continue
            candidates.update(stray for stray in found if not self._is_busy(stray))
        again = {stray: since for stray, since in self._before.items() if stray in candidates}
        self._before = dict.fromkeys(candidates, began) | again
        confirmed = sorted(
            (stray for stray, since in again.items() if began - since >= self._settle),
            key=lambda stray: (stray.kind, stray.name),
        )
        self._count(confirmed)
        return confirmed, failures

    def _is_busy(self, stray: Stray) -> bool:
        return bool(stray.owner) and self._busy(stray.owner)

    def _count(self, confirmed: Iterable[Stray]) -> None:
        for kind in self.strays:
            self.strays[kind] = 0
        self.strays.update(stray.kind for stray in confirmed)
        self._report(self.strays, self.removed)

    async def _remove(self, strays: Iterable[Stray]) -> tuple[list[Stray], list[str]]:
        """Remove what may be; returns what is gone, and what has failed."""
        gone: list[Stray] = []
        failures: list[str] = []
        for check in self._checks:  # in the order in which they depend on each other
            for stray in strays:
                if stray.kind not in check.kinds or not stray.removable or self._is_busy(stray):
                    continue
                try:
                    await check.remove(stray)
                except (OSError, CRIError) as err:
                    failures.append(f"{stray.kind} {stray.name} cannot be removed: {err}")
                    log.warning("audit: %s", failures[-1])
                    continue
                log.warning(
                    "audit: removed %s %s, which belonged to nobody", stray.kind, stray.name
                )
                self.removed[stray.kind] += 1
                self.strays[stray.kind] -= 1
                gone.append(stray)
        self._report(self.strays, self.removed)
        return gone, failures
