"""The daemon's connection to one container's shim."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtimeshim import exit_record, wire
from runtimeshim.client import launch
from runtimeshim.client.connection import Connection
from runtimeshim.client.model import CreateError, ShimError, StartError
from runtimeshim.client.pipes import file_of
from runtimeshim.exit_record import ExitRecord

# Of a shim that does not say.
FIRST_PROTOCOL = 1


class Exec:
    """A process that was started in a running container."""

    def __init__(self, shim: Shim, answer: wire.Message, terminal: int | None) -> None:
        self._shim = shim
        self._name: int = answer["exec"]
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exited.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.pid: int = answer["pid"]
        self.timings: dict[str, int] = answer["timings"]  # stage -> ns
        self.terminal = terminal  # the pty's master; the caller closes it

    def exited(self, code: int) -> None:
        """Take the exit code (called by the shim's connection)."""
        if not self._exited.done():
            self._exited.set_result(code)

    def lost(self, err: Exception) -> None:
        """Take the loss of the shim's connection."""
        if not self._exited.done():
            self._exited.set_exception(err)

    async def wait(self) -> int:
        """Return the exit code, 128 + signal for a death by signal. Raises ShimError."""
        return await asyncio.shield(self._exited)

    async def kill(self, signal_: int) -> None:
        """Signal the process; SIGKILL reaches what it started as well."""
        await self._shim.call("exec-kill", exec=self._name, signal=int(signal_))

    async def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal in characters."""
        await self._shim.call("exec-resize", exec=self._name, width=width, height=height)


class Shim:
    """The daemon's connection to one container's shim."""

    def __init__(self, container_id: str, bundle: Path, sock: socket.socket) -> None:
        self.container_id = container_id
        self.bundle = bundle
        self.pid = 0
        self.protocol = wire.PROTOCOL  # until it has said its own
        self.timings: dict[str, int] = {}
        self.warnings: list[str] = []
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[ExitRecord] = loop.create_future()
        self._exit.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.on_oom: Callable[[int], None] | None = None  # given how many processes were killed
        self._execs: dict[int, Exec] = {}
        self._early: dict[int, int] = {}
        self._connection = Connection(sock, self._on_event, self._on_close)

    async def created(self) -> None:
        """Wait for the shim's first message. Raises CreateError."""
        try:
            answer, _ = await self._connection.call({"op": "created"})
        except ConnectionError as err:
            raise CreateError("", "the shim died while it created the container") from err
        if "error" in answer:
            raise CreateError(answer.get("stage", ""), answer["error"], answer.get("kind", "error"))
        self._take(answer)

    def _take(self, answer: wire.Message) -> None:
        self.pid = int(answer["pid"])
        self.protocol = int(answer.get("protocol", FIRST_PROTOCOL))
        self.timings = dict(answer["timings"])
        self.warnings = list(answer["warnings"])

    async def refresh(self) -> None:
        """Ask for pid, timings and warnings again (after a reconnect)."""
        answer, _ = await self.call("state")
        self._take(answer)

    async def call(
        self, op: str, fds: Sequence[int] = (), **fields: Any
    ) -> tuple[wire.Message, list[int]]:
        """Make one request.

        Raises ShimError, of kind "finished" when the container has ended, and its shim with it,
        "gone" when the shim was killed: another one adopts the container, or "version" when the
        shim is of an older build that cannot do this.
        """
        if (since := wire.SINCE.get(op, 0)) > self.protocol:
            raise self._too_old(f"{op!r} came with {since}")
        try:
            answer, answer_fds = await self._connection.call({"op": op, **fields}, fds)
        except ConnectionError as err:
            if self._over():
                raise ShimError("the container has ended", "finished") from err
            raise ShimError(f"the shim of {self.container_id} is gone", "gone") from err
        if answer.get("kind") == "unknown":
            raise self._too_old(f"it does not know {op!r}")
        if "error" in answer:
            raise ShimError(answer["error"], answer.get("kind", "error"))
        return answer, answer_fds

    def _too_old(self, why: str) -> ShimError:
        return ShimError(
            f"the shim of {self.container_id} is of another build of criserver (protocol "
            f"{self.protocol}, the daemon's is {wire.PROTOCOL}), and {why}: "
            "a container that is created now can do this",
            "version",
        )

    async def start(self) -> None:
        """Let the created init execve. Raises StartError with what execve or the look-up said."""
        try:
            await self.call("start")
        except ShimError as err:
            raise StartError(str(err), err.kind) from err

    async def kill(self, signal_: int, *, everyone: bool = False) -> None:
        """Signal init, or every process of the container; one that has exited is no error.

        Raises ShimError, of kind "gone" when the shim was lost before the container's end.
        """
        try:
            await self.call("kill", signal=int(signal_), everyone=everyone)
        except ShimError as err:
            if err.kind != "finished":
                raise

    def _over(self) -> bool:
        """Tell whether the container's end is known."""
        return self._exit.done() and self._exit.exception() is None

    async def exec(self, process: Mapping[str, Any], stdio: tuple[int, int, int] | None) -> Exec:
        """Start an OCI process in the container, on `stdio` or on a new terminal.

        With process["terminal"], `stdio` is None and Exec.terminal is the pty's master fd.
        Raises StartError when the program cannot be executed, ShimError otherwise.
        """
        try:
            answer, fds = await self._call_exec(process, stdio or ())
        except ShimError as err:
            if err.kind == "start":
                raise StartError(str(err), err.kind) from err
            raise
        started = Exec(self, answer, fds[0] if fds else None)
        self._execs[answer["exec"]] = started
        if answer["exec"] in self._early:
            started.exited(self._early.pop(answer["exec"]))
        return started

    async def _call_exec(
        self, process: Mapping[str, Any], stdio: Sequence[int]
    ) -> tuple[wire.Message, list[int]]:
        """Pass the process as a file: its arguments may be larger than a message."""
        with contextlib.ExitStack() as stack:
            file = file_of(json.dumps(dict(process)).encode(), stack)
            return await self.call("exec", fds=[file, *stdio])

    async def attach(
        self, *, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> None:
        """Join the container's streams: the fds are duplicated to the shim."""
        streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        names = [name for name, fd in streams.items() if fd is not None]
        fds = [fd for fd in streams.values() if fd is not None]
        await self.call("attach", fds=fds, streams=names)

    async def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal in characters."""
        await self.call("resize", width=width, height=height)

    async def reopen_log(self) -> None:
        """Close the log and open it anew by its path (after a rotation)."""
        await self.call("reopen-log")

    async def wait(self) -> ExitRecord:
        """Return the exit record as soon as init has exited; ShimError (gone) if it is lost."""
        return await asyncio.shield(self._exit)

    async def delete(self) -> None:
        """End the container if it is not over, and its shim with it; idempotent."""
        with contextlib.suppress(ShimError):  # lost with its shim: there is nothing left to end
            await self.kill(signal.SIGKILL, everyone=True)
            await self.wait()
        self.close()

    def close(self) -> None:
        """Disconnect; shim and container go on."""
        self._connection.close()
        self._lose()

    def _on_event(self, message: wire.Message) -> None:
        match message.get("event"):
            case "exit":
                if not self._exit.done():
                    self._exit.set_result(exit_record.from_json(message["record"]))
            case "oom":
                if self.on_oom is not None:
                    self.on_oom(int(message["kills"]))
            case "exec-exit":
                started = self._execs.pop(message["exec"], None)
                if started is None:  # it was quicker than our reading of its start
                    self._early[message["exec"]] = message["code"]
                else:
                    started.exited(message["code"])

    def _on_close(self) -> None:
        if not self._exit.done():
            record = exit_record.read(self.bundle)
            if record is not None:
                self._exit.set_result(record)
        self._lose()

    def _lose(self) -> None:
        gone = ShimError(f"the shim of {self.container_id} is gone", "gone")
        if not self._exit.done():
            self._exit.set_exception(gone)
        for started in self._execs.values():
            started.lost(gone)
        self._execs.clear()


async def connect_shim(bundle: Path) -> Shim:
    """Connect to the living shim of a bundle. Raises ShimError (gone) when there is none."""
    try:
        sock = launch.connect(bundle / "shim.sock")
    except OSError as err:
        raise ShimError(f"no shim answers at {bundle}/shim.sock: {err.strerror}", "gone") from err
    shim = Shim(bundle.name, bundle, sock)
    try:
        await shim.refresh()
    except BaseException:
        shim.close()
        raise
    return shim
