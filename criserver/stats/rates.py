"""CPU rates: the difference of two readings of a counter that only grows."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

# Two readings that are closer together measure chance; the kernel's own accounting lags by a tick.
MIN_INTERVAL_NS = 100_000_000


class _Sample(NamedTuple):
    timestamp: int  # ns since the epoch
    total: int  # ns of CPU time
    rate: int | None  # of the interval that ended here


class CpuRates:
    """The last reading of each cgroup; used by one thread.

    Nothing is read in the background: an idle daemon stays idle. So the first reading of a cgroup
    has no rate, which clients take for "not known yet".
    """

    def __init__(self) -> None:
        self._samples: dict[str, _Sample] = {}

    def update(self, key: str, timestamp: int, total: int) -> int | None:
        """Take a reading; returns ns of CPU time per second since the one before, or None.

        A reading within MIN_INTERVAL_NS of the one before is answered with that one's rate.
        """
        last = self._samples.get(key)
        if last is not None and total >= last.total:
            elapsed = timestamp - last.timestamp
            if elapsed < MIN_INTERVAL_NS:
                return last.rate
            rate = (total - last.total) * 10**9 // elapsed
            self._samples[key] = _Sample(timestamp, total, rate)
            return rate
        # The first one, or that of a cgroup made anew, whose counter began again.
        self._samples[key] = _Sample(timestamp, total, None)
        return None

    def keep(self, keys: Collection[str]) -> None:
        """Forget all others."""
        for key in self._samples.keys() - keys:
            del self._samples[key]
