"""What a shim asks of a runtime handler, the embedded executor or an OCI binary.

A start, and whatever else may take its time, goes on in a child or in the init. The shim reads of
its outcome from a socket when the loop finds it readable: a message with an error, or the end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from runtimeshim import wire
from runtimeshim.oci.errors import StageError
from runtimeshim.oci.standby import Standby

if TYPE_CHECKING:
    from runtimeshim.shim.task import Task

Stdio = tuple[int, int, int] | None  # None: a new terminal


class Handler(Protocol):
    """How containers are created, started, exec'd into, signalled and taken down."""

    def create(
        self, request: wire.Message, standby: Standby | None
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Create the container of a bundle, in a process that ends after it.

        The process that stands by becomes the container's init, or is ended.
        Returns what makes a Task: its values, and fds by name. Raises StageError; nothing of the
        container is left then.
        """

    def abandon(self, request: wire.Message, made: dict[str, Any]) -> None:
        """Undo a `create` whose shim has died meanwhile."""

    def start(self, task: Task) -> None:
        """Begin to start; `task.sync` tells of the outcome. Raises OSError: the init has gone."""

    def finish_start(self, task: Task) -> None:
        """See a start to its end that a shim had announced before it was killed."""

    def started(self, task: Task) -> StageError | None:
        """Do what comes after a start that has succeeded."""

    def fork_exec(
        self, task: Task, target: int, stdio: Stdio, name: str
    ) -> tuple[int, socket.socket, str]:
        """Fork a process that becomes the OCI process of the file `target`, or starts it.

        Returns its pid, a socket, and the cgroup that has been made for it, if any. On the socket
        come `{"terminal"}` with the master's fd, `{"cgroup", "timings"}`, where the
        fork has started another process its `{"pid"}`, and in the end nothing, or `{"error"}`.
        """

    def kill(self, task: Task, number: int) -> socket.socket | None:
        """Signal the init; None when that is done. Raises ProcessLookupError: it has gone."""

    def finish(self, task: Task) -> list[str]:
        """Take down what is left of a container that has ended; returns warnings."""


def in_child(work: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Fork a child that does `work`, which is given its socket; returns its pid, and our end.

    A StageError of it becomes a message; its end is the end of file.
    """
    ours, theirs = wire.pair()
    pid = os.fork()
    if pid != 0:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        work(theirs)
        code = 0
    except StageError as err:
        wire.send(theirs, {"error": err.message, "stage": err.stage, "kind": err.kind})
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        text = wire.brief(f"{type(err).__name__}: {err}")
        wire.send(theirs, {"error": text, "stage": "", "kind": "error"})
    finally:
        os._exit(code)
