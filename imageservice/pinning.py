"""Pinned images: names from the configuration that no garbage collection removes.

A pattern is as CRI-O's `pinned_images`: a whole name, a beginning (`name*`), or a part (`*name*`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from api.errors import InvalidArgumentError
from imageservice import reference


def is_patterns(patterns: Sequence[str]) -> bool:
    """Tell whether each of `patterns` is one."""
    return all(_is_pattern(pattern) for pattern in patterns)


def _is_pattern(pattern: str) -> bool:
    bare = pattern.removesuffix("*")
    if bare != pattern:
        bare = bare.removeprefix("*")
    return bool(bare) and "*" not in bare and bare.isprintable()


class Pins:
    """Tells which names are pinned."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._beginnings: list[str] = []
        self._parts: list[str] = []
        for pattern in patterns:
            self._add(pattern)

    def _add(self, pattern: str) -> None:
        if pattern.startswith("*"):
            self._parts.append(pattern.strip("*"))
        elif pattern.endswith("*"):
            self._beginnings.append(pattern[:-1])
        else:
            self._names.add(_normal(pattern))

    def matches(self, names: Iterable[str]) -> bool:
        """Tell whether one of an image's normalised names is pinned."""
        return any(self._matches(name) for name in names)

    def _matches(self, name: str) -> bool:
        return (
            name in self._names
            or any(name.startswith(beginning) for beginning in self._beginnings)
            or any(part in name for part in self._parts)
        )


def _normal(name: str) -> str:
    """Return the full form of a name; what is none matches itself."""
    try:
        return str(reference.parse(name))
    except InvalidArgumentError:
        return name
