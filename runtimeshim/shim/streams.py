"""A container's stdio: output to log and attached clients, input from one of them.

Nothing here blocks. A client that does not read holds its container's stream back once
MAX_BACKLOG bytes wait for it, as with containerd: whoever pages through output expects to see all
of it. What waits for a client when the stream ends is still delivered, however long it takes.
"""

from __future__ import annotations

import os
import selectors
import time

from runtimeshim.oci import terminal
from runtimeshim.oci.container import Streams
from runtimeshim.shim.log import LineFormatter, LogFile, timestamp

READ_SIZE = 64 * 1024  # a pipe's capacity
MAX_BACKLOG = 1024 * 1024  # bounds the shim's memory per client


class Client:
    """One attached reader of a stream."""

    __slots__ = ("backlog", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.backlog = bytearray()


class Output:
    """One output stream of the container."""

    def __init__(
        self, fd: int, name: bytes, log: LogFile, selector: selectors.BaseSelector
    ) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.open = True
        self._lines = LineFormatter(name)
        self._log = log
        self._selector = selector
        self._clients: list[Client] = []
        self._reading = True
        selector.register(fd, selectors.EVENT_READ, self._readable)

    def attach(self, fd: int) -> None:
        """Send the stream to `fd` from now on; the fd is ours to close."""
        if not self.open:
            os.close(fd)
            return
        os.set_blocking(fd, False)
        self._clients.append(Client(fd))

    def drain(self, deadline: float) -> None:
        """Read on until the end of file, or until time.monotonic() is `deadline`."""
        if not self.open:
            return
        poll = selectors.DefaultSelector()
        poll.register(self.fd, selectors.EVENT_READ)
        while self.open:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.select(left):
                break
            self._readable()
        poll.close()
        self.close()

    def close(self) -> None:
        """End the stream: the last line goes to the log, clients see the end of file."""
        if not self.open:
            return
        self.open = False
        self._log.write(self._lines.finish(timestamp(time.time_ns())))
        if self._reading:
            self._selector.unregister(self.fd)
        os.close(self.fd)
        for client in [client for client in self._clients if not client.backlog]:
            self._forget(client)

    def _readable(self, _: object = None) -> None:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal's last user has gone
            data = b""
        if not data:
            self.close()
            return
        self._log.write(self._lines.feed(data, timestamp(time.time_ns())))
        for client in list(self._clients):
            self._send(client, data)
        self._hold_back()

    def _send(self, client: Client, data: bytes) -> None:
        if not client.backlog:
            data = self._write(client, data)
            if not data:
                return
            self._selector.register(
                client.fd, selectors.EVENT_WRITE, lambda _: self._writable(client)
            )
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
                self._selector.unregister(client.fd)
                if not self.open:
                    self._forget(client)
        self._hold_back()

    def _hold_back(self) -> None:
        """Read on only while every client keeps up."""
        wanted = all(len(client.backlog) < MAX_BACKLOG for client in self._clients)
        if self.open and wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._selector.register(self.fd, selectors.EVENT_READ, self._readable)
            else:
                self._selector.unregister(self.fd)

    def flushing(self) -> bool:
        """Tell whether the stream has ended, and a client has not yet been given all of it."""
        return not self.open and bool(self._clients)

    def _forget(self, client: Client) -> None:
        self._clients.remove(client)
        if client.backlog:
            self._selector.unregister(client.fd)
        os.close(client.fd)


class Input:
    """The container's stdin, fed by one attached client at a time."""

    def __init__(self, fd: int, *, once: bool, selector: selectors.BaseSelector) -> None:
        os.set_blocking(fd, False)
        self._fd: int | None = fd
        self._once = once
        self._selector = selector
        self._source: int | None = None
        self._pending = b""

    def attach(self, fd: int) -> None:
        """Read stdin from `fd`; the fd is ours to close. A former client's is closed."""
        if self._fd is None:
            os.close(fd)
            return
        self._detach()
        os.set_blocking(fd, False)
        self._source = fd
        self._selector.register(fd, selectors.EVENT_READ, self._readable)

    def _readable(self, _: object) -> None:
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
            self._pause()

    def _pause(self) -> None:
        assert self._fd is not None and self._source is not None
        self._selector.unregister(self._source)
        self._selector.register(self._fd, selectors.EVENT_WRITE, self._writable)

    def _writable(self, _: object) -> None:
        assert self._fd is not None and self._source is not None
        self._selector.unregister(self._fd)
        self._selector.register(self._source, selectors.EVENT_READ, self._readable)
        self._push()

    def _detach(self) -> None:
        if self._source is None:
            return
        for fd in (self._source, self._fd):
            try:
                self._selector.unregister(fd)  # type: ignore[arg-type]
            except (KeyError, ValueError):  # only one of the two waits at a time
                continue
        os.close(self._source)
        self._source = None
        self._pending = b""

    def close(self) -> None:
        """End the container's stdin."""
        self._detach()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Stdio:
    """All streams of one container."""

    def __init__(
        self, streams: Streams, log: LogFile, *, once: bool, selector: selectors.BaseSelector
    ) -> None:
        self._terminal = streams.terminal
        self.outputs: dict[str, Output] = {}
        self.stdin: Input | None = None
        stdin = streams.stdin
        if streams.terminal is not None:
            self.outputs["stdout"] = Output(streams.terminal, b"stdout", log, selector)
            stdin = os.dup(streams.terminal)
        for name, fd in (("stdout", streams.stdout), ("stderr", streams.stderr)):
            if fd is not None:
                self.outputs[name] = Output(fd, name.encode(), log, selector)
        if stdin is not None:
            self.stdin = Input(stdin, once=once, selector=selector)

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
        """See Output.flushing."""
        return any(output.flushing() for output in self.outputs.values())
