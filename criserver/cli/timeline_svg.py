"""An explanation as a picture: a waterfall, each operation on a time scale of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from html import escape
from typing import Any

from criserver.cli.timeline_text import CANCELLED, FAILED, OPEN, clock, duration, printable, times

# Pixels. The names are left of the bars.
WIDTH = 1200
LEFT = 330
RIGHT = 110
ROW = 20
BAR = 13
GAP = 16
MARGIN = 14
INDENT = 14
BARS = WIDTH - LEFT - RIGHT
MIN_BAR = 1.5
TICKS = 5

# Characters that a line has room for, and lines of one cause.
MAX_TEXT = 160
MAX_LINES = 6
MAX_NAME = 46

COLOURS = {"ok": "#4c9f70", FAILED: "#c8553d", CANCELLED: "#8d99ae", OPEN: "#e9b44c"}
STYLE = (
    "text{font:12px sans-serif;fill:#22223b}.h{font-weight:bold}.t{font-size:11px;fill:#6b7080}"
    ".c{fill:#c8553d}"
)


def render(found: dict[str, Any]) -> str:
    """Return an SVG document of an Explain answer."""
    y = MARGIN + ROW
    body = [_text(MARGIN, y, _title(found), "h")]
    for wait in found["waiting"]:
        words = f"waiting: {wait['object']}: {wait['text'] or wait['stage'] or wait['operation']}"
        for line in _lines(words):
            y += ROW
            body.append(_text(MARGIN, y, line, "c"))
    y += GAP
    for record in found["timeline"]:
        rows = list(_operation(record, y, found["now"]))
        body += [svg for _, svg in rows]
        y = rows[-1][0] + GAP
    height = y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def _title(found: dict[str, Any]) -> str:
    state = f": {found['state']}" if found["state"] else ""
    return f"{found['object']['text']}{state}, at {clock(found['now'])}"


def _operation(record: dict[str, Any], y: int, now: int) -> Iterator[tuple[int, str]]:
    """Give the rows of an operation: (where the next one begins, what is drawn)."""
    lasted = now - record["started_at"] if record["duration"] is None else record["duration"]
    scale = BARS / max(1, lasted)
    y += ROW
    title = f"{record['name']}{times(record)}"
    yield y, _text(MARGIN, y, f"{clock(record['started_at'])}  {title}", "h", MAX_NAME + 10)
    yield y, _text(LEFT, y, record["object"], "t")
    if lasted:
        y += ROW
        yield y, _row(y, "in all", 0, lasted, record["outcome"], scale, record["cause"])
        yield y, "".join(_ticks(y, lasted, 1 + len(record["stages"])))
    for stage in record["stages"]:
        y += ROW
        spent = stage["duration"]
        if spent is None:
            spent = max(0, lasted - stage["start"])
        name = f"{stage['name']} {stage.get('detail', '')}".rstrip()
        outcome = stage.get("outcome", "ok")
        indent = INDENT * (1 + stage["depth"])
        yield y, _row(y, name, stage["start"], spent, outcome, scale, _said(stage), indent)
    for line in _lines(record["cause"]):
        y += ROW
        yield y, _text(MARGIN + INDENT, y, line, "c")


def _lines(words: str) -> list[str]:
    return textwrap.wrap(printable(words), MAX_TEXT, max_lines=MAX_LINES, placeholder=" …")


def _said(stage: dict[str, Any]) -> str:
    """Return what the tooltip of a stage says: its events, and its cause."""
    return "; ".join(
        [*(event["text"] for event in stage.get("events", ())), stage.get("cause", "")]
    )


def _row(
    y: int,
    name: str,
    start: int,
    spent: int,
    outcome: str,
    scale: float,
    said: str,
    indent: int = 0,
) -> str:
    left, width = LEFT + start * scale, max(MIN_BAR, spent * scale)
    left = min(left, LEFT + BARS - MIN_BAR)
    width = min(width, LEFT + BARS - left)
    words = "goes on" if outcome == OPEN else duration(spent)
    return (
        f"<g><title>{_escaped(f'{name}: {words} {said}', 10 * MAX_TEXT)}</title>"
        + _text(MARGIN + indent, y, name, "", MAX_NAME - indent // 7)
        + f'<rect x="{left:.1f}" y="{y - BAR + 2}" width="{width:.1f}" height="{BAR}" rx="2" '
        f'fill="{COLOURS.get(outcome, COLOURS["ok"])}"/>'
        + _text(WIDTH - RIGHT + 8, y, words, "t")
        + "</g>"
    )


def _ticks(y: int, lasted: int, rows: int) -> Iterator[str]:
    """Give thin lines at equal times, through all rows of an operation."""
    top, bottom = y - BAR, y + (rows - 1) * ROW + 4
    for number in range(TICKS + 1):
        x = LEFT + BARS * number / TICKS
        yield f'<path d="M{x:.1f} {top}V{bottom}" stroke="#000" stroke-opacity=".12"/>'


def _text(x: float, y: int, words: str, kind: str = "", limit: int = MAX_TEXT) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{_escaped(words, limit)}</text>'


def _escaped(words: str, limit: int) -> str:
    line = printable(words)
    return escape(line if len(line) <= limit else line[: limit - 1] + "…")
