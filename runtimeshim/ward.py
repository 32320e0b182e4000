"""What the spawner keeps of a container, so that another shim can take it up."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from runtimeshim import wire

# An adopting shim that ends sooner than this, and was not killed, has failed; after so many in a
# row none is forked.
SHORT_LIFE_SECONDS = 0.2
MAX_SHORT_LIVES = 5


class Ward:
    """A container whose ends are kept for the case that its shim is killed."""

    __slots__ = ("adopted_at", "channel", "failures", "fds", "message", "pid", "shim", "state")

    def __init__(self, message: wire.Message, channel: socket.socket) -> None:
        self.message = message  # the request for its shim
        self.channel = channel
        self.pid = 0  # of its init, 0 until it is created
        self.shim = 0  # its pid, known with the first `keep`
        self.state: dict[str, Any] = {}
        self.fds: dict[str, int] = {}
        self.adopted_at = 0.0
        self.failures = 0

    def may_be_adopted(self, *, killed: bool) -> bool:
        """Tell whether another shim is worth a try after one that has ended."""
        now = time.monotonic()
        failed = not killed and now - self.adopted_at < SHORT_LIFE_SECONDS
        self.failures = self.failures + 1 if failed else 0
        self.adopted_at = now
        return self.failures < MAX_SHORT_LIVES

    def keep(self, message: wire.Message, fds: list[int]) -> None:
        """Take duplicates from the shim; those of an earlier one are closed."""
        self.close()
        ended = {"exit": self.state["exit"]} if "exit" in self.state else {}
        self.pid, self.state = int(message["pid"]), message["state"] | ended
        self.shim = int(message["shim"])
        self.fds = dict(zip(message["names"], fds, strict=True))

    def close(self) -> None:
        """Let go of the duplicates."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
