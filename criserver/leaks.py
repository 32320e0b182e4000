"""What the auditor has found that belongs to nobody, for the metrics to tell."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Leaks:
    """The auditor's last sweep, and what it has removed since the start; counts are by kind.

    A kind is one of few words, such as "mount", "cgroup", "process", "link", "lease" or "file".
    """

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.removed: dict[str, int] = {}
        self.swept_at = 0.0
        """Seconds since the epoch; 0 before the first sweep."""

    def report(self, found: Mapping[str, int], removed: Mapping[str, int]) -> None:
        """Take a sweep's result: what is there and was left, and what it has removed.

        `found` has every kind that was looked at, those of which there is nothing with 0.
        """
        self.found = dict(found)
        for kind, count in removed.items():
            self.removed[kind] = self.removed.get(kind, 0) + count
        self.swept_at = time.time()
