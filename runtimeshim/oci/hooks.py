"""Hooks: programs of the container's owner, run at points of its life (config.md, "POSIX hooks").

    prestart, createRuntime   by the runtime, once the namespaces are made, before the pivot
    createContainer           by the init, in the container's namespaces, before the pivot
    startContainer            by the init, in the container's root, after start
    poststart, poststop       by the runtime; a poststop that fails is only a warning

Each gets the container's state on stdin. Both ends are files in memory, so neither can fill up.
"""

from __future__ import annotations

import os
import select

from runtimeshim import json_text
from runtimeshim.linux.signals import signal
from runtimeshim.oci.errors import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Hook = Mapping[str, Any]

# How much of a failed hook's output its error shows.
_SHOWN = 2048

# CPython and the spawner ignore these; ignored signals survive execve.
_DEFAULTED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP)


def of(spec: Mapping[str, Any], *kinds: str) -> list[tuple[str, Hook]]:
    """Return a spec's hooks of these kinds, in their order, each with its name."""
    hooks = spec.get("hooks")
    if not hooks:
        return []
    return [
        (f"hooks.{kind}[{number}]", hook)
        for kind in kinds
        for number, hook in enumerate(hooks.get(kind) or ())
    ]


def state(
    spec: Mapping[str, Any], *, container_id: str, status: str, pid: int, bundle: str
) -> dict[str, Any]:
    """Return the state of the runtime-spec (runtime.md, "State")."""
    return {
        "ociVersion": spec.get("ociVersion", ""),
        "id": container_id,
        "status": status,
        "pid": pid,
        "bundle": bundle,
        "annotations": dict(spec.get("annotations") or {}),
    }


def run(hooks: Sequence[tuple[str, Hook]], given: Mapping[str, Any]) -> None:
    """Run hooks one after the other. Raises StageError at the first that fails."""
    for name, hook in hooks:
        reason = _run(hook, given)
        if reason is not None:
            raise StageError("hooks", f"{name} ({hook['path']}): {reason}")


def run_all(hooks: Sequence[tuple[str, Hook]], given: Mapping[str, Any]) -> list[str]:
    """Run all hooks, whatever becomes of each; returns a warning for each that failed."""
    reasons = [(name, hook, _run(hook, given)) for name, hook in hooks]
    return [f"{name} ({hook['path']}): {why}" for name, hook, why in reasons if why is not None]


def _run(hook: Hook, given: Mapping[str, Any]) -> str | None:
    """Run one hook; returns why it failed, or None."""
    stdin = _file("hook-state", json_text.dumps(given).encode())
    output = _file("hook-output", b"")
    try:
        pid = os.posix_spawn(
            hook["path"],
            hook.get("args") or [hook["path"]],
            dict(entry.partition("=")[::2] for entry in hook.get("env") or ()),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setpgroup=0,
            setsigmask=[],
            setsigdef=_DEFAULTED,
        )
        return _wait(pid, hook.get("timeout"), output)
    except OSError as err:
        return err.strerror or str(err)
    finally:
        os.close(stdin)
        os.close(output)


def _file(name: str, content: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _wait(pid: int, timeout: int | None, output: int) -> str | None:
    """Wait for the hook, `timeout` seconds at most; it is killed then, with its process group."""
    over = False
    if timeout:
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            over = not poll.poll(timeout * 1000)
        finally:
            os.close(pidfd)
    if over:
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if over:
        return f"not done within {timeout} s"
    if code == 0:
        return None
    said = os.pread(output, _SHOWN, 0).decode("utf-8", "replace").strip()
    how = f"exit status {code}" if code > 0 else f"killed by signal {-code}"
    return f"{how}: {said}" if said else how
