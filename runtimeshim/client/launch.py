"""How a spawner comes to be: a sealed interpreter, a socket, posix_spawn."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

# -I: nothing of the environment, the working directory or a user's site is imported.
ENTRY = ["-I", "-m", "runtimeshim.spawner"]
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def _seal_interpreter() -> int:
    """Return a sealed memfd with a copy of this interpreter.

    A container's init is a fork of it until execve: whatever a hostile image does through
    /proc/PID/exe (CVE-2019-5736), it can only ever reach this copy, which nobody can write.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    mfd_exec = 0x10  # linux 6.3: says that the file is meant to be executable
    try:
        fd = os.memfd_create("criserver-python", flags | mfd_exec)
    except OSError:  # EINVAL before 6.3
        fd = os.memfd_create("criserver-python", flags)
    with Path(os.path.realpath(sys.executable)).open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        offset = 0
        while offset < size:
            offset += os.sendfile(fd, source.fileno(), offset, size - offset)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def listen(path: Path) -> socket.socket:
    """Listen on `path`; reached through its directory's fd, since a socket's path has 107 bytes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        old = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.umask(old)
        listener.listen(16)
    finally:
        os.close(directory)
    return listener


def connect(path: Path) -> socket.socket:
    """Connect to `path`, likewise. Raises OSError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except OSError:
        sock.close()
        raise
    return sock


def build_id(workers: Mapping[str, str]) -> str:
    """Identify the code that a spawner holds in memory: its own and its workers' packages.

    A daemon of another build retires the old spawner and starts its own; shims that the old one
    forked stay with it until they end.
    """
    digest = hashlib.sha256(sys.version.encode())
    packages = {Path(__file__).parent.parent}
    for target in workers.values():
        spec = importlib.util.find_spec(target.partition(":")[0])
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"worker {target} is not installed")
        packages.add(Path(spec.origin).parent)
    for package in sorted(packages):
        for source in sorted(package.rglob("*.py")):
            digest.update(source.read_bytes())
    digest.update(repr(sorted(workers.items())).encode())
    return digest.hexdigest()[:16]


def start_spawner(run_dir: Path, build: str, workers: Mapping[str, str]) -> int:
    """Start a spawner that listens on RUN/spawner.sock; returns its pid. Raises OSError."""
    argv = [sys.executable, *ENTRY, build]
    argv += [f"{name}={target}" for name, target in sorted(workers.items())]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(run_dir / "spawner.sock"))
        interpreter = _seal_interpreter()
        stack.callback(os.close, interpreter)
        log = os.open(run_dir / "spawner.log", _LOG_FLAGS, 0o600)
        stack.callback(os.close, log)
        pid = os.posix_spawn(
            f"/proc/self/fd/{interpreter}",
            argv,
            {"LANG": "C.UTF-8", "PATH": os.defpath},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), 3),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    (run_dir / "spawner.pid").write_text(str(pid))
    return pid
