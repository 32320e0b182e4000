"""Clients of the streaming server, written against the protocols' texts and not against our cores.

They use blocking sockets: what is sent is sent by the caller, what comes is collected by a thread.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import struct
import threading
import time
import zlib
from typing import Any
from urllib.parse import urlsplit

from criserver.streaming.spdy_headers import DICTIONARY
from tests.integration.daemon import PATIENCE
from tests.integration.tls_socket import TlsSocket

SECONDS = 60.0 * PATIENCE
PIECE = 32 * 1024  # what client-go copies at a time

V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"


class Refused(Exception):
    """An answer other than 101; `status` and `body` are its own."""

    def __init__(self, status: int, headers: str, body: bytes) -> None:
        super().__init__(f"{status}: {body!r}")
        self.status, self.headers, self.body = status, headers, body


class Connection:
    """A socket after its upgrade."""

    def __init__(self, url: str, headers: dict[str, str], method: str = "GET") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        sock = socket.create_connection((parts.hostname, parts.port), SECONDS)
        self.sock: socket.socket | TlsSocket = sock
        if parts.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.sock = TlsSocket(sock, context)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += (piece := self.sock.recv(65536))
            assert piece, self.buffer
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        self.head = head.decode()
        if not head.startswith(b"HTTP/1.1 101 "):
            while piece := self.sock.recv(65536):
                self.buffer += piece
            self.sock.close()
            raise Refused(int(head.split()[1]), self.head, self.buffer)

    def hang_up(self) -> None:
        """Wake the thread that reads, which then closes: that sends the end of file."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self.sock.close()

    def exactly(self, count: int) -> bytes:
        """Return so many bytes; EOFError when the connection ends before."""
        while len(self.buffer) < count:
            piece = self.sock.recv(262144)
            if not piece:
                raise EOFError
            self.buffer += piece
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data


class Collector:
    """What has come on each stream, collected by a thread until the connection ends."""

    connection: Any

    def __init__(self) -> None:
        self.received: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.closed: Any = None  # GOAWAY's status, or a close frame's code and reason
        self.over = False
        self.broken: OSError | None = None  # what ended the connection, if it was not the server
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self.take_one()
                with self._changed:
                    self._changed.notify_all()
        except EOFError:
            pass
        except OSError as err:
            self.broken = err
        self.connection.close()
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def take_one(self) -> None:
        raise NotImplementedError

    def until(self, condition: Any, what: str = "the server") -> None:
        with self._changed:
            assert self._changed.wait_for(condition, SECONDS), f"waited for {what}: {self._told()}"

    def _told(self) -> dict[str, Any]:
        """All that has come, of data the size and the end."""
        sizes = {stream: (len(data), data[-80:]) for stream, data in self.received.items()}
        return {**self.__dict__, "received": sizes}

    def hang_up(self) -> None:
        """Be gone without a word, and wait for our own thread to see it."""
        self.connection.hang_up()
        self.until_over()

    def until_over(self) -> None:
        self.until(lambda: self.over, "the end of the connection")
        self._thread.join()

    def data(self, stream: int) -> bytes:
        return bytes(self.received.get(stream, b""))


