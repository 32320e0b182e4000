"""How a command ends when it cannot do what it was asked: one line and an exit code."""

from __future__ import annotations

# As docker and podman have them, so that scripts need not care which of them runs a container.
FAILURE = 1
USAGE = 2
RUNTIME_FAILURE = 125  # of `run` and `exec`: the container's own command never ran
NOT_EXECUTABLE = 126
NOT_FOUND = 127


class CommandError(Exception):
    """The command failed; the message says what, where, why, and what to do about it."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


def start_exit_code(message: str) -> int:
    """Return the exit code for a program that could not be started, by what the kernel said."""
    said = message.lower()
    if "no such file" in said or "not found" in said:
        return NOT_FOUND
    if any(text in said for text in ("permission denied", "exec format error", "is a directory")):
        return NOT_EXECUTABLE
    return RUNTIME_FAILURE
