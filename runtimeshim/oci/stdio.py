"""The streams between a container and its shim: pipes, or a terminal."""

from __future__ import annotations

import os


class Streams:
    """The shim's ends of a container's stdio; None where there is none."""

    __slots__ = ("stderr", "stdin", "stdout", "terminal")

    def __init__(self) -> None:
        self.stdin: int | None = None
        self.stdout: int | None = None
        self.stderr: int | None = None
        self.terminal: int | None = None

    def open_pipes(self, stdin: bool) -> tuple[int, int, int]:
        """Make the pipes; returns the container's ends. Without `stdin` that is at its end."""
        if stdin:
            theirs_in, self.stdin = os.pipe2(os.O_CLOEXEC)
        else:
            theirs_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.stdout, theirs_out = os.pipe2(os.O_CLOEXEC)
        self.stderr, theirs_err = os.pipe2(os.O_CLOEXEC)
        return theirs_in, theirs_out, theirs_err
