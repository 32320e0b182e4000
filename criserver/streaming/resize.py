"""The resize stream of remotecommand: JSON objects, one after another, without anything between."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_HELD = 1024  # bytes of an object that is not whole; they have about 25
MAX_SIDE = 0xFFFF  # struct winsize (man 4 tty_ioctl)

_START = re.compile(r"\s*")  # matches anywhere


class ResizeDecoder:
    """Reads one resize stream."""

    def __init__(self) -> None:
        self._text = ""
        self._json = json.JSONDecoder()

    def receive(self, data: bytes | bytearray | memoryview) -> list[tuple[int, int]]:
        """Return the sizes, (width, height) in characters, that are whole now.

        Raises ValueError for what is no size: nothing after it can be told apart.
        """
        text = self._text + bytes(data).decode()
        sizes, position = [], 0
        while (position := _START.match(text, position).end()) < len(text):  # type: ignore[union-attr]
            try:
                size, position = self._json.raw_decode(text, position)
            except ValueError:
                if len(text) - position > MAX_HELD or text[position] != "{":
                    raise
                break
            except RecursionError as err:
                raise ValueError("not a terminal size") from err
            sizes.append(_size(size))
        self._text = text[position:]
        return sizes


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, dict):
        raise ValueError("not a terminal size")
    names = {name.lower(): side for name, side in value.items()}
    sides = names.get("width", 0), names.get("height", 0)
    if not all(isinstance(side, int) and 0 <= side <= MAX_SIDE for side in sides):
        raise ValueError("not a terminal size")
    return sides
