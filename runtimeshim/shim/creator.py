"""The process that creates a container for its shim, and ends.

    shim                              creator
      ├── fork ──────────────────────────►│ waits, beside an init to be (oci/standby.py)
      ├── request ───────────────────────►│ the handler's create: cgroup, pipes, the init …
      │◄────────────── task, fds or error ┤ ends: the shim, a subreaper, is the init's parent
      │

What creating takes in memory, most of all pages that are no longer shared with the template, goes
with it: a shim that did it itself would keep that for as long as the container lives.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from runtimeshim import wire
from runtimeshim.oci import container
from runtimeshim.oci.errors import StageError
from runtimeshim.oci.standby import Standby
from runtimeshim.shim import rehearsal
from runtimeshim.shim.handler import Handler, in_child
from runtimeshim.shim.task import Task


class Creator:
    """The shim's side; `choose` returns the handler of a request.

    With `standby` an init waits beside it, as most containers can use one.
    """

    __slots__ = ("_choose", "_sock", "_standby")

    def __init__(self, choose: Callable[[wire.Message], Handler], *, standby: bool) -> None:
        self._choose = choose
        self._standby = standby
        _, self._sock = in_child(self._serve)

    def close(self) -> None:
        """End it: there is nothing to create."""
        self._sock.close()

    def create(self, request: wire.Message) -> Task:
        """Have the container created. Raises StageError; nothing of it is left then."""
        try:
            wire.send(self._sock, request)
            received = wire.receive(self._sock)
        except OSError as err:
            raise StageError("create", f"the process that creates it has died: {err}") from err
        finally:
            self._sock.close()
        if received is None:
            raise StageError("create", "the process that creates it has died")
        message, fds = received
        if "error" in message:
            raise StageError(message["stage"], message["error"], message["kind"])
        named = dict(zip(message["names"], fds, strict=True))
        return Task(self._choose(request), request, message, named)

    def _serve(self, sock: socket.socket) -> None:
        standby = _stand_by() if self._standby else None
        rehearsal.rehearse_create()
        received = wire.receive(sock)
        if received is None:  # the shim ended before it had anything to create
            return
        request, _ = received
        handler = self._choose(request)
        made, fds = handler.create(request, standby)
        try:
            wire.send(sock, {**made, "names": list(fds)}, list(fds.values()))
        except OSError:  # the shim was killed meanwhile: nobody will have this container
            handler.abandon(request, made)


def _stand_by() -> Standby | None:
    try:
        return Standby(container.plan, rehearsal.rehearse_init)
    except OSError:  # no PID namespace to be had now: the next container may need none
        return None
