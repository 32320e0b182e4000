"""The label of a registry. Whoever can make a pod names registries, so their number is bounded."""

from __future__ import annotations

MAX_REGISTRIES = 20
OTHER = "other"


class Registries:
    """Gives the first MAX_REGISTRIES their names, and all others one together."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def label(self, domain: str) -> str:
        """Return the label of a registry, the same each time."""
        if domain in self._named:
            return domain
        if len(self._named) >= MAX_REGISTRIES:
            return OTHER
        self._named.add(domain)
        return domain
