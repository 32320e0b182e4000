"""What the OCI binaries that are configured as runtime handlers can do: they are asked at start."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from runtimeshim.client import ProgramTimeoutError, Spawner, SpawnerError

log = logging.getLogger(__name__)

# It prints a constant; a binary that hangs must not keep the daemon from its start.
FEATURES_SECONDS = 10.0

RECURSIVE_READ_ONLY = "rro"  # runtime-spec, config.md: the mount option


async def recursive_read_only(spawner: Spawner, binaries: Mapping[str, Path]) -> frozenset[str]:
    """Return the names of those that can mount recursively read-only (runtime-spec, features.md).

    One that does not know the command, as before runc 1.1, cannot.
    """
    answers = await asyncio.gather(*(_mount_options(spawner, path) for path in binaries.values()))
    return frozenset(
        name
        for name, options in zip(binaries, answers, strict=True)
        if RECURSIVE_READ_ONLY in options
    )


async def _mount_options(spawner: Spawner, path: Path) -> list[str]:
    try:
        argv = [str(path), "features"]
        result = await spawner.run_program(argv, env={}, timeout=FEATURES_SECONDS)
        if result.exit_code == 0:
            return list(json.loads(result.stdout).get("mountOptions") or ())
        reason = result.stderr.decode(errors="replace").strip()[:512]
    except (SpawnerError, ProgramTimeoutError, ValueError, AttributeError) as err:
        reason = str(err)
    log.warning("%s features: %s: it counts as one that has none", path, reason)
    return []
