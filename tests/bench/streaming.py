"""Throughput of exec and port-forward, as crictl (client-go) gets it; figures, no verdict.

    python -m tests.bench.streaming --image IMAGE OURS [PEER…] [--crictl PATH] [--rounds N] [--mb N]

OURS and PEER are CRI endpoints (unix:///…) of running daemons, measured in turns; IMAGE has
busybox. "fails" is what does not arrive whole: containerd refuses crictl's WebSockets, and 1.6 ends
an exec without output before its input is read.
For each way the median in MB/s is printed, and ours as a share of each peer's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS = 120
TRANSPORTS = ("spdy", "websocket")
OUT_PORT, IN_PORT = 9001, 9002
PIECE = 1 << 20


class Peer:
    """One daemon, with a pod and a container of ours."""

    def __init__(self, crictl: str, endpoint: str, image: str) -> None:
        self.endpoint = endpoint
        self._base = [crictl, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint]
        with tempfile.TemporaryDirectory() as directory:
            pod, container = Path(directory, "pod.json"), Path(directory, "container.json")
            name = f"bench-{os.getpid()}"
            metadata = {"name": name, "namespace": "bench", "uid": name}
            pod.write_text(json.dumps({"metadata": metadata, "linux": {}}))
            config = {"metadata": {"name": name}, "image": {"image": image},
                      "command": ["sleep", "100000"], "linux": {}}  # fmt: skip
            container.write_text(json.dumps(config))
            self.run("pull", image)
            self.pod = self.run("runp", str(pod))
            self.container = self.run("create", self.pod, str(container), str(pod))
        self.run("start", self.container)

    def command(self, *arguments: str) -> list[str]:
        return [*self._base, *arguments]

    def run(self, *arguments: str) -> str:
        said = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=SECONDS, check=True
        )
        return said.stdout.strip()

    def sh(self, script: str) -> None:
        self.run("exec", self.container, "sh", "-c", script)

    def close(self) -> None:
        self.run("rmp", "--force", self.pod)

    # --- what is measured: seconds for so many MB ---

    def exec_out(self, transport: str, mb: int) -> float:
        script = f"dd if=/dev/zero bs=1000000 count={mb} 2>/dev/null"
        return self._timed_exec(transport, f"{script}; echo end >&2", lambda stdin: None)

    def exec_in(self, transport: str, mb: int) -> float:
        def feed(stdin: int) -> None:
            for _ in range(mb):
                os.write(stdin, bytes(1_000_000))
            os.write(stdin, b"end")

        return self._timed_exec(transport, "tail -c 3 >&2", feed)

    def _timed_exec(self, transport: str, script: str, feed: Callable[[int], None]) -> float:
        def run(script: str, feed: Callable[[int], None]) -> float:
            start = time.monotonic()
            command = self.command("exec", "-i", "--transport", transport, self.container)
            with subprocess.Popen(
                [*command, "sh", "-c", script],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            ) as started:  # fmt: skip
                assert started.stdin is not None
                assert started.stderr is not None
                with contextlib.suppress(BrokenPipeError):
                    feed(started.stdin.fileno())
                started.stdin.close()
                if not started.stderr.read().startswith(b"end") or started.wait(SECONDS):
                    raise RuntimeError("crictl exec fails")
            return time.monotonic() - start

        return run(script, feed) - run("echo end >&2", lambda stdin: None)

    def forward_out(self, transport: str, mb: int) -> float:
        serve = f"dd if=/dev/zero bs=1000000 count={mb} 2>/dev/null | nc -l -p {OUT_PORT}"
        with self._serving(serve), self._forwarded(transport, OUT_PORT) as port:
            start = time.monotonic()
            with socket.create_connection(("127.0.0.1", port), SECONDS) as sock:
                left = mb * 1_000_000
                while left > 0:
                    piece = sock.recv(PIECE)
                    if not piece:
                        raise RuntimeError(f"{left} bytes are missing")
                    left -= len(piece)
            return time.monotonic() - start

    def forward_in(self, transport: str, mb: int) -> float:
        # nc's own input must not end, or it ends its side at once; and nc itself never does.
        pipes = "rm -f /tmp/a /tmp/b; mkfifo /tmp/a /tmp/b; exec 3<>/tmp/a"
        serve = f"nc -l -p {IN_PORT} <&3 >/tmp/b & head -c {mb * 1_000_000} </tmp/b >/dev/null"
        with (
            self._serving(f"{pipes}; {serve}") as server,
            self._forwarded(transport, IN_PORT) as port,
        ):
            start = time.monotonic()
            with socket.create_connection(("127.0.0.1", port), SECONDS) as sock:
                for _ in range(mb):
                    sock.sendall(bytes(1_000_000))
                server.wait(SECONDS)  # head has read everything
            return time.monotonic() - start

    @contextlib.contextmanager
    def _serving(self, script: str) -> Iterator[subprocess.Popen[bytes]]:
        command = self.command("exec", "--transport", "spdy", self.container, "sh", "-c", script)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            self.sh("until netstat -ltn | grep -q ':900[12] '; do sleep 0.05; done")
            try:
                yield server
            finally:
                server.kill()
                with contextlib.suppress(subprocess.CalledProcessError):
                    self.sh("killall nc")

    @contextlib.contextmanager
    def _forwarded(self, transport: str, port: int) -> Iterator[int]:
        command = self.command("port-forward", "--transport", transport, self.pod, f":{port}")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as forward:
            assert forward.stdout is not None
            line = forward.stdout.readline()  # Forwarding from 127.0.0.1:NNN -> PORT
            if not line:
                raise RuntimeError("crictl port-forward fails")
            threading.Thread(target=forward.stdout.read, daemon=True).start()
            try:
                yield int(line.split("127.0.0.1:")[1].split()[0])
            finally:
                forward.kill()


WAYS: dict[str, Callable[[Peer, str, int], float]] = {
    "exec out": Peer.exec_out,
    "exec in": Peer.exec_in,
    "port-forward out": Peer.forward_out,
    "port-forward in": Peer.forward_in,
}


def measure(peers: list[Peer], transport: str, way: str, rounds: int, mb: int) -> None:
    """Print one line: the medians in turns, and the ratios."""
    rates: dict[str, list[float]] = {peer.endpoint: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            with contextlib.suppress(RuntimeError, OSError, subprocess.SubprocessError):
                rates[peer.endpoint].append(mb / WAYS[way](peer, transport, mb))
    medians = [statistics.median(found) if found else None for found in rates.values()]
    shown = [f"{median:7.0f} MB/s" if median else "  fails     " for median in medians]
    ratios = [
        f"{medians[0] / median:.2f}" for median in medians[1:] if median and medians[0]
    ]  # fmt: skip
    print(f"{way:16} {transport:9} {' '.join(shown)}  ours/peer: {' '.join(ratios) or '-'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("endpoints", nargs="+")
    parser.add_argument("--image", required=True)
    parser.add_argument("--crictl", default="crictl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mb", type=int, default=200)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        peers = []
        for endpoint in options.endpoints:
            peers.append(Peer(options.crictl, endpoint, options.image))
            stack.callback(peers[-1].close)
        for transport in TRANSPORTS:
            for way in WAYS:
                measure(peers, transport, way, options.rounds, options.mb)
    return 0


if __name__ == "__main__":
    sys.exit(main())
