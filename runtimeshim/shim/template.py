"""The process that shims are forked from: it does nothing else, so they share almost all of it.

    spawner                          template                        shim
      ├── fork ─────────────────────────►│ waits
      ├── the shim's end of a socket ───►├── clone ──────────────────►│ stand_by
      │◄─────────────────────────── pid ─┤ waits                      │

A page stays shared with a forked process until one of the two writes to it, and in CPython whoever
looks at an object writes its reference count. Forked from the spawner itself, which works between
two forks, each shim would keep a copy of all that the spawner has looked at meanwhile: 1.1 MB
(measured). The shims are the spawner's children (man 2 clone, CLONE_PARENT), which reaps them.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable

from runtimeshim import wire
from runtimeshim.linux import syscalls
from runtimeshim.shim import main
from runtimeshim.shim.embedded import Embedded
from runtimeshim.shim.rehearsal import rehearse

_FD = array.array("i", [0])
_FD_ROOM = socket.CMSG_SPACE(_FD.itemsize)

# A pid has seven digits at most (linux/threads.h, PID_MAX_LIMIT); a packet of them is an answer.
_MAX_ANSWER = 16


class Template:
    """The spawner's side."""

    def __init__(self, fork: Callable[[Callable[[], None], list[int]], int]) -> None:
        self._channel, theirs = wire.pair()
        with theirs:
            self.pid = fork(lambda: _run(theirs), [theirs.fileno()])

    def fork(self, fd: int, *, init: bool) -> int:
        """Fork a shim that stands by on `fd`, with an init or without; returns its pid.

        Raises OSError: the template has died.
        """
        socket.send_fds(self._channel, [bytes([init])], [fd])
        answer = self._channel.recv(_MAX_ANSWER)
        if not answer:
            raise ConnectionResetError("the template of the shims has died")
        return int(answer)

    def close(self) -> None:
        """End it; its shims go on."""
        self._channel.close()


def _run(channel: socket.socket) -> None:
    syscalls.set_process_name("shim-template")
    main.prepare_shims()
    rehearse(Embedded())
    while (asked := _receive(channel)) is not None:
        fd, init = asked
        pid = syscalls.fork_sibling()
        if pid == 0:
            channel.close()
            _stand_by(fd, init=init)
            return
        os.close(fd)
        try:
            channel.send(b"%d" % pid)
        except ConnectionError:  # the spawner was killed: the shim sees the end of its connection
            return


def _receive(channel: socket.socket) -> tuple[int, bool] | None:
    """Return the shim's end of a socket, and whether it is to have an init; None at the end."""
    try:
        packet, ancillary, _, _ = channel.recvmsg(1, _FD_ROOM, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # the spawner was killed before it had read an answer
        return None
    if not packet:
        return None
    _FD.frombytes(ancillary[0][2])
    return _FD.pop(), packet != b"\0"


def _stand_by(fd: int, *, init: bool) -> None:
    os.setsid()
    main.stand_by(fd, init=init)