class Spdy(Collector):
    """SPDY/3.1 as spdystream speaks it."""

    def __init__(self, url: str, protocols: str, connection: Any = None) -> None:
        super().__init__()
        headers = {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocols}
        self.connection = connection or Connection(url, headers, "POST")
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._next = 1
        self.replied: set[int] = set()
        self.pongs: list[bytes] = []
        self.start()

    @property
    def protocol(self) -> str:
        head: str = self.connection.head
        return head.partition("X-Stream-Protocol-Version: ")[2].partition("\r\n")[0]

    def send(self, data: bytes) -> None:
        self.connection.sock.sendall(data)

    def control(self, kind: int, payload: bytes, flags: int = 0) -> None:
        self.send(struct.pack(">HHI", 0x8003, kind, flags << 24 | len(payload)) + payload)

    def open(self, **headers: str) -> int:
        """Open a stream and wait for the reply."""
        stream, self._next = self._next, self._next + 2
        plain = struct.pack(">I", len(headers))
        for pair in headers.items():
            for text in pair:
                plain += struct.pack(">I", len(text)) + text.encode()
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self.control(1, struct.pack(">IIH", stream, 0, 0) + block)
        self.until(
            lambda: stream in self.replied or stream in self.resets or self.over, "SYN_REPLY"
        )
        return stream

    @staticmethod
    def frames(stream: int, data: bytes) -> bytes:
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        return b"".join(struct.pack(">II", stream, len(piece)) + piece for piece in pieces)

    def write(self, stream: int, data: bytes) -> None:
        self.send(self.frames(stream, data))

    def end(self, stream: int) -> None:
        self.send(struct.pack(">II", stream, 1 << 24))

    def reset(self, stream: int) -> None:
        self.control(3, struct.pack(">II", stream, 5))

    def take_one(self) -> None:
        word, tail = struct.unpack(">II", self.connection.exactly(8))
        payload = self.connection.exactly(tail & 0xFFFFFF)
        if not word & 0x80000000:
            self.received.setdefault(word, bytearray()).extend(payload)
            if tail >> 24 & 1:
                self.ended.add(word)
            return
        assert word >> 16 == 0x8003, hex(word)
        first = struct.unpack_from(">I", payload)[0]
        match word & 0xFFFF:
            case 2:
                self._inflate.decompress(payload[4:])
                self.replied.add(first)
            case 4:  # SETTINGS, by which a server finds out whether a silent client is still there
                pass
            case 3:
                self.resets[first] = struct.unpack_from(">I", payload, 4)[0]
            case 6:
                self.pongs.append(payload)
            case 7:
                self.closed = struct.unpack_from(">I", payload, 4)[0]
            case kind:
                raise AssertionError(f"an unexpected frame of kind {kind}")


def websocket_connection(url: str, protocols: str) -> Connection:
    key = base64.b64encode(os.urandom(16)).decode()
    headers = {
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Origin": "https://dashboard.example",  # a browser's; x/net's server refuses others' pages
    }
    if protocols:
        headers["Sec-WebSocket-Protocol"] = protocols
    return Connection(url, headers)


