"""A TLS client's socket that one thread reads while another writes."""

from __future__ import annotations

import socket
import ssl
import threading

PIECE = 1 << 18


class TlsSocket:
    """As an ssl.SSLSocket, which two threads may not use at once: OpenSSL's are not made for it.

    Records are then garbled now and then ("bad record mac"), or the connection ends. Here only one
    thread at a time is in OpenSSL, and none while it waits for the peer.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Take the socket over and shake hands. Raises OSError."""
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        self._entered = threading.Lock()
        self._sending = threading.Lock()  # taken first: records go out in their order
        while not self._shake_hands():
            self._receive()

    def recv(self, count: int) -> bytes:
        """Return what has come, waiting for it; b"" at the end."""
        while True:
            with self._entered:
                try:
                    return self._tls.read(count)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
            self._receive()

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        with self._sending:
            with self._entered:
                self._tls.write(data)
                records = self._outgoing.read()
            self._sock.sendall(records)

    def shutdown(self, how: int) -> None:
        """Shut the socket below down."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket below."""
        self._sock.close()

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._sock.sendall(self._outgoing.read())
        return True

    def _receive(self) -> None:
        """Wait for records, or for the end."""
        records = self._sock.recv(PIECE)
        with self._entered:
            if records:
                self._incoming.write(records)
            else:
                self._incoming.write_eof()
