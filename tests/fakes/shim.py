"""A shim without a container: what it is asked to exec runs as a process of the test."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping
from fcntl import ioctl
from typing import Any

from runtimeshim.client import ExitRecord, ShimError, StartError


class FakeExec:
    """A process in a session of its own, so that SIGKILL reaches what it started."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int | None) -> None:
        self.process = process
        self.pid = process.pid
        self.terminal = terminal

    async def wait(self) -> int:
        code = await asyncio.to_thread(self.process.wait)
        return 128 - code if code < 0 else code

    async def kill(self, signal_: int) -> None:
        if self.process.poll() is not None:
            raise ShimError("process already finished", "finished")
        if signal_ == signal.SIGKILL:
            os.killpg(self.pid, signal_)
        else:
            os.kill(self.pid, signal_)

    async def resize(self, width: int, height: int) -> None:
        assert self.terminal is not None
        ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


class FakeShim:
    """Runs execs as processes; the container's own process is one that `boot` starts."""

    container_id = "c0ffee"

    def __init__(self) -> None:
        self.execs: list[FakeExec] = []
        self.started = asyncio.Event()
        self.hold = asyncio.Event()  # exec answers once it is set
        self.hold.set()
        self.attached: dict[str, int] = {}
        self.signals: list[int] = []
        self.size = (0, 0)
        self.exit: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()

    async def exec(
        self, process: Mapping[str, Any], stdio: tuple[int, int, int] | None
    ) -> FakeExec:
        await self.hold.wait()
        master = None
        if process["terminal"]:
            assert stdio is None
            master, slave = os.openpty()
            stdio = (slave, slave, slave)
        assert stdio is not None
        try:
            child = subprocess.Popen(  # noqa: ASYNC220 - a fork is short
                process["args"], stdin=stdio[0], stdout=stdio[1], stderr=stdio[2],
                start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            raise StartError(f"{process['args'][0]}: {err.strerror}", "start") from err
        finally:
            if master is not None:
                os.close(slave)
        started = FakeExec(child, master)
        self.execs.append(started)
        self.started.set()
        return started

    async def attach(self, **fds: int | None) -> None:
        self.attached = {name: os.dup(fd) for name, fd in fds.items() if fd is not None}

    def detach(self) -> None:
        for fd in self.attached.values():
            os.close(fd)
        self.attached = {}

    async def kill(self, signal_: int, *, everyone: bool = False) -> None:
        self.signals.append(signal_)

    async def resize(self, width: int, height: int) -> None:
        self.size = (width, height)

    async def wait(self) -> ExitRecord:
        return await asyncio.shield(self.exit)

    def close(self) -> None:
        """Reap everything, so that a test that fails leaves no process."""
        self.detach()
        for started in self.execs:
            if started.process.poll() is None:
                started.process.kill()
                started.process.wait()
