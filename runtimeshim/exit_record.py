"""How a container ended: one small file in its bundle, on disk before anyone is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

FILE_NAME = "exit.json"


class ExitRecord(NamedTuple):
    """The end of a container's init."""

    exit_code: int  # 128 + signal for a death by signal
    finished_at: int  # ns since the epoch
    oom_killed: bool


def to_json(record: ExitRecord) -> dict[str, Any]:
    """Return the record as a JSON object."""
    return {
        "version": 1,
        "exit_code": record.exit_code,
        "finished_at": record.finished_at,
        "oom_killed": record.oom_killed,
    }


def from_json(value: dict[str, Any]) -> ExitRecord:
    """Return the record of a JSON object."""
    return ExitRecord(value["exit_code"], value["finished_at"], value["oom_killed"])


def write(bundle: str, record: ExitRecord) -> None:
    """Write the record whole or not at all."""
    path = f"{bundle}/{FILE_NAME}"
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(to_json(record)).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(f"{path}.new", path)


def read(bundle: Path) -> ExitRecord | None:
    """Return the record of a bundle, None while there is none."""
    try:
        return from_json(json.loads((bundle / FILE_NAME).read_bytes()))
    except FileNotFoundError:
        return None
