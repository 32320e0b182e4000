"""Directories that the daemon will make, as long as it has not."""

from __future__ import annotations

from pathlib import Path


def nearest(path: Path) -> Path:
    """Return the path, or the nearest directory above it that is there and may be looked at."""
    for place in (path, *path.parents):
        try:
            if place.exists():
                return place
        except PermissionError:
            continue
    return Path("/")
