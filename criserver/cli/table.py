"""Tables, ages and sizes for people."""

from __future__ import annotations

import time
from collections.abc import Sequence

SHORT_ID = 13  # enough to be unique on a node, and what crictl shows

UNITS = ((86400 * 365, "year"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns, two spaces apart, without trailing blanks."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def short_id(identifier: str) -> str:
    """Return the beginning of a container's or an image's id, without the digest's algorithm."""
    return identifier.removeprefix("sha256:")[:SHORT_ID]


def age(since: int, now: int | None = None) -> str:
    """Return the time since an instant (ns since the epoch) in its largest unit: "3 minutes"."""
    seconds = ((time.time_ns() if now is None else now) - since) // 10**9
    for length, unit in UNITS:
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}" + ("s" if count != 1 else "")
    return "less than a second"


def size(count: int) -> str:
    """Return a number of bytes with three digits and a decimal unit, as docker does: "4.26MB"."""
    if count < 1000:
        return f"{count}B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g}{unit}"
    return f"{value / 1000:.3g}TB"
