"""This process's stdin, stdout, stderr and signals, connected to an Exec or Attach call.

Three threads meet here. The main thread prints what comes and takes signals; gRPC's own thread
asks `Requests` for the next message to send; a reader thread turns stdin into messages.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Generic, TypeVar

import grpc

from api.extension import extension_pb2 as pb
from criserver.cli import terminal
from criserver.cli.errors import RUNTIME_FAILURE, CommandError

CHUNK_SIZE = 64 * 1024
MAX_CHUNKS_IN_FLIGHT = 4  # of stdin: what is read ahead of the network, 256 KiB

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

# A process that is pid 1 ignores a signal it has no handler for (man 7 pid_namespaces), so a third
# ^C has to mean this program and not the one in the container.
PATIENCE = 3

Input = TypeVar("Input", pb.ExecInput, pb.AttachInput)
Output = TypeVar("Output", pb.ExecOutput, pb.AttachOutput)


# What leaves a container's terminal: ^P ^Q, as with docker and podman.
DETACH_KEYS = b"\x10\x11"


class GivenUpError(Exception):
    """The user has interrupted so often that the end is not waited for."""


class DetachedError(Exception):
    """The user has typed DETACH_KEYS."""


def terminal_size() -> pb.TerminalSize:
    """Return the size of the terminal at stdin; zeros, which mean nothing, when it is none."""
    width, height = terminal.window_size()
    return pb.TerminalSize(width=width, height=height)


class Requests(Generic[Input]):
    """The request stream: an iterator that others put messages into.

    SimpleQueue.put may be called by a signal handler at any point; the number of stdin chunks in
    it is bounded by a semaphore that only the stdin thread waits for.
    """

    def __init__(self, message: type[Input], start: Input) -> None:
        self._message: type[Input] = message
        self._queue: queue.SimpleQueue[Input | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_CHUNKS_IN_FLIGHT)
        self._queue.put(start)

    def __iter__(self) -> Iterator[Input]:
        while (message := self._queue.get()) is not None:
            yield message
            if message.WhichOneof("input") == "stdin":
                self._room.release()

    def send_stdin(self, data: bytes) -> None:
        """Send input; waits while too much is on its way."""
        self._room.acquire()
        self._queue.put(self._message(stdin=data))

    def close_stdin(self) -> None:
        """Send the end of the input."""
        self._queue.put(self._message(stdin_close=pb.StdinClose()))

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self._queue.put(self._message(signal=number))

    def send_size(self) -> None:
        """Send the size that the terminal has now."""
        self._queue.put(self._message(resize=terminal_size()))

    def end(self) -> None:
        """End the request stream."""
        self._queue.put(None)


def relay(
    call: grpc.StreamStreamMultiCallable[Input, Output],
    start: Input,
    *,
    stdin: bool,
    raw: bool | None,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Make the call and relay everything until the process's end; returns its exit code.

    With raw, stdin is a terminal that is in raw mode meanwhile; None means that it is so if both
    stdin and the container's streams are a terminal, and that DETACH_KEYS end it. started is
    called once the other side is connected. Raises grpc.RpcError, GivenUpError, DetachedError, and
    what started raises.
    """
    requests = Requests(type(start), start)
    detached = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(requests.end)
        responses = call(iter(requests))
        stack.callback(responses.cancel)
        for output in _until_detached(responses, detached):
            match output.WhichOneof("output"):
                case "started":
                    started()
                    keys = b""
                    if raw is None:
                        raw = stdin and _has_terminal(output) and os.isatty(terminal.STDIN)
                        keys = DETACH_KEYS if raw else b""
                    stack.enter_context(_signals_to(requests, resize=raw))
                    if raw:
                        stack.enter_context(terminal.raw())
                    if stdin:

                        def detach() -> None:
                            detached.set()
                            responses.cancel()

                        reading = (requests, keys, detach)
                        threading.Thread(target=_read_stdin, args=reading, daemon=True).start()
                case "stdout":
                    _write_all(1, output.stdout)
                case "stderr":
                    _write_all(2, output.stderr)
                case "exit_code":
                    return output.exit_code
    raise CommandError("the stream ended without an exit code", RUNTIME_FAILURE)


def _has_terminal(output: pb.ExecOutput | pb.AttachOutput) -> bool:
    """Tell whether the container that was attached to has a terminal."""
    return isinstance(output, pb.AttachOutput) and output.started.terminal


def _until_detached(responses: Iterable[Output], detached: threading.Event) -> Iterator[Output]:
    """Yield what comes; raises DetachedError once `detached` is set, which cancels the call."""
    try:
        yield from responses
    except grpc.RpcError as err:
        if detached.is_set():
            raise DetachedError from err
        raise


@contextlib.contextmanager
def _signals_to(requests: Requests[Input], *, resize: bool) -> Iterator[None]:
    interrupts = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        requests.send_signal(number)
        interrupts += number in (signal.SIGINT, signal.SIGTERM)
        if interrupts >= PATIENCE:
            raise GivenUpError

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    if resize:
        handler = signal.signal(signal.SIGWINCH, lambda _number, _frame: requests.send_size())
        before[signal.SIGWINCH] = handler
        requests.send_size()  # it may have changed before the handler was there
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_stdin(requests: Requests[Input], keys: bytes, detach: Callable[[], None]) -> None:
    """Send stdin until its end; with `keys`, until they are typed: then `detach` is called."""
    held = b""  # the beginning of `keys`, which may be just that
    while data := _read_chunk():
        data = held + data
        if keys and keys in data:
            requests.send_stdin(data.partition(keys)[0])
            detach()
            return
        held = keys[:-1] if keys and data.endswith(keys[:-1]) else b""
        if rest := data.removesuffix(held):
            requests.send_stdin(rest)
    requests.close_stdin()


def _read_chunk() -> bytes:
    try:
        return os.read(terminal.STDIN, CHUNK_SIZE)
    except OSError:  # EBADF: stdin is closed; EIO: the terminal has been hung up
        return b""


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
