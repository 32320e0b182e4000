"""Several calls at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 8


def at_once(threads: int, call: Callable[[T], object], items: Iterable[T]) -> None:
    """Call for each item in so many threads; raises what any of the calls raises."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        begun = [pool.submit(call, item) for item in items]
        try:
            for future in begun:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