def client_frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    key, length = os.urandom(4), len(payload)
    if length < 126:
        size = bytes((0x80 | length,))
    elif length < 1 << 16:
        size = b"\xfe" + struct.pack(">H", length)
    else:
        size = b"\xff" + struct.pack(">Q", length)
    stream = key * (length // 4 + 1)
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(stream[:length], "big")
    return bytes((fin << 7 | opcode,)) + size + key + mixed.to_bytes(length, "big")


class WebSocket(Collector):
    """WebSocket with channels, as a browser speaks it."""

    def __init__(self, url: str, protocols: str = V5) -> None:
        super().__init__()
        self.connection = websocket_connection(url, protocols)
        self.is_base64 = "base64" in self.protocol
        self.first_message: bytes | None = None
        self.pongs: list[bytes] = []
        self.start()

    @property
    def protocol(self) -> str:
        return self.connection.head.partition("Sec-WebSocket-Protocol: ")[2].partition("\r\n")[0]

    def frame(self, opcode: int, payload: bytes, *, fin: bool = True) -> None:
        self.connection.sock.sendall(client_frame(opcode, payload, fin=fin))

    def frames(self, stream: int, data: bytes) -> bytes:
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        if self.is_base64:
            coded = [b"%d" % stream + base64.b64encode(piece) for piece in pieces]
            return b"".join(client_frame(1, message) for message in coded)
        return b"".join(client_frame(2, bytes((stream,)) + piece) for piece in pieces)

    def write(self, stream: int, data: bytes) -> None:
        self.connection.sock.sendall(self.frames(stream, data))

    def end(self, stream: int) -> None:
        self.frame(2, bytes((255, stream)))

    def take_one(self) -> None:
        opcode, payload = server_frame(self.connection)
        if opcode == 8:
            code = struct.unpack_from(">H", payload)[0] if payload else 1005
            self.closed = (code, payload[2:].decode())
            self.frame(8, payload[:2])
        elif opcode == 10:
            self.pongs.append(payload)
        else:
            assert opcode == (1 if self.is_base64 else 2)
            if self.first_message is None:
                self.first_message = payload
            channel = payload[0] - 48 if self.is_base64 else payload[0]
            data = base64.b64decode(payload[1:]) if self.is_base64 else payload[1:]
            self.received.setdefault(channel, bytearray()).extend(data)


def server_frame(connection: Connection) -> tuple[int, bytes]:
    first, size = connection.exactly(2)
    assert first & 0x80
    assert not size & 0x80
    if size == 126:
        size = struct.unpack(">H", connection.exactly(2))[0]
    elif size == 127:
        size = struct.unpack(">Q", connection.exactly(8))[0]
    return first & 15, connection.exactly(size)


class Tunnel:
    """A socket to Spdy whose bytes are the messages of a WebSocket, in odd pieces."""

    def __init__(self, url: str) -> None:
        self.connection = websocket_connection(url, "SPDY/3.1+portforward.k8s.io")
        self.head = self.connection.head
        self.sock = self
        self._buffer = b""
        self.closed: tuple[int, str] | None = None

    def sendall(self, data: bytes) -> None:
        for start, end in ((0, 3), (3, len(data))):  # as spdystream, which writes a head in parts
            if data[start:end]:
                self.connection.sock.sendall(client_frame(2, data[start:end]))

    def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            opcode, payload = server_frame(self.connection)
            if opcode == 8:
                self.closed = (struct.unpack_from(">H", payload)[0], payload[2:].decode())
                raise EOFError
            self._buffer += payload
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def hang_up(self) -> None:
        self.connection.hang_up()

    def close(self) -> None:
        self.connection.close()


class Command:
    """An exec or an attach over either transport, by the names of its streams."""

    def __init__(self, client: Spdy | WebSocket, streams: dict[str, int]) -> None:
        self.client, self.streams = client, streams

    def write(self, data: bytes) -> None:
        self.client.write(self.streams["stdin"], data)

    def end_stdin(self) -> None:
        self.client.end(self.streams["stdin"])

    def resize(self, width: int, height: int) -> None:
        size = json.dumps({"Width": width, "Height": height}) + "\n"
        self.client.write(self.streams["resize"], size.encode())

    def output(self, name: str = "stdout") -> bytes:
        return self.client.data(self.streams[name]) if name in self.streams else b""

    def until_output(self, text: bytes, name: str = "stdout") -> None:
        self.client.until(lambda: text in self.output(name), repr(text))

    def status(self) -> dict[str, Any]:
        """Wait for the end; what the error stream says."""
        self.client.until_over()
        text = self.output("error")
        assert text, f"no status: {self.client.__dict__}"
        status: dict[str, Any] = json.loads(text)
        return status

    def exit_code(self) -> int:
        status = self.status()
        if status["status"] == "Success":
            return 0
        assert status["reason"] == "NonZeroExitCode", status
        (cause,) = status["details"]["causes"]
        assert cause["reason"] == "ExitCode"
        return int(cause["message"])

    def fill_stdin(self, data: bytes) -> None:
        """Write until the server takes no more."""
        sock, written, quiet = self.client.connection.sock, 0, 0
        frames = self.client.frames(self.streams["stdin"], data)
        while quiet < 10:
            assert written < len(frames), "the server takes everything"
            try:
                written += os.write(sock.fileno(), frames[written : written + 65536])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.05)

    def vanish(self) -> None:
        """Be gone as a process that is killed: its kernel sends what it must."""
        self.client.hang_up()


def spdy_command(url: str, *names: str, protocol: str = V4) -> Command:
    """Open an error stream and the streams of these names, in this order."""
    client = Spdy(url, protocol)
    return Command(client, {name: client.open(streamtype=name) for name in ("error", *names)})


def websocket_command(url: str, *names: str, protocol: str = V5) -> Command:
    channels = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}
    return Command(WebSocket(url, protocol), channels)


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)
