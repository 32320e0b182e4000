"""A shim's beginning: create the container, or adopt one whose shim was killed; supervise it."""

from __future__ import annotations

import resource
import socket
from collections.abc import Mapping

from runtimeshim import wire
from runtimeshim.linux import capabilities, seccomp, syscalls
from runtimeshim.oci import container as oci
from runtimeshim.oci.errors import StageError
from runtimeshim.shim import keeper, supervisor
from runtimeshim.shim.log import LogFile

# The limit on open files that the spawner was started with; its own is higher.
_open_files: tuple[int, int] | None = None


def prepare() -> None:
    """Do once, in the spawner, what every shim would have to do again."""
    raise_open_files()
    seccomp.load_library()
    capabilities.last()
    oci.hierarchy()


def run(message: wire.Message, client: int, keeper_fd: int) -> None:
    """Be the shim of a new container; `client` is the daemon's first connection."""
    channel = socket.socket(fileno=client)
    _become(message)
    request = wire.receive(channel)
    if request is None:  # the daemon died between two messages: nothing has been made yet
        return
    options = message["options"]
    try:
        log = _open_log(options["log_path"])
        container = _load(message)
        container.create(options["rootfs"], stdin=options["stdin"])
    except StageError as err:
        failure = {"error": err.message, "stage": err.stage, "kind": err.kind}
        wire.send(channel, {"id": request[0]["id"], **failure})
        return
    kept = socket.socket(fileno=keeper_fd)
    supervised = supervisor.Supervisor(container, log, message, kept)
    supervised.keep()
    wire.send(channel, {"id": request[0]["id"], **supervisor.describe(container, running=False)})
    supervised.run(channel)


def adopt(
    message: wire.Message,
    keeper_fd: int,
    pid: int,
    state: wire.Message,
    fds: Mapping[str, int],
) -> None:
    """Be the shim of a container that has lost its own; `fds` are what the spawner has kept."""
    _become(message)
    log = LogFile(message["options"]["log_path"])
    container = _load(message)
    rests = keeper.restore(container, pid, fds)
    container.timings = state["timings"]
    container.warnings = [*state["warnings"], "its first shim was killed; another one adopted it"]
    running = bool(state["running"])
    if running:
        _finish_start(container)
    kept = socket.socket(fileno=keeper_fd)
    supervised = supervisor.Supervisor(container, log, message, kept, running=running, rests=rests)
    supervised.keep()
    supervised.run(None)


def _finish_start(container: oci.Container) -> None:
    """Start the init if the killed shim had announced that, and had not come to do it."""
    if container.sync is None:
        return
    try:
        container.start()
    except OSError:  # EPIPE: it has executed its program, which closed its end
        container.sync.close()
        container.sync = None
        return
    container.started()  # a failure ends the init, and its exit code tells


def raise_open_files() -> None:
    """Let the spawner have as many files as it may: it keeps some for every container."""
    global _open_files
    _open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_open_files[1], _open_files[1]))


def _become(message: wire.Message) -> None:
    if _open_files is not None:  # what a container gets is the machine's setting, not ours
        resource.setrlimit(resource.RLIMIT_NOFILE, _open_files)
    supervisor.identify(message["container"])
    supervisor.set_oom_score()
    syscalls.set_child_subreaper()


def _load(message: wire.Message) -> oci.Container:
    bundle = message["bundle"]
    return oci.Container(bundle, oci.load(bundle), message["options"]["seccomp_cache"])


def _open_log(path: str | None) -> LogFile:
    try:
        return LogFile(path)
    except OSError as err:
        raise StageError("log", f"the log {path} cannot be opened: {err.strerror}") from err
