"""A container's stdio: output to log and attached clients, input from one of them.

Nothing here blocks. A client that does not read holds its container's stream back once
MAX_BACKLOG bytes wait for it, as with containerd: whoever pages through output expects to see all
of it. What waits for a client when the stream ends is still delivered, however long it takes.

What a container has written and what is not yet in the log is always in the kernel: of a pipe, the
bytes are moved by splice(2), which is atomic, into a second pipe that holds the unfinished line.
They are copied from there by tee(2), and consumed only when their lines are in the log. The spawner
has both pipes too: of a shim that is killed at any point, the next one finds the stream whole, and
at worst logs the chunk in flight twice. A terminal has neither call: of it, what was read and not
yet written is lost with the shim, 64 KiB at the most.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping

from runtimeshim.linux import syscalls
from runtimeshim.oci import terminal
from runtimeshim.oci.stdio import Streams
from runtimeshim.shim.log import LineFormatter, LogFile, timestamp
from runtimeshim.shim.poller import EDGE, HANGUP, READ, WRITE, Poller

READ_SIZE = 64 * 1024  # a pipe's capacity
READS_PER_TURN = 16  # of a stream that never pauses; all else the shim does waits meanwhile
MAX_BACKLOG = 1024 * 1024  # bounds the shim's memory per client


class Client:
    """One attached reader of a stream."""

    __slots__ = ("backlog", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.backlog = bytearray()


class Clients:
    """The attached readers of one stream."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._clients: list[Client] = []
        self._ending = False
        self.full = False  # one of them has MAX_BACKLOG bytes to read yet
        self.on_room: Callable[[], None] | None = None  # called when that is over

    def __bool__(self) -> bool:
        return bool(self._clients)

    def add(self, fd: int) -> None:
        """Take a reader; the fd is ours to close, and is as soon as its other side has gone.

        The container may never write again, so a write that fails is no way to find that out.
        """
        os.set_blocking(fd, False)
        client = Client(fd)
        self._clients.append(client)
        self._await_hangup(client)

    def _await_hangup(self, client: Client) -> None:
        try:
            self._poller.register(client.fd, HANGUP, lambda _: self._gone(client))
        except PermissionError:  # a regular file: it has no other side (man 2 epoll_ctl)
            pass

    def _gone(self, client: Client) -> None:
        self._forget(client)
        self._measure()

    def send(self, data: bytes) -> None:
        """Give all of them `data`, or keep it until they take it."""
        for client in list(self._clients):
            self._send(client, data)
        self._measure()

    def end(self) -> None:
        """Nothing more comes: who has read all is let go, the others when they have."""
        self._ending = True
        for client in [client for client in self._clients if not client.backlog]:
            self._forget(client)

    def _send(self, client: Client, data: bytes) -> None:
        if not client.backlog:
            data = self._write(client, data)
            if not data:
                return
            self._poller.unregister(client.fd)
            self._poller.register(client.fd, WRITE, lambda _: self._writable(client))
        client.backlog += data

    def _write(self, client: Client, data: bytes) -> bytes:
        """Write what goes; returns the rest. A client that has gone is forgotten."""
        try:
            return data[os.write(client.fd, data) :]
        except BlockingIOError:
            return data
        except OSError:  # EPIPE, ECONNRESET: it has hung up
            self._forget(client)
            return b""

    def _writable(self, client: Client) -> None:
        rest = self._write(client, bytes(client.backlog))
        if client in self._clients:
            client.backlog[:] = rest
            if not rest:
                self._poller.unregister(client.fd)
                if self._ending:
                    self._forget(client)
                else:
                    self._await_hangup(client)
        self._measure()

    def _forget(self, client: Client) -> None:
        self._clients.remove(client)
        self._poller.unregister(client.fd)
        os.close(client.fd)

    def _measure(self) -> None:
        was_full = self.full
        self.full = any(len(client.backlog) >= MAX_BACKLOG for client in self._clients)
        if was_full and not self.full and self.on_room is not None:
            self.on_room()


