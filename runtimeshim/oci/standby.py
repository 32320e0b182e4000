"""A process that waits to become an init, so that most containers are created without a fork.

    creator                                  standby
      ├── fork, into a new PID namespace ─────►│ waits
      ├── what its plan is made of, stdio ────►│ is the init of a container (runtimeshim.oci.init)

A fork takes a millisecond, and as long again what the two processes then write to for the first
time, which is copied for them. Both are over when a container is asked for.
"""

from __future__ import annotations

import os

from runtimeshim import wire
from runtimeshim.oci import init
from runtimeshim.oci.namespaces import Namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn


class Standby:
    """The creator's side. In the child, `plan` makes the init's plan of what `give` has sent."""

    __slots__ = ("pid", "sync")

    def __init__(
        self,
        plan: Callable[[wire.Message, list[int]], init.Plan],
        rehearse: Callable[[], None],
    ) -> None:
        """Fork it; it does `rehearse` before it waits."""
        self.sync, theirs = wire.core_pair()
        self.pid = Namespaces([{"type": "pid"}]).fork()
        if self.pid == 0:
            self.sync.close()
            _wait(plan, rehearse, theirs)
        theirs.close()

    def give(self, message: wire.Message, stdio: Sequence[int]) -> bool:
        """Have it become an init; False when it cannot any more."""
        try:
            wire.send(self.sync, message, stdio)
        except OSError:  # it was killed
            return False
        return True

    def end(self) -> None:
        """End it: this container needs an init of another kind. Our subreaper reaps it, later."""
        self.sync.close()


def _wait(
    plan: Callable[[wire.Message, list[int]], init.Plan],
    rehearse: Callable[[], None],
    sync: wire.Socket,
) -> NoReturn:
    try:
        rehearse()
        received = wire.receive(sync)
        if received is not None:
            init.run(plan(*received), sync)
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        init.report(sync, "spec", err)
    finally:
        os._exit(init.START_FAILED)
