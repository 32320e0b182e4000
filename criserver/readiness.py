"""Whether pods and containers can be made now: the runtime's part of the node's readiness."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from api.cri import api_pb2 as cri
from criserver.operations import DEADLINE
from criserver.store import database
from runtimeshim.client import Spawner, SpawnerError

log = logging.getLogger(__name__)

CONDITION = "RuntimeReady"

# One that is only busy, with the machine, must not make the node NotReady.
SPAWNER_SECONDS = 10.0


class RuntimeReadiness:
    """Looks at what every pod needs, each time it is asked; nothing watches in the background."""

    def __init__(self, spawner: Spawner, connection: sqlite3.Connection) -> None:
        self._spawner = spawner
        self._connection = connection
        self._last = ""

    async def condition(self) -> cri.RuntimeCondition:
        """Return the CRI's condition, with the reason and a message when it is not met."""
        reason, message = await self._problem()
        if message != self._last:  # kubelets ask every few seconds
            log.warning("the runtime is %s", f"not ready: {message}" if message else "ready again")
        self._last = message
        return cri.RuntimeCondition(
            type=CONDITION, status=not reason, reason=reason, message=message
        )

    async def _problem(self) -> tuple[str, str]:
        try:
            database.check_writable(self._connection)
        except sqlite3.Error as err:
            return "DatabaseNotWritable", f"the database cannot be written: {err}"
        deadline = DEADLINE.get()
        left = SPAWNER_SECONDS
        if deadline is not None:
            left = min(left, max(0.0, deadline - asyncio.get_running_loop().time()))
        try:
            await self._spawner.check(left)
        except SpawnerError as err:
            return "SpawnerNotReady", str(err)
        return "", ""
