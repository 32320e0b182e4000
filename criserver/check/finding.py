"""What a check of the node says."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How bad it is. FAIL: pods cannot run, or not as they should; WARN: some of them, or soon."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, unless it is good, what to do."""

    name: str
    level: Level
    found: str
    advice: str = ""


def good(name: str, found: str) -> Finding:
    """Return a line of which nothing has to be done."""
    return Finding(name, Level.OK, found)


def warn(name: str, found: str, advice: str) -> Finding:
    """Return a line that somebody should look at."""
    return Finding(name, Level.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Finding:
    """Return a line that has to be put right."""
    return Finding(name, Level.FAIL, found, advice)
