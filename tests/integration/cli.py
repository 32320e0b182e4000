"""The criserver command as a person uses it, in a pipe and at a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence

from tests.integration.daemon import PATIENCE, PROGRAM, Daemon

SECONDS = 60.0 * PATIENCE  # for anything here; only a failure takes that long


class Cli:
    """Client commands against one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.logs = daemon.home / "run-logs"
        self.environment = {
            **os.environ,
            "CRISERVER_ENDPOINT": daemon.endpoint,
            "CRISERVER_LOG_DIR": str(self.logs),
        }

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end."""
        return subprocess.run(
            [PROGRAM, *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=SECONDS,
            check=False,
        )

    def output(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run a command that must succeed without a word on stderr; its stdout."""
        result = self(*arguments, stdin=stdin)
        assert (result.returncode, result.stderr) == (0, b""), result
        return result.stdout.decode()

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command on pipes; it is killed in the end if it still runs."""
        process = subprocess.Popen(
            [PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    @contextlib.contextmanager
    def at_terminal(self, *arguments: str, width: int, height: int) -> Iterator[Terminal]:
        """Start a command at a terminal of its own; it is killed in the end if it still runs."""
        terminal = Terminal([str(PROGRAM), *arguments], self.environment, width, height)
        try:
            yield terminal
        finally:
            terminal.close()


class Terminal:
    """A program whose controlling terminal is ours to type at."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], width: int, height: int
    ) -> None:
        self.master, self.slave = os.openpty()
        self.received = b""
        self.resize(width, height)
        self.modes = termios.tcgetattr(self.slave)
        # setsid makes stdin the controlling terminal, whose resizing then is a SIGWINCH.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment,
        )

    def resize(self, width: int, height: int) -> None:
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        """Read until `text` has come; what came up to there, without it."""
        wanted = text.encode()
        deadline = time.monotonic() + SECONDS
        while wanted not in self.received:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come, but {self.received!r}"
            self.received += os.read(self.master, 4096)
        before, self.received = self.received.split(wanted, 1)
        return before.decode()

    def wait(self) -> int:
        """Return the exit code; the terminal has to be as it was."""
        code = self.process.wait(SECONDS)
        assert termios.tcgetattr(self.slave) == self.modes
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.slave)
        os.close(self.master)


def read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """Read a process's stdout until `text` has come; all that was read."""
    assert process.stdout is not None
    received = b""
    deadline = time.monotonic() + SECONDS
    while text not in received:
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        assert chunk, f"{text!r} did not come, but {received!r}"
        received += chunk
    return received


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Send a signal and return the exit code."""
    process.send_signal(number)
    return process.wait(SECONDS)
