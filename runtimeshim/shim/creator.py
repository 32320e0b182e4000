"""The process that creates a container for its shim, and ends.

    shim                              creator
      ├── fork ──────────────────────────►│ waits
      ├── request ───────────────────────►│ config.json, cgroup, pipes, fork of the init …
      │◄────────────── task, fds or error ┤ ends: the shim, a subreaper, is the init's parent
      │

What creating takes in memory, most of all pages that are no longer shared with the spawner, goes
with it: a shim that did it itself would keep that for as long as the container lives.
"""

from __future__ import annotations

import os
import socket
from typing import NoReturn

from runtimeshim import wire
from runtimeshim.oci import container as oci
from runtimeshim.oci.errors import StageError
from runtimeshim.shim import task


class Creator:
    """The shim's side."""

    __slots__ = ("_sock",)

    def __init__(self) -> None:
        self._sock, theirs = wire.pair()
        if os.fork() == 0:
            self._sock.close()
            _run(theirs)
        theirs.close()

    def close(self) -> None:
        """End it: there is nothing to create."""
        self._sock.close()

    def create(self, request: wire.Message) -> task.Task:
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
        return task.Task(request, message, dict(zip(message["names"], fds, strict=True)))


def _run(sock: socket.socket) -> NoReturn:
    """Create what is asked for; never returns into the shim's code."""
    code = 1
    try:
        received = wire.receive(sock)
        if received is not None:  # else the shim ended before it had anything to create
            _create(sock, received[0])
        code = 0
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        os.write(2, f"creator: {type(err).__name__}: {err}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _create(sock: socket.socket, request: wire.Message) -> None:
    bundle, options = request["bundle"], request["options"]
    try:
        container = oci.Container(bundle, oci.load(bundle), options["seccomp_cache"])
        container.create(options["rootfs"], stdin=options["stdin"])
    except StageError as err:
        wire.send(sock, {"error": err.message, "stage": err.stage, "kind": err.kind})
        return
    made, fds = task.made_of(container)
    try:
        wire.send(sock, {**made, "names": list(fds)}, list(fds.values()))
    except OSError:  # the shim was killed meanwhile: nobody will have this container
        container.delete_cgroup()
