"""What systemd is told where it runs the daemon (man 3 sd_notify, man 3 sd_watchdog_enabled)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Service:
    """Tells systemd of the daemon's state; without systemd it tells nobody."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Take systemd's variables out of the environment: they are for this process alone."""
        address, watchdog, pid = (environment.pop(name, "") for name in _VARIABLES)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        meant = pid in ("", str(os.getpid()))
        self._interval = int(watchdog) / 2_000_000 if watchdog and meant else None

    def ready(self) -> None:
        """Say that clients can come: for systemd, the service is started with that."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is read again; `reloaded` is to follow."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, outcome: str) -> None:
        """Say that it is over; `outcome` is what `systemctl status` shows."""
        self._tell(f"READY=1\nSTATUS={outcome}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._tell("STOPPING=1")

    async def keep_alive(self) -> None:
        """Say that the event loop runs, twice in the time after which systemd gives it up."""
        while self._interval is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._interval)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.sendto(state.encode(), self._address)
        except OSError as err:  # containers are served all the same
            log.warning("systemd cannot be told %s by %r: %s", state, self._address, err)
