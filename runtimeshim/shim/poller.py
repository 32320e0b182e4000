"""epoll with callbacks, and with the edge-triggered mode that the selectors module lacks."""

from __future__ import annotations

import select
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EDGE = select.EPOLLET
PRIORITY = select.EPOLLPRI
HANGUP = 0  # the kernel tells of EPOLLHUP and EPOLLERR unasked (man 2 epoll_ctl)

Callback = Callable[[int], None]  # is given the events


class Poller:
    """The fds that a loop waits for, each with its callback."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._new: set[int] = set()

    def register(self, fd: int, events: int, callback: Callback) -> None:
        """Wait for `events` of `fd`; EDGE in them tells of what is new only."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback
        self._new.add(fd)

    def again(self, fd: int, events: int) -> None:
        """Have the next turn tell of what is there now, as if it were new."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget `fd`, if it is known."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout: float | None = None) -> None:
        """Wait, at most `timeout` seconds, and call back for what has happened."""
        happened = self._epoll.poll(timeout)
        self._new.clear()
        for fd, events in happened:
            callback = self._callbacks.get(fd)
            # An earlier callback may have closed this fd, and its number may be another's by now.
            if callback is not None and fd not in self._new:
                callback(events)

    def close(self) -> None:
        """Let go of the kernel's side."""
        self._epoll.close()
