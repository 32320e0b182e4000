"""What is to be done at the end of a block: contextlib.ExitStack, without what that imports."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Undo:
    """Calls for the end of a with block, the last one first; all of them, whatever they raise."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Have `step` called."""
        self._steps.append(step)

    def forget(self) -> None:
        """Have nothing called: what was to be undone is to stay."""
        self._steps.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *_: object) -> None:
        if self._steps:
            try:
                self._steps.pop()()
            finally:
                self.__exit__()