class Output:
    """One output stream of the container; see Pipe and Terminal for how it is read."""

    def __init__(self, fd: int, name: bytes, log: LogFile, poller: Poller) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.open = True
        self.clients = Clients(poller)
        self.clients.on_room = self._readable
        self._lines = LineFormatter(name)
        self._log = log
        self._poller = poller
        poller.register(fd, READ | EDGE, lambda _: self._readable())

    def attach(self, fd: int) -> None:
        """Send the stream to `fd` from now on; the fd is ours to close."""
        if self.open:
            self.clients.add(fd)
        else:
            os.close(fd)

    def drain(self, deadline: float) -> None:
        """Read on until the end of file, or until time.monotonic() is `deadline`; then close.

        Clients that are behind are not waited for.
        """
        if not self.open:
            return
        poller = Poller()
        poller.register(self.fd, READ, self._drain_piece)
        while self.open and (left := deadline - time.monotonic()) > 0:
            poller.turn(left)
        poller.close()
        self.close()

    def close(self) -> None:
        """End the stream: the last line goes to the log, clients see the end of file."""
        if not self.open:
            return
        self.open = False
        self._finish()
        self._poller.unregister(self.fd)
        os.close(self.fd)
        self.clients.end()

    def _readable(self) -> None:
        for _ in range(READS_PER_TURN):
            if not self.open or self.clients.full or not self._read():
                return
        if self.open:  # else the last read of this turn was the end
            self._poller.again(self.fd, READ | EDGE)

    def _drain_piece(self, _: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Take one piece of the stream, or its end; False when there is nothing to take."""
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


class Pipe(Output):
    """A stream of a container without a terminal.

    `rest` is the pipe of the unfinished line, of an earlier shim or a new one.
    """

    def __init__(
        self, fd: int, name: bytes, log: LogFile, poller: Poller, rest: tuple[int, int] | None
    ) -> None:
        self._seen = 0  # bytes of the unfinished line, which clients have been given
        self.rest = rest or os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._copy_r, self._copy_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        super().__init__(fd, name, log, poller)
        if rest is not None:  # whole lines are in it, if that shim was killed before it had them
            self._take(self._look())

    def _read(self) -> bool:
        moved = self._move()
        if moved is None and not self._has_more():
            return False
        if moved is None:
            moved = self._move()
        if moved is None:  # there is more, but no room: a line written in many small pieces
            self._log_partial()
        elif moved:
            self._take(self._look())
        else:
            self.close()
        return True

    def _move(self) -> int | None:
        """Move what is written to the unfinished line; 0 at the end of file, None for nothing."""
        try:
            return os.splice(self.fd, self.rest[1], READ_SIZE)
        except BlockingIOError:
            return None

    def _has_more(self) -> bool:
        return bool(select.select([self.fd], [], [], 0)[0])

    def _look(self) -> bytes:
        """Return what has been moved and not been consumed."""
        try:
            length = syscalls.tee(self.rest[0], self._copy_w, READ_SIZE)
        except BlockingIOError:
            return b""
        return os.read(self._copy_r, length)

    def _take(self, data: bytes) -> None:
        """Log the lines, then consume them; clients see what they have not yet seen."""
        new = data[self._seen :]
        lines, length = self._lines.cut(data, timestamp(time.time_ns()))
        if lines:
            self._log.write(lines)
            os.read(self.rest[0], length)
        self._seen = len(data) - length
        if new:
            self.clients.send(new)

    def _log_partial(self) -> None:
        """Log the unfinished line as far as it has come."""
        rest = self._look()
        self._log.write(self._lines.last(rest, timestamp(time.time_ns())))
        os.read(self.rest[0], len(rest))
        self._seen = 0

    def _finish(self) -> None:
        self._take(self._look())
        if self._seen:
            self._log_partial()
        for fd in (*self.rest, self._copy_r, self._copy_w):
            os.close(fd)


class Terminal(Output):
    """The controlling side of a container's terminal."""

    def __init__(self, fd: int, name: bytes, log: LogFile, poller: Poller) -> None:
        self._rest = b""
        super().__init__(fd, name, log, poller)

    def _read(self) -> bool:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the terminal's last user has gone
            data = b""
        if not data:
            self.close()
            return True
        held = self._rest + data
        lines, length = self._lines.cut(held, timestamp(time.time_ns()))
        self._log.write(lines)
        self._rest = held[length:]
        self.clients.send(data)
        return True

    def _finish(self) -> None:
        self._log.write(self._lines.last(self._rest, timestamp(time.time_ns())))


class Input:
    """The container's stdin, fed by one attached client at a time."""

    def __init__(self, fd: int, *, once: bool, poller: Poller) -> None:
        os.set_blocking(fd, False)
        self._fd: int | None = fd
        self._once = once
        self._poller = poller
        self._source: int | None = None
        self._pending = b""
        self.on_close: Callable[[], None] | None = None  # others may hold the fd as well

    def attach(self, fd: int) -> None:
        """Read stdin from `fd`; the fd is ours to close. A former client's is closed."""
        if self._fd is None:
            os.close(fd)
            return
        self._detach()
        os.set_blocking(fd, False)
        self._source = fd
        self._poller.register(fd, READ, self._readable)

    def _readable(self, _: int) -> None:
        assert self._source is not None
        try:
            data = os.read(self._source, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # the client was reset: an end like any other
            data = b""
        if data:
            self._pending = data
            self._push()
            return
        self._detach()
        if self._once:
            self.close()

    def _push(self) -> None:
        """Write what is pending; while the container does not read, neither do we."""
        assert self._fd is not None and self._source is not None
        try:
            self._pending = self._pending[os.write(self._fd, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # the container has closed its end
            self.close()
            return
        if self._pending:
            self._poller.unregister(self._source)
            self._poller.register(self._fd, WRITE, self._writable)

    def _writable(self, _: int) -> None:
        assert self._fd is not None and self._source is not None
        self._poller.unregister(self._fd)
        self._poller.register(self._source, READ, self._readable)
        self._push()

    def _detach(self) -> None:
        if self._source is None:
            return
        self._poller.unregister(self._source)
        if self._fd is not None:
            self._poller.unregister(self._fd)
        os.close(self._source)
        self._source = None
        self._pending = b""

    def close(self) -> None:
        """End the container's stdin."""
        self._detach()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            if self.on_close is not None:
                self.on_close()


class Stdio:
    """All streams of one container."""

    def __init__(
        self,
        streams: Streams,
        log: LogFile,
        *,
        once: bool,
        poller: Poller,
        rests: Mapping[str, tuple[int, int]],
    ) -> None:
        self._terminal = streams.terminal
        self.outputs: dict[str, Output] = {}
        self.stdin: Input | None = None
        stdin = streams.stdin
        if streams.terminal is not None:
            self.outputs["stdout"] = Terminal(streams.terminal, b"stdout", log, poller)
            stdin = os.dup(streams.terminal)
        for name, fd in (("stdout", streams.stdout), ("stderr", streams.stderr)):
            if fd is not None:
                self.outputs[name] = Pipe(fd, name.encode(), log, poller, rests.get(name))
        if stdin is not None:
            self.stdin = Input(stdin, once=once, poller=poller)

    def rests(self) -> dict[str, tuple[int, int]]:
        """Return the pipes of the unfinished lines, by stream."""
        pipes = {name: out for name, out in self.outputs.items() if isinstance(out, Pipe)}
        return {name: pipe.rest for name, pipe in pipes.items()}

    def attach(self, name: str, fd: int) -> None:
        """Join a stream; one that the container does not have ends at once."""
        if name == "stdin" and self.stdin is not None:
            self.stdin.attach(fd)
        elif name in self.outputs:
            self.outputs[name].attach(fd)
        else:
            os.close(fd)

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size. Raises ValueError without a terminal."""
        if self._terminal is None or not self.outputs["stdout"].open:
            raise ValueError("the container has no terminal")
        terminal.set_size(self._terminal, width, height)

    def finish(self, seconds: float) -> None:
        """Drain what the container has left behind, bounded, and end every stream."""
        if self.stdin is not None:
            self.stdin.close()
        deadline = time.monotonic() + seconds
        for output in self.outputs.values():
            output.drain(deadline)

    def flushing(self) -> bool:
        """Tell whether a stream has ended, and a client has not yet been given all of it."""
        return any(not output.open and output.clients for output in self.outputs.values())
