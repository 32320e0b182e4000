"""What the auditor has found that belongs to nobody, for the metrics to tell."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Leaks:
    """The result of the auditor's last sweep; counts are by kind, such as "mount" or "cgroup"."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.removed: dict[str, int] = {}
        self.swept_at = 0.0
        """Seconds since the epoch; 0 before the first sweep."""

    def report(self, found: Mapping[str, int], removed: Mapping[str, int]) -> None:
        """Take a sweep's result: what is left now, and what has been removed since the start.

        Both have every kind that was looked at, those of which there is nothing with 0.
        """
        self.found, self.removed = dict(found), dict(removed)
        self.swept_at = time.time()
