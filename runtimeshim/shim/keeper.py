"""What outlives a shim: the spawner keeps duplicates of what only the shim has.

    shim                                   spawner
      ├── keep: fds, state ──────────────────►│ a ward: streams, start socket, pidfd
      ├── started, drop, exit ───────────────►│
      ├── release ───────────────────────────►│ over: the duplicates are closed
      killed                                  │ end of file without a release:
                                              │ forks a new shim with the duplicates

The same message goes to another spawner when the first has died: the shim looks for it at the
socket where the daemon starts one.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from runtimeshim import wire
from runtimeshim.shim.poller import READ, Poller
from runtimeshim.shim.task import Task

# How often a shim without a spawner looks for a new one.
RETRY_SECONDS = 0.5

Rests = Mapping[str, tuple[int, int]]  # the pipes of the unfinished lines, by stream

# linux/pidfd.h (6.15): struct pidfd_info of 64 bytes, whose last field is a wait status.
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3
PIDFD_INFO_SIZE = 64


class Keeper:
    """A shim's connection to the spawner that keeps its container's ends."""

    def __init__(
        self, channel: socket.socket | None, message: Mapping[str, Any], poller: Poller
    ) -> None:
        self._request = dict(message)
        self._poller = poller
        self._channel = channel
        self._retry_at = 0.0
        self.exit_status: int | None = None  # of an init that the spawner has reaped
        if channel is not None:
            self._listen(channel)

    def keep(self, task: Task, rests: Rests, state: Mapping[str, Any]) -> None:
        """Entrust a created container, with its unfinished lines."""
        fds = task.fds()
        for name, (read, write) in rests.items():
            fds[f"{name}-rest-r"], fds[f"{name}-rest-w"] = read, write
        message = {"op": "keep", "names": list(fds), "pid": task.pid, "shim": os.getpid()}
        self._send({**message, "state": dict(state)}, list(fds.values()))

    def started(self) -> None:
        """The program runs."""
        self._send({"op": "started"}, [])

    def drop(self, name: str) -> None:
        """Have one duplicate closed: the container is to see the end of its stdin."""
        self._send({"op": "drop", "name": name}, [])

    def ended(self, status: int) -> None:
        """The init is over, with this wait status; what is still to be done may be another's."""
        self._send({"op": "exit", "status": status}, [])

    def release(self) -> None:
        """The container is over: nothing is to be adopted."""
        self._send({"op": "release"}, [])

    def close(self) -> None:
        """Let go of the spawner."""
        self._lose()

    def timeout(self) -> float | None:
        """Return the seconds until `retry` has something to do."""
        return None if self._channel is not None else RETRY_SECONDS

    def retry(self) -> bool:
        """Look for a new spawner, if the last one has died; tell whether it is to `keep` now."""
        if self._channel is not None or time.monotonic() < self._retry_at:
            return False
        self._retry_at = time.monotonic() + RETRY_SECONDS
        channel = connect(self._request["options"]["spawner"])
        if channel is None:
            return False
        self._channel = channel
        self._listen(channel)
        self._send({**self._request, "op": "ward", "id": 0}, [])
        return True

    def _listen(self, channel: socket.socket) -> None:
        self._poller.register(channel.fileno(), READ, lambda _: self._readable())

    def _send(self, message: wire.Message, fds: list[int]) -> None:
        if self._channel is None:
            return
        try:
            wire.send(self._channel, message, fds)
        except OSError:  # it has died: retry finds the next one
            self._lose()

    def _readable(self) -> None:
        assert self._channel is not None
        try:
            received = wire.receive(self._channel)
        except (OSError, ValueError):
            received = None
        if received is None:
            self._lose()
        elif "exit" in received[0]:
            self.exit_status = int(received[0]["exit"])

    def _lose(self) -> None:
        if self._channel is not None:
            self._poller.unregister(self._channel.fileno())
            self._channel.close()
            self._channel = None


def connect(path: str) -> socket.socket | None:
    """Connect to the spawner; None while there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        finally:
            os.close(directory)
    except OSError:
        sock.close()
        return None
    return sock


def rests_of(fds: Mapping[str, int]) -> Rests:
    """Return the pipes of the unfinished lines among what was kept, by stream."""
    return {
        name: (fds[f"{name}-rest-r"], fds[f"{name}-rest-w"])
        for name in ("stdout", "stderr")
        if f"{name}-rest-r" in fds
    }


def exit_status(pidfd: int) -> int | None:
    """Return the wait status of a process that has been reaped by another (Linux 6.15).

    None while it has not been reaped, and on an older kernel.
    """
    info = bytearray(PIDFD_INFO_SIZE)
    struct.pack_into("=Q", info, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError:  # ENOTTY before 6.13; ESRCH where only a reaped process is asked for
        return None
    mask, status = struct.unpack_from("=Q", info)[0], struct.unpack_from("=i", info, 60)[0]
    return int(status) if mask & PIDFD_INFO_EXIT else None
