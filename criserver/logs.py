"""The daemon's log on its standard error: lines for a person, or one JSON object per line.

A record may carry `extra=fields(…)`: what the line is about, by name. As JSON they stand in fields
of their own; the message itself says all of it for a person.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# Their debug level tells of every system call, and aiohttp's of request headers.
NOISY = ("asyncio", "aiohttp", "grpc", "opentelemetry")

# What a record's fields are called in its dictionary, apart from logging's own attributes.
_FIELDS = "criserver_fields"


def set_up(level: str, log_format: str) -> None:
    """Log to the standard error; `level` is of config.LOG_LEVELS, `log_format` of LOG_FORMATS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if log_format == "json" else logging.Formatter(PLAIN))
    logging.getLogger().addHandler(handler)
    set_level(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Log, from now on, from this level (of config.LOG_LEVELS) upwards."""
    logging.getLogger().setLevel(level.upper())


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `extra` of a record that tells of these; values are strings and numbers."""
    return {_FIELDS: values}


class JSONFormatter(logging.Formatter):
    """One JSON object per record: time (RFC 3339, UTC, ms), level, logger, message, its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        told: dict[str, Any] = {
            "time": f"{_utc(record.created)}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
