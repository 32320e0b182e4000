"""The daemon's connection to its spawner."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtimeshim import wire
from runtimeshim.client import launch
from runtimeshim.client.connection import Connection, NotSentError, receive_one
from runtimeshim.client.model import (
    ProgramResult,
    ProgramTimeoutError,
    ShimOptions,
    SpawnerError,
    WorkerError,
)
from runtimeshim.client.pipes import file_of, open_pipe, read_to_end
from runtimeshim.client.shim import Shim

# How long a spawner may take to import its modules and answer: 0.2 s on an idle machine.
SPAWNER_START_SECONDS = 30.0
# How long a shim may take from fork to 'created', with a slow disk below its mounts.
CREATE_SECONDS = 120.0
# A helper program's output is bounded: CNI results are a few KB.
MAX_PROGRAM_OUTPUT = 4 * 1024 * 1024


class Spawner:
    """The daemon's connection to its spawner."""

    def __init__(self, run_dir: Path, workers: Mapping[str, str]) -> None:
        self._run_dir = run_dir
        self._workers = dict(workers)
        self._build = launch.build_id(workers)
        self._connection: Connection | None = None
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._connecting = asyncio.Lock()
        self._closing = False
        self._return: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self.pid = 0
        self.starts = 0
        """How many spawners this connection has started: the one that it found counts for none."""

    @property
    def connected(self) -> bool:
        """Tell whether a spawner is there; one that has died is started anew when it is needed."""
        return self._connection is not None and not self._connection.closed

    @classmethod
    async def connect(cls, run_dir: Path, workers: Mapping[str, str]) -> Spawner:
        """Connect to the living spawner of `run_dir`, or start one.

        `workers` maps a name to "package.module:function". Raises SpawnerError when a spawner
        cannot be started.
        """
        spawner = cls(run_dir, workers)
        await spawner._connected()
        return spawner

    async def check(self, timeout: float) -> None:
        """See that the spawner answers within `timeout` seconds; a dead one is started anew.

        Raises SpawnerError.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._hello())
        # Never cancelled here: it may be starting a spawner.
        done, _ = await asyncio.wait({self._checking}, timeout=timeout)
        if not done:
            raise SpawnerError(f"the spawner (pid {self.pid}) does not answer for {timeout:.1f} s")
        self._checking.result()

    async def _hello(self) -> None:
        connection = await self._connected()
        try:
            await connection.call({"op": "hello"})
        except ConnectionError:
            await self._connected()  # it has died; this one has said hello

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await self._find() or await self._launch()
            return self._connection

    async def _find(self) -> Connection | None:
        """Return a connection to a living spawner of our build; retire one of another."""
        try:
            sock = launch.connect(self._run_dir / "spawner.sock")
        except OSError:  # no socket, or nobody behind it
            return None
        connection = Connection(sock, self._on_event, self._on_close)
        try:
            async with asyncio.timeout(SPAWNER_START_SECONDS):
                hello, _ = await connection.call({"op": "hello"})
                if hello.get("build") == self._build:  # so it is of our protocol, too
                    self.pid = int(hello["pid"])
                    return connection
                await connection.call({"op": "retire"})
        except (ConnectionError, TimeoutError):
            pass  # it is dead or deaf: a new one takes the socket's name
        connection.close()
        return None

    async def _launch(self) -> Connection:
        try:
            self.pid = launch.start_spawner(self._run_dir, self._build, self._workers)
            self.starts += 1
            self._reap_when_ended(self.pid)
            sock = launch.connect(self._run_dir / "spawner.sock")
        except OSError as err:
            raise SpawnerError(f"the spawner cannot be started in {self._run_dir}: {err}") from err
        connection = Connection(sock, self._on_event, self._on_close)
        try:
            async with asyncio.timeout(SPAWNER_START_SECONDS):
                await connection.call({"op": "hello"})
        except (ConnectionError, TimeoutError) as err:
            connection.close()
            raise SpawnerError(
                f"the spawner (pid {self.pid}) did not come up: see {self._run_dir}/spawner.log"
            ) from err
        return connection

    def _reap_when_ended(self, pid: int) -> None:
        """Leave no zombie of a spawner that dies, or is retired, before the daemon does."""
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            os.waitpid(pid, 0)

        loop.add_reader(pidfd, ended)

    def _on_event(self, message: wire.Message) -> None:
        future = self._exits.pop(message.get("id", 0), None)
        if future is not None and not future.done():
            future.set_result(int(message.get("exit", 255)))

    def _on_close(self) -> None:
        for future in self._exits.values():
            if not future.done():
                future.set_exception(SpawnerError("the spawner has died; the request was lost"))
        self._exits.clear()
        if not self._closing:  # shims wait for a new one, to leave their duplicates with it
            self._return = asyncio.get_running_loop().create_task(self._bring_back())

    async def _bring_back(self) -> None:
        try:
            await self._connected()
        except SpawnerError:
            return  # the next request tries again, and has somebody to tell

    async def _spawn(self, message: wire.Message, fds: Sequence[int]) -> asyncio.Future[int]:
        """Ask for a child, and return the future of its exit code.

        The message gets the request's id and the child's pid.
        """
        connection = await self._connected()
        message["id"] = connection.next_id()
        try:
            return await self._ask(connection, message, fds)
        except NotSentError:
            # It died since its last answer; the loop had not come to hear of it.
            connection.close()
            self._on_close()
            connection = await self._connected()
            message["id"] = connection.next_id()
            return await self._ask(connection, message, fds)

    async def _ask(
        self, connection: Connection, message: wire.Message, fds: Sequence[int]
    ) -> asyncio.Future[int]:
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Nobody may be left to ask for it: a worker that has answered is of no more interest.
        exited.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._exits[message["id"]] = exited
        try:
            answer, _ = await connection.call(message, fds)
        except NotSentError:
            self._exits.pop(message["id"], None)
            raise
        except ConnectionError as err:
            raise SpawnerError(f"the spawner has died during {message['op']!r}") from err
        if "error" in answer:
            self._exits.pop(message["id"], None)
            raise SpawnerError(f"the spawner refused {message['op']!r}: {answer['error']}")
        message["pid"] = answer["pid"]
        return exited

    async def _kill(self, request: int) -> None:
        connection = await self._connected()
        with contextlib.suppress(ConnectionError):  # dead with the spawner's other children
            await connection.send({"id": connection.next_id(), "op": "kill", "target": request})

    async def run_worker(
        self, name: str, args: Mapping[str, Any], fds: Sequence[int] = (), *, timeout: float
    ) -> tuple[dict[str, Any], list[int]]:
        """Run a worker's job in a fork of the spawner; returns its answer and its fds.

        The worker gets duplicates of `fds`. It is killed after `timeout` seconds, or when the
        caller is cancelled. Raises WorkerError, TimeoutError or SpawnerError.
        """
        ours, theirs = wire.pair()
        message: wire.Message = {"op": "worker", "name": name, "args": dict(args)}
        try:
            with theirs:
                exited = await self._spawn(message, [theirs.fileno(), *fds])
        except BaseException:
            ours.close()
            raise
        try:
            async with asyncio.timeout(timeout):
                received = await receive_one(ours)
        except BaseException:  # timeout or cancellation: nobody waits for the answer
            await self._kill(message["id"])
            raise
        finally:
            ours.close()
        if received is None:
            code = await exited
            raise WorkerError("Died", f"worker {name!r} died with exit code {code}", None)
        answer, answer_fds = received
        if "error" in answer:
            error = answer["error"]
            raise WorkerError(error["kind"], error["message"], error["errno"])
        return answer["result"], answer_fds

    async def run_program(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        timeout: float,
        watch: Callable[[int, bytearray], None] | None = None,
    ) -> ProgramResult:
        """Run a helper program to its end; argv[0] is an absolute path.

        It is killed, with its process group, after `timeout` seconds (ProgramTimeoutError).
        `watch` is called once it runs, with its pid and with what will grow by its stderr.
        Raises SpawnerError when it cannot be executed.
        """
        with contextlib.ExitStack() as stack:
            stdin_r = file_of(stdin, stack)
            stdout_r, stdout_w = open_pipe(stack)
            stderr_r, stderr_w = open_pipe(stack)
            message: wire.Message = {"op": "program", "argv": list(argv), "env": dict(env)}
            exited = await self._spawn(message, [stdin_r, stdout_w, stderr_w])
            for fd in (stdout_w, stderr_w):
                os.close(fd)
            output = bytearray()
            errors = bytearray()
            if watch is not None:
                watch(message["pid"], errors)
            try:
                async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                    group.create_task(read_to_end(stdout_r, output, MAX_PROGRAM_OUTPUT))
                    group.create_task(read_to_end(stderr_r, errors, MAX_PROGRAM_OUTPUT))
                    code = await exited
            except TimeoutError as err:
                await self._kill(message["id"])
                raise ProgramTimeoutError(argv[0], timeout, bytes(output), bytes(errors)) from err
            except BaseException:
                await self._kill(message["id"])
                raise
            return ProgramResult(code, bytes(output), bytes(errors))

    async def spawn_shim(
        self,
        container_id: str,
        bundle: Path,
        options: ShimOptions,
        watch: Callable[[int], None] | None = None,
    ) -> Shim:
        """Create a container: its init is isolated and waits just before execve.

        `bundle` holds config.json; `watch` is called with the shim's pid as soon as that is known.
        Raises CreateError with the stage, SpawnerError or
        TimeoutError; nothing of the container is left then.
        """
        ours, theirs = wire.pair()
        message: wire.Message = {
            "op": "shim",
            "container": container_id,
            "bundle": str(bundle),
            "options": _options(options)
            | {
                "seccomp_cache": str(self._run_dir / "seccomp"),
                "spawner": str(self._run_dir / "spawner.sock"),
            },
        }
        shim = Shim(container_id, bundle, ours)
        creating = asyncio.create_task(
            shim.created()
        )  # asked at once: the shim need not wait for us
        try:
            with theirs:
                await self._spawn(message, [theirs.fileno()])
            if watch is not None:
                watch(message["pid"])
            async with asyncio.timeout(CREATE_SECONDS):
                await asyncio.shield(creating)
        except BaseException:
            shim.close()
            creating.cancel()
            await asyncio.wait({creating})
            if not creating.cancelled():
                creating.exception()  # the one that is on its way, or of the close above
            await self._kill(message.get("id", 0))
            raise
        return shim

    async def retire(self) -> None:
        """Tell the spawner to exit as soon as its last child has, and start no other."""
        self._closing = True
        connection = await self._connected()
        await connection.call({"op": "retire"})

    async def close(self) -> None:
        """Disconnect; the spawner and all that it started go on."""
        self._closing = True
        if self._checking is not None:
            self._checking.cancel()
        if self._connection is not None:
            self._connection.close()


def _options(options: ShimOptions) -> dict[str, Any]:
    rootfs = options.rootfs
    return {
        "rootfs": None
        if rootfs is None
        else {
            "lowerdirs": list(rootfs.lowerdirs),
            "upperdir": rootfs.upperdir,
            "volatile": rootfs.volatile,
            "workdir": rootfs.workdir,
        },
        "log_path": None if options.log_path is None else str(options.log_path),
        "log_directory": None if options.log_directory is None else str(options.log_directory),
        "runtime": None
        if options.runtime is None
        else {"name": options.runtime.name, "path": options.runtime.path},
        "stdin": options.stdin,
        "stdin_once": options.stdin_once,
    }
