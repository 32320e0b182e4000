"""How a pull goes, for a person: bars that move on a terminal, lines of plain text elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from api.extension import extension_pb2 as pb
from criserver.cli.table import short_id, size

# A line about a layer that is still coming, where there is no terminal.
LINE_SECONDS = 10.0
BAR_WIDTH = 30
# Where the terminal does not say.
DEFAULT_SIZE = os.terminal_size((80, 24))

_WORDS = {
    pb.PULL_LAYER_WAITING: "waiting",
    pb.PULL_LAYER_FETCHING: "fetching",
    pb.PULL_LAYER_UNPACKING: "unpacking",
    pb.PULL_LAYER_DONE: "done",
    pb.PULL_LAYER_EXISTS: "exists",
}
_ACTIVE = (pb.PULL_LAYER_FETCHING, pb.PULL_LAYER_UNPACKING)
_READY = (pb.PULL_LAYER_DONE, pb.PULL_LAYER_EXISTS)

Layers = Sequence[pb.PullLayer]


class Display(Protocol):
    """Shows one pull."""

    def update(self, layers: Layers) -> None:
        """Show the layers as they are now."""

    def end(self, *, succeeded: bool) -> None:
        """Show the last state; whatever is printed next begins on a line of its own."""


def display_for(stream: TextIO) -> Display:
    """Return what fits the stream: a terminal that can move its cursor, or anything else."""
    if stream.isatty() and os.environ.get("TERM", "") != "dumb":
        return Bars(stream)
    return Lines(stream)


class Lines:
    """A line whenever a layer changes its state, and now and then while it is coming."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._layers: Layers = ()
        self._told: dict[int, tuple[pb.PullLayerState, float]] = {}  # by place

    def update(self, layers: Layers) -> None:
        """Print what is new."""
        self._layers = layers
        for place, layer in enumerate(layers):
            state, since = self._told.get(place, (pb.PULL_LAYER_WAITING, 0.0))
            now = self._clock()
            late = layer.state in _ACTIVE and now - since >= LINE_SECONDS
            if layer.state != state or late:
                self._told[place] = (layer.state, now)
                self._print(layer)

    def _print(self, layer: pb.PullLayer) -> None:
        self._stream.write(f"{short_id(layer.digest)}: {_words(layer)}\n")
        self._stream.flush()

    def end(self, *, succeeded: bool) -> None:
        """Print that the layers are there whose end nobody has seen."""
        if succeeded:
            self.update(_finished(self._layers))


class Bars:
    """A bar for each layer, drawn again and again in the same place, and their sum below."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._layers: Layers = ()
        self._drawn = 0  # lines

    def update(self, layers: Layers) -> None:
        """Draw the bars in the place of those before."""
        self._layers = layers
        columns, rows = self._size()
        lines = [_bar(layer, columns) for layer in _chosen(layers, max(1, rows - 2))]
        if layers:
            lines.append(_summary(layers)[: columns - 1])
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        # ED clears what is left of a taller drawing (ECMA-48, 8.3.39).
        self._stream.write(up + "\r\x1b[J" + "".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)

    def _size(self) -> os.terminal_size:
        try:
            found = os.get_terminal_size(self._stream.fileno())
        except OSError:
            return DEFAULT_SIZE
        return found if found.columns > 1 and found.lines > 2 else DEFAULT_SIZE

    def end(self, *, succeeded: bool) -> None:
        """Draw the last state."""
        if succeeded and self._layers:
            self.update(_finished(self._layers))


def _chosen(layers: Layers, rows: int) -> Layers:
    """Return the layers to be shown in so few rows: those that move first, in their order."""
    if len(layers) <= rows:
        return layers
    places = sorted(range(len(layers)), key=lambda place: _rank(layers[place]))[:rows]
    return [layers[place] for place in sorted(places)]


def _rank(layer: pb.PullLayer) -> int:
    if layer.state in _ACTIVE:
        return 0
    return 1 if layer.state == pb.PULL_LAYER_WAITING else 2


def _bar(layer: pb.PullLayer, columns: int) -> str:
    share = layer.fetched / layer.size if layer.size else 1.0
    filled = int(BAR_WIDTH * min(1.0, share))
    bar = "=" * filled + (">" if 0 < filled < BAR_WIDTH else "")
    return f"{short_id(layer.digest)} [{bar:<{BAR_WIDTH}}] {_words(layer)}"[: columns - 1]


def _words(layer: pb.PullLayer) -> str:
    word = _WORDS.get(layer.state, "?")
    if layer.state == pb.PULL_LAYER_FETCHING:
        return f"{word} {size(layer.fetched)} of {size(layer.size)}"
    return f"{word} {size(layer.size)}"


def _summary(layers: Layers) -> str:
    ready = sum(layer.state in _READY for layer in layers)
    fetched = sum(layer.fetched for layer in layers)
    total = sum(layer.size for layer in layers)
    return f"{ready} of {len(layers)} layers, {size(fetched)} of {size(total)}"


def _finished(layers: Layers) -> Layers:
    """Return the layers as they are when the pull has succeeded."""
    finished = []
    for layer in layers:
        state = layer.state if layer.state in _READY else pb.PULL_LAYER_DONE
        finished.append(
            pb.PullLayer(digest=layer.digest, size=layer.size, fetched=layer.size, state=state)
        )
    return finished
