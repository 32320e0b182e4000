"""TCP servers of several kinds, to be run in a pod's network namespace: python3 pod_server.py

Prints "ready" and ends with its stdin.
"""

import socket
import struct
import sys
import threading

ECHO, SINK, SOURCE, RESETTING, SIX, SILENT, LAST_WORDS = 7, 9, 19, 23, 66, 70, 71
SOURCE_BYTES = 10_000_000


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def sink(sock: socket.socket) -> None:
    """Count to the end, then say how much it was: only a half-close makes that possible."""
    count = 0
    while data := sock.recv(65536):
        count += len(data)
    sock.sendall(b"%d" % count)


def source(sock: socket.socket) -> None:
    sock.sendall(bytes(SOURCE_BYTES))


def resetting(sock: socket.socket) -> None:
    """Answer, then end with a RST instead of a FIN."""
    sock.sendall(b"hello")
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(sock: socket.socket) -> None:
    """Read nothing until the end of the program."""
    threading.Event().wait()


def last_words(sock: socket.socket) -> None:
    """Answer without reading what is still being sent."""
    sock.recv(1)
    sock.sendall(b"enough")
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(65536):
        pass


def serve(family: socket.AddressFamily, port: int, handle) -> None:
    listener = socket.create_server(
        ("::1" if family is socket.AF_INET6 else "127.0.0.1", port), family=family, backlog=256
    )

    def run(sock: socket.socket) -> None:
        with sock:
            try:
                handle(sock)
            except ConnectionError:
                pass

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=run, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def main() -> None:
    kinds = {ECHO: echo, SINK: sink, SOURCE: source, RESETTING: resetting, SILENT: silent}
    for port, handle in {**kinds, LAST_WORDS: last_words}.items():
        serve(socket.AF_INET, port, handle)
    serve(socket.AF_INET6, SIX, echo)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
