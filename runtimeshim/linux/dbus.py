"""The part of D-Bus that talking to systemd takes: messages, and a connection that calls methods.

Written out here because shims ask systemd for their containers' scopes, and a shim has nothing but
the standard library: a D-Bus package would cost each of them more memory than the shim itself.
Source: the D-Bus specification, "Type System", "Marshaling" and "Message Protocol".
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

SYSTEM_BUS = "/run/dbus/system_bus_socket"
# What systemd listens on itself: there is no bus in front of it, and so neither names nor Hello.
SYSTEMD_PRIVATE = "/run/systemd/private"

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
# Header fields
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = range(1, 9)
_FIELD_TYPES = {PATH: "o", SIGNATURE: "g", REPLY_SERIAL: "u"}  # all others are strings
_LITTLE = ord("l")
MAX_MESSAGE = 1 << 27  # of the specification

_FIXED = {
    "y": ("<B", 1), "b": ("<I", 4), "n": ("<h", 2), "q": ("<H", 2), "i": ("<i", 4),
    "u": ("<I", 4), "x": ("<q", 8), "t": ("<Q", 8), "d": ("<d", 8),
}  # fmt: skip


class DBusError(OSError):
    """A call failed: `name` is the D-Bus error's, "" when the connection itself did."""

    def __init__(self, number: int, message: str, name: str = "") -> None:
        super().__init__(number, message)
        self.name = name


class Message(NamedTuple):
    """One message, with its header fields by number."""

    kind: int
    fields: dict[int, Any]
    body: tuple[Any, ...]


def alignment(code: str) -> int:
    """Return what a type's values are aligned to, in bytes."""
    if code in _FIXED:
        return _FIXED[code][1]
    return {"s": 4, "o": 4, "g": 1, "a": 4, "(": 8, "{": 8, "v": 1}[code]


def types(signature: str) -> list[str]:
    """Split a signature into complete types."""
    found: list[str] = []
    while signature:
        length = _length(signature)
        found.append(signature[:length])
        signature = signature[length:]
    return found


def _length(signature: str) -> int:
    if signature[0] == "a":
        return 1 + _length(signature[1:])
    if signature[0] not in "({":
        return 1
    depth = 0
    for index, code in enumerate(signature):
        depth += (code in "({") - (code in ")}")
        if depth == 0:
            return index + 1
    raise ValueError(f"D-Bus signature {signature!r} is not closed")


class Variant(NamedTuple):
    """A value that carries its type."""

    signature: str
    value: Any


def marshal(signature: str, values: Sequence[Any]) -> bytes:
    """Return values in their wire form, little-endian, aligned from its beginning."""
    out = bytearray()
    for kind, value in zip(types(signature), values, strict=True):
        _put(out, kind, value)
    return bytes(out)


def _pad(out: bytearray, to: int) -> None:
    out.extend(bytes(-len(out) % to))


def _put(out: bytearray, kind: str, value: Any) -> None:
    code = kind[0]
    _pad(out, alignment(code))
    if code in _FIXED:
        out += struct.pack(_FIXED[code][0], value)
    elif code in "so":
        raw = value.encode()
        out += struct.pack("<I", len(raw)) + raw + b"\0"
    elif code == "g":
        out += bytes([len(value)]) + value.encode() + b"\0"
    elif code == "v":
        _put(out, "g", value.signature)
        _put(out, value.signature, value.value)
    elif code == "a":
        _put_array(out, kind[1:], value)
    else:
        for each, item in zip(types(kind[1:-1]), value, strict=True):
            _put(out, each, item)


def _put_array(out: bytearray, item_kind: str, items: Sequence[Any]) -> None:
    at = len(out)
    out += bytes(4)
    _pad(out, alignment(item_kind[0]))
    start = len(out)
    for item in items:
        _put(out, item_kind, item)
    struct.pack_into("<I", out, at, len(out) - start)


def unmarshal(signature: str, data: bytes, at: int = 0) -> tuple[tuple[Any, ...], int]:
    """Return the values of a wire form, and where they end; a variant is its bare value."""
    values = []
    for kind in types(signature):
        value, at = _get(data, at, kind)
        values.append(value)
    return tuple(values), at


def _get(data: bytes, at: int, kind: str) -> tuple[Any, int]:
    code = kind[0]
    at += -at % alignment(code)
    if code in _FIXED:
        layout, size = _FIXED[code]
        return struct.unpack_from(layout, data, at)[0], at + size
    if code in "so":
        (size,) = struct.unpack_from("<I", data, at)
        return data[at + 4 : at + 4 + size].decode(errors="replace"), at + 5 + size
    if code == "g":
        return data[at + 1 : at + 1 + data[at]].decode(), at + 2 + data[at]
    if code == "v":
        signature, at = _get(data, at, "g")
        return _get(data, at, signature)
    if code == "a":
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        at += -at % alignment(kind[1])
        items, end = [], at + size
        while at < end:
            item, at = _get(data, at, kind[1:])
            items.append(item)
        return items, at
    return unmarshal(kind[1:-1], data, at)


