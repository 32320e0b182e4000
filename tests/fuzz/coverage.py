"""Which lines of the fuzzed modules have been reached: what tells a new input from a known one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any


class Lines:
    """The lines of some source files that have been reached so far."""

    def __init__(self, files: Collection[str]) -> None:
        self._files = frozenset(files)
        self.reached: set[tuple[str, int]] = set()

    def adds(self, run: Callable[[bytes], None], data: bytes) -> bool:
        """Run an input; tell whether it has reached a line that none had. Raises `run`'s errors."""
        if not self._files:  # to trace calls is slow
            run(data)
            return False
        before = len(self.reached)
        sys.settrace(self._enter)
        try:
            run(data)
        finally:
            sys.settrace(None)
        return len(self.reached) > before

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if name not in self._files:
            return None
        if event == "line":
            self.reached.add((name, frame.f_lineno))
        return self._enter
