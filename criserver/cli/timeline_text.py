"""An explanation as text for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from criserver.cli.table import short_id

INDENT = "  "
TIME_WIDTH = 12  # of "18:20:11.123", and of a duration

FAILED, CANCELLED, OPEN = "failed", "cancelled", "open"


def render(found: dict[str, Any]) -> str:
    """Return what `criserver explain` prints of an Explain answer."""
    parts = (_head, _waiting, _troubles, _timeline)
    return "".join(f"{line}\n" for part in parts for line in part(found))


def printable(text: str) -> str:
    """Return text on one line without what a terminal would obey."""
    words = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in words)


def duration(nanoseconds: float) -> str:
    """Return a duration with three digits, in the unit that fits: "1.23 ms", "12.0 s"."""
    for unit, length in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= length:
            value = nanoseconds / length
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{nanoseconds / 1e3:.0f} us"


def clock(nanoseconds: int) -> str:
    """Return a moment, in ns since the epoch, as local time with milliseconds."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{rest // 10**6:03}"


def times(record: dict[str, Any]) -> str:
    """Say how often in a row an operation ended like this; "" for once."""
    if record["times"] == 1:
        return ""
    return f" ({record['times']} times since {clock(record['first_at'])})"


def _head(found: dict[str, Any]) -> Iterator[str]:
    thing = found["object"]
    key = "" if thing["kind"] == "image" else f" ({short_id(thing['key'])})"
    state = f": {found['state']}" if found["state"] else ""
    yield printable(thing["text"]) + key + state
    for other in found["others"]:
        yield f"{INDENT}of the same name: {printable(other['text'])} ({short_id(other['key'])})"


def _waiting(found: dict[str, Any]) -> Iterator[str]:
    if found["waiting"]:
        yield from ("", "WAITING")
    for wait in found["waiting"]:
        yield f"{INDENT}{printable(wait['object'])}: {printable(_doing(wait))}"
        if wait["text"]:
            yield f"{INDENT * 2}waits for: {printable(wait['text'])}"
        for event in wait["events"]:
            yield f"{INDENT * 2}before: {printable(event)}"


def _doing(wait: dict[str, Any]) -> str:
    if not wait["operation"]:
        return "running"
    words = f"{wait['operation']} for {duration(wait['seconds'] * 1e9)}"
    if wait["stage"]:
        detail = f" ({wait['detail']})" if wait["detail"] else ""
        words += f", in {wait['stage']}{detail} for {duration(wait['stage_seconds'] * 1e9)}"
    return words


def _troubles(found: dict[str, Any]) -> Iterator[str]:
    if found["troubles"]:
        yield from ("", "TROUBLE")
    for trouble in found["troubles"]:
        what = printable(f"{trouble['object']}: {trouble['name']}{times(trouble)}")
        yield f"{INDENT}{clock(trouble['started_at'])} {what}"
        yield f"{INDENT * 2}{printable(trouble['cause'] or 'it failed')}"


def _timeline(found: dict[str, Any]) -> Iterator[str]:
    yield from ("", "TIMELINE")
    if not found["timeline"]:
        yield f"{INDENT}nothing has been done to it since the history began"
    several = len({record["key"] for record in found["timeline"]}) > 1
    for record in found["timeline"]:
        owner = f"  {record['object']}" if several else ""
        title = f"{record['name']}{times(record)}{owner}{_outcome(record)}"
        yield _line(clock(record["started_at"]), _spent(record["duration"]), title)
        for stage in record["stages"]:
            yield from _stage(stage)
        if record["left_out"]:
            yield _line("", "", f"{INDENT}and {record['left_out']} more stages")


def _stage(stage: dict[str, Any]) -> Iterator[str]:
    indent = INDENT * (1 + stage["depth"])
    name = f"{stage['name']} {stage.get('detail', '')}".rstrip()
    ended = {FAILED: ": failed", CANCELLED: ": cancelled"}.get(stage.get("outcome", ""), "")
    yield _line(f"+{duration(stage['start'])}", _spent(stage["duration"]), name + ended, indent)
    for event in stage.get("events", ()):
        yield _line(f"+{duration(event['at'])}", "", f"! {event['text']}", indent)


def _line(moment: str, spent: str, title: str, indent: str = "") -> str:
    return f"{moment:>{TIME_WIDTH}} {spent:>{TIME_WIDTH}}  {indent}{printable(title)}".rstrip()


def _spent(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return "goes on"
    return duration(nanoseconds) if nanoseconds else ""


def _outcome(record: dict[str, Any]) -> str:
    cause = f": {record['cause']}" if record["cause"] else ""
    return {FAILED: f": failed{cause}", CANCELLED: ": cancelled"}.get(record["outcome"], "")
