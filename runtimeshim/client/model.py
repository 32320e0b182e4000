"""What the daemon exchanges with spawner and shims: options, results, errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


class SpawnerError(Exception):
    """The spawner is away, or refused a request."""


class WorkerError(Exception):
    """A worker raised: `kind` is its exception's class name, `errno` set for an OSError."""

    def __init__(self, kind: str, message: str, errno: int | None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.errno = errno


class ProgramTimeoutError(Exception):
    """A helper program was killed at its timeout; what it had printed is kept."""

    def __init__(self, program: str, timeout: float, stdout: bytes, stderr: bytes) -> None:
        super().__init__(f"{program} was killed after {timeout:g} s without an end")
        self.stdout = stdout
        self.stderr = stderr


class ShimError(Exception):
    """The shim refused an operation, or is gone; `kind` tells which."""

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind


class CreateError(ShimError):
    """The container could not be created; `stage` is where."""

    def __init__(self, stage: str, message: str, kind: str = "error") -> None:
        super().__init__(f"{stage}: {message}" if stage else message, kind)
        self.stage = stage


class StartError(ShimError):
    """The created container could not be started: the message is execve's, or the look-up's."""


@dataclass(frozen=True)
class ProgramResult:
    """What a helper program did; exit_code is 128 + signal for a death by signal."""

    exit_code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class Rootfs:
    """An overlay for the container's init to mount; `lowerdirs` has the top layer first."""

    lowerdirs: tuple[str, ...]
    upperdir: str
    workdir: str
    volatile: bool = False  # no sync reaches the disk


@dataclass(frozen=True)
class OCIRuntime:
    """An OCI runtime's binary, by the name of the handler that it is configured for."""

    name: str
    path: str


@dataclass(frozen=True)
class ShimOptions:
    """What a shim needs beside the bundle."""

    rootfs: Rootfs | None
    log_path: Path | None
    # The log's path is below it, and the pod may have a say in all that is: no link is followed.
    log_directory: Path | None = field(default=None, kw_only=True)
    runtime: OCIRuntime | None = None  # None: the embedded executor
    stdin: bool = False
    stdin_once: bool = False
