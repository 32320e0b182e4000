"""When a request that failed is made again, and after how long. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# What a registry answers while it is busy or restarts (RFC 9110, section 15; RFC 6585 for 429).
PASSING_STATUS = frozenset((408, 429, 500, 502, 503, 504))


@dataclass(frozen=True)
class RetryPolicy:
    """`attempts` in all; pauses double from `seconds` on and are shortened by up to a half.

    A registry that asks for more than `longest` seconds is told no: the kubelet tries again later,
    and a person is told why now.
    """

    attempts: int = 4
    seconds: float = 0.5
    longest: float = 30.0

    def pause(
        self,
        attempt: int,
        asked: Iterable[float],
        fraction: Callable[[], float] = random.random,
    ) -> float | None:
        """Return the seconds until the next attempt, None if there is none.

        attempt: how many there have been. asked: what Retry-After said, of each host that said it.
        """
        if attempt >= self.attempts:
            return None
        wanted = min(asked, default=0.0)
        if wanted > self.longest:
            return None
        # Spread, so that many nodes which failed together do not come back together.
        backoff = self.seconds * 2.0 ** (attempt - 1) * (1 - fraction() / 2)
        return max(wanted, backoff)


def retry_after(header: str, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, section 10.2.3).

    None for a header that is neither a number nor a date.
    """
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