def encode(kind: int, serial: int, fields: dict[int, Any], body: bytes = b"") -> bytes:
    """Return a whole message."""
    listed = [(number, Variant(_FIELD_TYPES.get(number, "s"), v)) for number, v in fields.items()]
    header = marshal("yyyyuua(yv)", (_LITTLE, kind, 0, 1, len(body), serial, listed))
    return header + bytes(-len(header) % 8) + body


def size_of(header: bytes) -> int:
    """Return the length of the message that begins with these 16 bytes. Raises ValueError."""
    if header[0] != _LITTLE:  # the other end of a local socket has our byte order
        raise ValueError("a D-Bus message in another byte order")
    body, _, fields = struct.unpack_from("<III", header, 4)
    size = 16 + fields + -fields % 8 + body
    if size > MAX_MESSAGE:
        raise ValueError(f"a D-Bus message of {size} bytes")
    return int(size)


def decode(data: bytes) -> Message:
    """Return the message of exactly these bytes."""
    (_, kind, _, _, _, _, listed), end = unmarshal("yyyyuua(yv)", data)
    fields = dict(listed)
    body, _ = unmarshal(fields.get(SIGNATURE, ""), data[end + -end % 8 :])
    return Message(kind, fields, body)


class Connection:
    """A connection to one service of the system bus, or to systemd itself where there is no bus."""

    def __init__(self, service: str, *, timeout: float) -> None:
        """Connect and authenticate; `timeout` bounds each wait. Raises DBusError."""
        self._service = service
        self._timeout = timeout
        self._serial = 0
        self._signals: list[Message] = []
        self._socket, on_bus = _connect(timeout)
        try:
            self._authenticate()
            if on_bus:
                self.call("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except BaseException:
            self.close()
            raise
        self.on_bus = on_bus

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def call(
        self, path: str, interface: str, member: str, signature: str = "", *values: Any
    ) -> tuple[Any, ...]:
        """Call a method; returns its answer's values. Raises DBusError."""
        self._serial += 1
        service = interface if interface == "org.freedesktop.DBus" else self._service
        fields: dict[int, Any] = {
            PATH: path, INTERFACE: interface, MEMBER: member, DESTINATION: service,
        }  # fmt: skip
        if signature:
            fields[SIGNATURE] = signature
        self._send(encode(CALL, self._serial, fields, marshal(signature, values)))
        deadline = time.monotonic() + self._timeout
        while True:
            message = self._receive(deadline)
            if message.kind == SIGNAL:
                self._signals.append(message)
            elif message.fields.get(REPLY_SERIAL) == self._serial:
                break
        if message.kind == ERROR:
            name = str(message.fields.get(ERROR_NAME, ""))
            text = str(message.body[0]) if message.body else name
            raise DBusError(errno.EIO, f"{member}: {text}", name)
        return message.body

    def signal(self) -> Message:
        """Wait for the next signal; those that came during calls are first. Raises DBusError."""
        if self._signals:
            return self._signals.pop(0)
        deadline = time.monotonic() + self._timeout
        while (message := self._receive(deadline)).kind != SIGNAL:
            continue
        return message

    def _authenticate(self) -> None:
        """Authenticate by the socket's credentials: SASL EXTERNAL with our uid in hex."""
        uid = str(os.geteuid()).encode().hex()
        self._send(f"\0AUTH EXTERNAL {uid}\r\n".encode())
        line = b""
        deadline = time.monotonic() + self._timeout
        while not line.endswith(b"\r\n"):
            line += self._read(1, deadline)
        if not line.startswith(b"OK "):
            raise DBusError(
                errno.EACCES, f"D-Bus refuses us: {line.decode(errors='replace').strip()}"
            )
        self._send(b"BEGIN\r\n")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as err:
            raise DBusError(err.errno or errno.EIO, f"D-Bus: cannot send: {err}") from err

    def _receive(self, deadline: float) -> Message:
        header = self._read(16, deadline)
        try:
            return decode(header + self._read(size_of(header) - 16, deadline))
        except (ValueError, struct.error, IndexError, KeyError) as err:
            raise DBusError(
                errno.EIO, f"D-Bus: no message can be made of what came: {err}"
            ) from err

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                part = self._socket.recv(size - len(data))
            except TimeoutError as err:
                raise DBusError(
                    errno.ETIMEDOUT, f"systemd has not answered for {self._timeout} s"
                ) from err
            except OSError as err:
                raise DBusError(err.errno or errno.EIO, f"D-Bus: cannot receive: {err}") from err
            if not part:
                raise DBusError(errno.ECONNRESET, "D-Bus: the connection was closed")
            data += part
        return data


def _connect(timeout: float) -> tuple[socket.socket, bool]:
    """Connect to the system bus, or to systemd itself; returns which as `on_bus`."""
    problems = []
    for path, on_bus in ((SYSTEM_BUS, True), (SYSTEMD_PRIVATE, False)):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(timeout)
        try:
            connection.connect(path)
        except OSError as err:
            connection.close()
            problems.append(f"{path}: {err.strerror or err}")
            continue
        return connection, on_bus
    raise DBusError(errno.ENOENT, "systemd cannot be reached: " + ", ".join(problems))
