"""How far the pulls under way are: looked up when somebody asks, so that it costs nothing else."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from imageservice.fetch import WantedLayer


class LayerState(enum.Enum):
    """Where a layer of a pull is."""

    WAITING = "waiting"
    FETCHING = "fetching"  # and being unpacked as it comes
    UNPACKING = "unpacking"  # all of it has come
    DONE = "done"
    EXISTS = "exists"  # it was here before the pull


@dataclass(frozen=True)
class LayerProgress:
    """One layer; `size` and `fetched` are bytes of its blob as the registry holds it."""

    digest: str
    size: int
    fetched: int
    state: LayerState


@dataclass(frozen=True)
class PullProgress:
    """One pull; started_at in ns since the epoch. `layers` is None until the manifest is known."""

    image: str
    started_at: int
    layers: tuple[LayerProgress, ...] | None


@dataclass(eq=False)
class PullUnderWay:
    """What a pull in progress has found out about itself.

    existed: chain ids that were here when it began.
    config: digest and bytes of the image's configuration, once they are known.
    """

    image: str
    started_at: int = field(default_factory=time.time_ns)
    layers: Sequence[WantedLayer] | None = None
    existed: frozenset[str] = frozenset()
    config: tuple[str, bytes] | None = field(default=None, repr=False)
