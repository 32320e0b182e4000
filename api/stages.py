"""Where an operation is: stages that any package names, for errors, timings and, later, traces.

`with stage("network"):` costs nothing where no operation is being recorded. Stages nest; the
innermost that is still open is where the operation is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar


class Stages:
    """The stages of one operation: those that are open, and how long the finished ones took."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, int]] = {}
        self._next = 0
        self.started = time.monotonic_ns()
        self.finished: dict[str, int] = {}  # stage -> ns; of a stage that ran twice, the sum

    def enter(self, name: str) -> int:
        """Open a stage; returns the token that closes it."""
        self._next += 1
        self._open[self._next] = (name, time.monotonic_ns())
        return self._next

    def leave(self, token: int) -> None:
        """Close a stage and keep its duration."""
        name, since = self._open.pop(token)
        self.finished[name] = self.finished.get(name, 0) + time.monotonic_ns() - since

    def add(self, timings: dict[str, int], prefix: str) -> None:
        """Take over the stages, in ns, that another process has measured."""
        self.finished.update({f"{prefix}.{name}": spent for name, spent in timings.items()})

    def current(self) -> tuple[str, float] | None:
        """Return the innermost open stage and the seconds since it began."""
        if not self._open:
            return None
        name, since = next(reversed(self._open.values()))
        return name, (time.monotonic_ns() - since) / 1e9

    def elapsed(self) -> float:
        """Return the seconds since the operation began."""
        return (time.monotonic_ns() - self.started) / 1e9


RECORDER: ContextVar[Stages | None] = ContextVar("stages", default=None)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Run the body as a named stage of the operation that this task belongs to, if any."""
    recorder = RECORDER.get()
    if recorder is None:
        yield
        return
    token = recorder.enter(name)
    try:
        yield
    finally:
        recorder.leave(token)
