"""What an audit finds, and what finds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stray:
    """Something that nobody owns, or an owner that lacks something.

    name: what it is called on the machine. mark: tells it from another of the same name (an inode,
    a start time). owner: the id of the pod or container that it belonged to, "" for none.
    """

    kind: str
    name: str
    mark: str = ""
    owner: str = ""
    removable: bool = True


class Check(Protocol):
    """Looks for strays of some kinds. Both methods are called on the event loop."""

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds that it may find."""

    async def find(self) -> list[Stray]:
        """Look at the machine first and at the records then.

        So what is being made is never found: its record is there before it is. May raise OSError or
        api.errors.
        """

    async def remove(self, stray: Stray) -> None:
        """Remove what `find` found; idempotent. May raise OSError or api.errors."""
