"""How a process that is nobody's child here ends: the kernel's process event connector.

Linux tells its listeners of each exit, with the wait status (linux/cn_proc.h, linux/connector.h). A
filter of the socket keeps all but one process's from us. Only in the machine's own PID and network
namespaces: elsewhere, as in a node that is a container, nothing is ever heard.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct

NETLINK_CONNECTOR = 11
CN_IDX_PROC = CN_VAL_PROC = 1
PROC_CN_MCAST_LISTEN = 1
PROC_EVENT_EXIT = 0x80000000

# What a message begins with: struct nlmsghdr and struct cn_msg; then comes struct proc_event.
_HEADERS = struct.Struct("=IHHII IIIIHH")
_NLMSG_DONE = 3
_OPERATION = struct.Struct("=I")
# Where the fields of an exit are: what, process_tgid and exit_code.
_WHAT, _TGID, _CODE = (_HEADERS.size + offset for offset in (0, 20, 24))

# linux/filter.h: load a word, jump if equal, return.
_LOAD, _JUMP, _RETURN = 0x20, 0x15, 0x06
_ALL, _NOTHING = 0xFFFFFFFF, 0
_SO_ATTACH_FILTER = 26

# Bytes of events that wait to be read: some thousand threads may end at once.
_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33
_MAX_EVENT = 4096


class ExitWatch:
    """Listens for the exits of a process's threads, which are to be read as they come.

    What has not been read waits for whoever has a duplicate of the fd.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Read from a listening socket: `listen` makes one."""
        self._socket = sock
        self._status: int | None = None

    def fileno(self) -> int:
        """Return the fd that is readable when a thread has ended."""
        return self._socket.fileno()

    def status(self) -> int | None:
        """Return the wait status, once the process is over; None if it was not told, or got lost.

        Of several threads the last one's exit has that of the process. Raises OSError.
        """
        complete = True
        while True:
            try:
                event = self._socket.recv(_MAX_EVENT)
            except BlockingIOError:
                return self._status
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                complete = False  # events came faster than they were read: the last are not there
                self._status = None
                continue
            if complete:
                (self._status,) = struct.unpack_from("=i", event, _CODE)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def listen(pid: int) -> ExitWatch:
    """Listen for the exits of a process, by its pid in the machine's own PID namespace.

    Raises OSError where the kernel has no connector.
    """
    flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_NETLINK, flags, NETLINK_CONNECTOR)
    try:
        _filter(sock, pid)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((0, CN_IDX_PROC))
        sock.send(_request())
    except OSError:
        sock.close()
        raise
    return ExitWatch(sock)


def _filter(sock: socket.socket, pid: int) -> None:
    """Have the kernel queue nothing but the exits of this process (man 7 socket)."""
    program = (
        (_LOAD, 0, 0, _WHAT),
        (_JUMP, 0, 3, socket.htonl(PROC_EVENT_EXIT)),  # what is loaded is big-endian
        (_LOAD, 0, 0, _TGID),
        (_JUMP, 0, 1, socket.htonl(pid)),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, _NOTHING),
    )
    code = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in program))
    address, _ = code.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), address))


def _request() -> bytes:
    size = _HEADERS.size + _OPERATION.size
    netlink = (size, _NLMSG_DONE, 0, 0, os.getpid())
    connector = (CN_IDX_PROC, CN_VAL_PROC, 0, 0, _OPERATION.size, 0)
    return _HEADERS.pack(*netlink, *connector) + _OPERATION.pack(PROC_CN_MCAST_LISTEN)
