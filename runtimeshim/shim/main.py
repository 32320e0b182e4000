"""A shim's beginning: create the container, or adopt one whose shim was killed; supervise it."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Mapping
from typing import Any

from runtimeshim import wire
from runtimeshim.linux import capabilities, cgroups, syscalls
from runtimeshim.oci import filters, net_devices
from runtimeshim.oci.errors import StageError
from runtimeshim.shim import keeper, supervisor
from runtimeshim.shim.creator import Creator
from runtimeshim.shim.embedded import Embedded
from runtimeshim.shim.external import External
from runtimeshim.shim.handler import Handler
from runtimeshim.shim.log import LogFile
from runtimeshim.shim.task import Task

# The limit on open files that the spawner was started with; its own is higher.
_open_files: tuple[int, int] | None = None


def prepare() -> None:
    """Do once, in the spawner, what every shim would have to do again."""
    raise_open_files()
    filters.load()
    capabilities.last()
    cgroups.hierarchy()
    net_devices.load()


def prepare_shims() -> None:
    """Do once, in their template, what every shim inherits by the fork."""
    if _open_files is not None:  # what a container gets is the machine's setting, not ours
        resource.setrlimit(resource.RLIMIT_NOFILE, _open_files)
    supervisor.set_oom_score()
    signal.signal(signal.SIGCHLD, lambda *_: None)  # for the wake-up that goes with a handler


def stand_by(keeper_fd: int, *, init: bool) -> None:
    """Be the shim of the container that the spawner will name on its connection.

    With `init` one for it stands by, too.
    """
    kept = socket.socket(fileno=keeper_fd)
    syscalls.set_child_subreaper()
    creator = Creator(handler_of, standby=init)
    received = wire.receive(kept)
    if received is None:  # the spawner has gone, or needs no more shims
        return
    message, fds = received
    if message["op"] == "adopt":
        supervisor.identify(message["ward"]["container"])
        creator.close()
        _adopt(message, dict(zip(message["names"], fds, strict=True)), kept)
    else:
        supervisor.identify(message["container"])
        _create(message, fds[0], kept, creator)


def _create(message: wire.Message, client: int, kept: socket.socket, creator: Creator) -> None:
    """Be the shim of a new container; `client` is the daemon's first connection."""
    channel = socket.socket(fileno=client)
    request = wire.receive(channel)
    if request is None:  # the daemon died between two messages: nothing has been made yet
        return
    try:
        log = _open_log(message["options"])
        task = creator.create(message)
    except StageError as err:
        failure = {"error": err.message, "stage": err.stage, "kind": err.kind}
        try:
            wire.send(channel, {"id": request[0]["id"], **failure})
        except ConnectionError:  # the daemon was killed: its successor finds nothing made
            pass
        return
    supervised = supervisor.Supervisor(task, log, message, kept)
    supervised.keep()
    supervised.answer_created(channel, request[0]["id"])
    supervised.run(channel)


def _adopt(adoption: wire.Message, fds: Mapping[str, int], kept: socket.socket) -> None:
    """Be the shim of a container that has lost its own; `fds` are what the spawner has kept."""
    message, state = adoption["ward"], adoption["state"]
    options = message["options"]
    log = LogFile(options["log_path"], options.get("log_directory"))  # an older shim's has none
    log.mend()  # of a line whose write was killed; what it was made of has not been consumed
    task = Task(handler_of(message), message, state, fds)
    task.warnings.append("its first shim was killed; another one adopted it")
    running = bool(state["running"])
    if running:
        task.handler.finish_start(task)
    rests = keeper.rests_of(fds)
    supervised = supervisor.Supervisor(task, log, message, kept, running=running, rests=rests)
    supervised.keep()
    supervised.run(None)


def handler_of(request: wire.Message) -> Handler:
    """Return the runtime handler of a request: an OCI binary, or else the embedded executor."""
    runtime = request["options"]["runtime"]
    return Embedded() if runtime is None else External(runtime["name"], runtime["path"])


def raise_open_files() -> None:
    """Let the spawner have as many files as it may: it keeps some for every container."""
    global _open_files
    _open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_open_files[1], _open_files[1]))


def _open_log(options: Mapping[str, Any]) -> LogFile:
    path = options["log_path"]
    try:
        return LogFile(path, options["log_directory"])
    except OSError as err:
        raise StageError("log", f"the log {path} cannot be opened: {err.strerror}") from err
