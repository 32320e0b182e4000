"""Messages between daemon, spawner, shims and their children: JSON with fds over SEQPACKET.

One message is one packet, so there is no framing to get wrong; file descriptors travel beside it
(man 7 unix, SCM_RIGHTS).

Shims outlive the build that started them: a daemon meets older ones after an upgrade, and newer
ones after a downgrade. So an operation, a field or an event is added, never changed or taken away.
Who receives ignores fields and events that it does not know, and has a default for fields that came
later. `PROTOCOL` counts the additions; `SINCE` says with which number an operation came, and a
daemon asks no older shim for it.
"""

from __future__ import annotations

import _socket
import os
import struct

from runtimeshim import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from typing import Any

PROTOCOL = 1

# Operations of a shim that are not as old as shims -> the protocol that they came with.
SINCE: Mapping[str, int] = {}

# A packet has to fit in the peer's send buffer (net.core.wmem_default, 208 KiB, less overhead).
MAX_MESSAGE = 192 * 1024

# Of an error's text, which may repeat a path of a megabyte: what is at its ends says the most.
MAX_TEXT = 8 * 1024

# SCM_MAX_FD of the kernel is 253; no message of ours carries more than a few.
MAX_FDS = 16
_FD_SIZE = struct.calcsize("i")
_FDS_ROOM = _socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)

Message = dict[str, "Any"]
Socket = _socket.socket  # the core of socket.socket, which is one too


class MessageTooLargeError(ValueError):
    """The message does not fit in one packet."""


def brief(text: str) -> str:
    """Cut the middle out of a text that would fill a packet."""
    half = MAX_TEXT // 2
    return text if len(text) <= MAX_TEXT else f"{text[:half]} [...] {text[-half:]}"


def encode(message: Message) -> bytes:
    """Return the packet of `message`."""
    packet = json_text.dumps(message).encode()
    if len(packet) > MAX_MESSAGE:
        raise MessageTooLargeError(
            f"a message of {len(packet)} bytes is over the limit of {MAX_MESSAGE}: "
            f"{message.get('op', 'answer')}"
        )
    return packet


def send(sock: Socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message with its fds; the caller keeps its own copies."""
    packet = encode(message)
    if fds:
        rights = struct.pack(f"{len(fds)}i", *fds)
        sock.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    else:
        sock.send(packet)


def receive(sock: Socket) -> tuple[Message, list[int]] | None:
    """Receive one message and its fds (close-on-exec); None when the peer has closed, or died.

    Raises ValueError for a packet that is no message.
    """
    # Not socket.recv_fds: up to Python 3.11 it drops its flags, and the fds would survive execve.
    try:
        packet, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, _FDS_ROOM, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # It closed with something unread. The kernel says so first, and once: what it had sent
        # before is still there to be received.
        packet, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, _FDS_ROOM, _socket.MSG_CMSG_CLOEXEC)
    if not packet:
        return None
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds += struct.unpack_from(f"{len(data) // _FD_SIZE}i", data)
    try:
        message = json_text.loads(packet)
        if not isinstance(message, dict):
            raise ValueError("a message is one JSON object")
    except ValueError:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends."""
    import socket  # not at the top: the command line does without

    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def core_pair() -> tuple[Socket, Socket]:
    """The same without the socket module: they are closed, and received from, and no more."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
