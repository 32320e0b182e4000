"""A pod's namespaces in the making: what the daemon asks of the worker, and hears meanwhile.

The worker, a fork of the spawner (podsandbox.namespaces_worker), and the daemon work beside each
other:

    worker   net, ipc, uts ─ pin net ─┬─ pid 1 ─ the other pins ─┬─ "go" ─ exit
    daemon   cgroup, files ───────────│──────────────── cgroup ──┘
                                      └─ network: plugins, or rtnetlink
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api.errors import InternalError, InvalidArgumentError, UnavailableError
from podsandbox.plan import SandboxPlan
from runtimeshim.client import Spawner, SpawnerError, WorkerError, receive_one

WORKER = "namespaces"  # the name under which the spawner knows namespaces_worker.main

# It takes milliseconds; the rest is for a machine under heavy load.
WORKER_TIMEOUT_SECONDS = 60.0

# 64 MiB, as every container runtime's.
_SHM_SIZE = 64 << 20


@dataclass(frozen=True)
class Made:
    """What the worker has made, beside the pins."""

    init_pid: int | None
    """Host pid of the shared PID namespace's pid 1."""
    init_status: int | None
    """The caller's fd: what keeps pid 1 from its program, then the end of file."""


class Making:
    """The namespaces of one pod; `close` it in the end. Raises api.errors.CRIError."""

    def __init__(self, spawner: Spawner, plan: SandboxPlan, directory: Path) -> None:
        self._spawner = spawner
        self._plan = plan
        self._directory = directory
        self._has_failed = False
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def make(self, program: int | None) -> Made:
        """Have the worker make them; `program` is pid 1's, None without one.

        What it had made when it failed is undone, but for a network namespace that network_made
        has told of. InvalidArgumentError is a sysctl's.
        """
        plan = self._plan
        args = {
            "directory": str(self._directory),
            "namespaces": list(plan.namespaces),
            "hostname": plan.hostname,
            "sysctls": dict(plan.sysctls),
            "shm_size": _SHM_SIZE if plan.own_ipc else 0,
            "mount_label": plan.mount_label,
            "init_cgroup": plan.init_cgroup,
            "user": plan.user and plan.user.as_json(),
        }
        fds = [self._theirs.fileno(), *([] if program is None else [program])]
        with self._theirs, _naming():
            made, opened = await self._spawner.run_worker(
                WORKER, args, fds, timeout=WORKER_TIMEOUT_SECONDS
            )
        return Made(made["init_pid"], opened[0] if opened else None)

    async def network_made(self) -> int | None:
        """Wait for the network namespace's pin; returns an rtnetlink socket from inside it.

        It is the caller's. None when `make` fails before, or there is no cgroup.
        """
        received = await receive_one(self._ours)
        if received is None:
            return None
        _, (rtnetlink,) = received
        if self._has_failed:
            os.close(rtnetlink)
            return None
        return rtnetlink

    def cgroup_made(self) -> None:
        """Tell the worker that pid 1 has a cgroup to go to; needed where the plan has one."""
        with contextlib.suppress(ConnectionError):  # it has failed, and `make` says of what
            self._ours.send(b"cgroup")

    def no_cgroup(self) -> None:
        """Tell a worker that waits for the cgroup that there will be none: it fails."""
        self._has_failed = True
        self._ours.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the worker, which has ended."""
        self._ours.close()
        self._theirs.close()


@contextlib.contextmanager
def _naming() -> Iterator[None]:
    what = "create the pod's namespaces"
    try:
        yield
    except WorkerError as err:
        if err.kind == "ValueError":  # a sysctl's name or value
            raise InvalidArgumentError(str(err)) from err
        raise InternalError(f"{what}: {err}") from err
    except TimeoutError as err:
        raise InternalError(f"{what}: not done in {WORKER_TIMEOUT_SECONDS:g} s") from err
    except SpawnerError as err:
        raise UnavailableError(f"{what}: {err}") from err
