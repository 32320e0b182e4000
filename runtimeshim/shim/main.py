"""A shim's beginning: create the container, answer, and supervise it."""

from __future__ import annotations

import socket
from typing import Any

from runtimeshim import wire
from runtimeshim.linux import capabilities, seccomp, syscalls
from runtimeshim.oci import container as oci
from runtimeshim.oci.errors import StageError
from runtimeshim.shim import supervisor
from runtimeshim.shim.log import LogFile


def prepare() -> None:
    """Do once, in the spawner, what every shim would have to do again."""
    seccomp.load_library()
    capabilities.last()
    oci.hierarchy()


def run(message: dict[str, Any], fd: int) -> None:
    """Be the shim of one container; `fd` is the daemon's first connection."""
    channel = socket.socket(fileno=fd)
    bundle, options = message["bundle"], message["options"]
    supervisor.identify(message["container"])
    supervisor.set_oom_score()
    syscalls.set_child_subreaper()
    request = wire.receive(channel)
    if request is None:  # the daemon died between two messages: nothing has been made yet
        return
    try:
        log = _open_log(options["log_path"])
        container = oci.Container(bundle, oci.load(bundle), options["seccomp_cache"])
        container.create(options["rootfs"], stdin=options["stdin"])
    except StageError as err:
        failure = {"error": err.message, "stage": err.stage, "kind": err.kind}
        wire.send(channel, {"id": request[0]["id"], **failure})
        return
    supervised = supervisor.Supervisor(bundle, container, log, options)
    wire.send(channel, {"id": request[0]["id"], **supervisor.describe(container, running=False)})
    supervised.run(channel)


def _open_log(path: str | None) -> LogFile:
    try:
        return LogFile(path)
    except OSError as err:
        raise StageError("log", f"the log {path} cannot be opened: {err.strerror}") from err
