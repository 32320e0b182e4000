"""An OCI runtime's binary as a runtime handler: runc, crun, youki, runsc, by their command line.

Everything that they keep (`--root`) is in the container's bundle, and goes with it. Their container
has its root mounted in the mount namespace of the process that creates it, which the binary
inherits: the host sees no mount of it. Each call writes its errors as JSON lines (`--log`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from runtimeshim import wire
from runtimeshim.linux import mounts, overlay, wait
from runtimeshim.linux.cgroups import units
from runtimeshim.oci import container as oci
from runtimeshim.oci import rootfs
from runtimeshim.oci.errors import StageError
from runtimeshim.oci.standby import Standby
from runtimeshim.oci.stdio import Streams
from runtimeshim.shim.handler import Stdio, in_child
from runtimeshim.shim.task import Task, fds_of

# Names within a bundle.
ROOT = "runtime"
LOG = "runtime.log"
PID_FILE = "init.pid"
CONSOLE = "console.sock"

# How much of what a binary has said stands in an error, and is read of its log at all.
MAX_SAID = 2048
MAX_LOG = 1 << 20

# By what words a failed exec was the program's fault (runc, crun, youki).
NOT_EXECUTABLE = ("not found", "no such file or directory", "permission denied", "is a directory")
ENDED = ("not running", "process already finished", "no such process", "does not exist")

# A binary is run in the environment of a service, and undoes what CPython ignores.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP)


class External:
    """See Handler. `name` is the handler's in the configuration, `path` the binary's."""

    __slots__ = ("_name", "_path")

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path

    def create(
        self, request: wire.Message, standby: Standby | None
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """See Handler."""
        if standby is not None:
            standby.end()
        bundle, options = request["bundle"], request["options"]
        began = time.monotonic_ns()
        spec = oci.load(bundle)
        streams = Streams()
        os.chdir(bundle)  # what the binary is given is relative: a socket's path has 107 bytes
        _mount_root(spec, bundle, options["rootfs"])
        mounted = time.monotonic_ns()
        try:
            self._create(bundle, request["container"], spec, streams, options["stdin"])
            pid = _read_pid(PID_FILE)
            pidfd = os.pidfd_open(pid)
        except BaseException:
            self._delete(bundle, request["container"])
            raise
        now = time.monotonic_ns()
        made: dict[str, Any] = {
            "pid": pid,
            "cgroup": (spec.get("linux") or {}).get("cgroupsPath") or f"/{request['container']}",
            "hooks": False,  # the binary runs them
            "timings": {"rootfs": mounted - began, "create": now - mounted, "total": now - began},
            "warnings": [],
        }
        return made, fds_of(streams, pidfd, None)

    def _create(
        self, bundle: str, container_id: str, spec: Mapping[str, Any], streams: Streams, stdin: bool
    ) -> None:
        flags = ["create", "--bundle", bundle, "--pid-file", PID_FILE]
        if units.is_unit((spec.get("linux") or {}).get("cgroupsPath") or "/"):
            flags = ["--systemd-cgroup", *flags]  # kept in the binary's own state for other verbs
        if not spec["process"].get("terminal"):
            stdio = streams.open_pipes(stdin)
            self._run(bundle, [*flags, container_id], stdio, said=streams.stderr)
            for fd in stdio:
                os.close(fd)
            return
        with Console(CONSOLE) as console:
            self._run(bundle, [*flags, "--console-socket", CONSOLE, container_id])
            streams.terminal = console.receive()

    def abandon(self, request: wire.Message, made: dict[str, Any]) -> None:
        """See Handler."""
        self._delete(request["bundle"], request["container"])

    def start(self, task: Task) -> None:
        """See Handler."""
        _, task.sync = in_child(lambda _: self._start(task))

    def _start(self, task: Task) -> None:
        self._run(task.bundle, ["start", task.container_id])

    def finish_start(self, task: Task) -> None:
        """See Handler."""
        said = self._run(task.bundle, ["state", task.container_id])
        if json.loads(said)["status"] == "created":
            self._start(task)

    def started(self, task: Task) -> StageError | None:
        """See Handler."""
        return None

    def fork_exec(
        self, task: Task, target: int, stdio: Stdio, name: str
    ) -> tuple[int, socket.socket, str]:
        """See Handler."""
        return *in_child(lambda sync: self._exec(task, target, stdio, name, sync)), ""

    def _exec(self, task: Task, target: int, stdio: Stdio, name: str, sync: socket.socket) -> None:
        began = time.monotonic_ns()
        os.chdir(task.bundle)
        pid_file, log = f"{name}.pid", f"{name}.log"
        flags = ["exec", "--detach", "--process", "/proc/self/fd/3", "--pid-file", pid_file]
        try:
            if stdio is not None:
                self._run(task.bundle, [*flags, task.container_id], (*stdio, target), log=log)
            else:
                with Console(f"{name}.sock") as console:
                    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
                    flags += ["--console-socket", f"{name}.sock", task.container_id]
                    self._run(task.bundle, flags, (null, null, null, target), log=log)
                    wire.send(sync, {"terminal": True}, [console.receive()])
            pid = _read_pid(pid_file)
        except StageError as err:
            if any(words in err.message for words in NOT_EXECUTABLE):
                err.kind = "start"
            raise
        finally:
            for left in (pid_file, log):
                _unlink(left)
        timings = {"exec": time.monotonic_ns() - began}
        wire.send(sync, {"pid": pid, "cgroup": "", "timings": timings})

    def kill(self, task: Task, number: int) -> socket.socket | None:
        """See Handler."""
        _, sync = in_child(lambda _: self._kill(task, number))
        return sync

    def _kill(self, task: Task, number: int) -> None:
        try:
            self._run(task.bundle, ["kill", task.container_id, str(number)])
        except StageError as err:
            if any(words in err.message for words in ENDED):
                err.kind = "finished"
            raise

    def finish(self, task: Task) -> list[str]:
        """See Handler."""
        return self._delete(task.bundle, task.container_id)

    def _delete(self, bundle: str, container_id: str) -> list[str]:
        """Have the binary take down what it has made; returns why it did not."""
        try:
            self._run(bundle, ["delete", "--force", container_id])
        except StageError as err:
            return [err.message]
        return []

    def _run(
        self,
        bundle: str,
        arguments: Sequence[str],
        fds: Sequence[int] = (),
        *,
        log: str = LOG,
        said: int | None = None,
    ) -> bytes:
        """Run the binary with `fds` as its 0, 1, 2, …; returns what it says when it gets none.

        `said` is a pipe that its standard error is written to, where that is among the `fds`.
        Raises StageError with the handler's name and the binary's own words.
        """
        verb = next(word for word in arguments if not word.startswith("-"))
        path = f"{bundle}/{log}"
        _unlink(path)
        output = os.memfd_create("output", os.MFD_CLOEXEC)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        argv = [self._path, "--root", f"{bundle}/{ROOT}", "--log", path, "--log-format", "json"]
        try:
            code = _spawn([*argv, *arguments], fds or (null, output, output))
            content = os.pread(output, MAX_LOG, 0)
        except OSError as err:
            raise self._error(verb, err.strerror or str(err)) from err
        finally:
            os.close(null)
            os.close(output)
        if code != 0:
            spoken = _last_error(path) or _text(content) or _text(_available(said))
            raise self._error(verb, spoken or f"ended with code {code}, and said nothing")
        return content

    def _error(self, verb: str, words: str) -> StageError:
        return StageError(verb, f"runtime handler {self._name!r}: {self._path} {verb}: {words}")


class Console:
    """The socket on which a binary hands over the master of a terminal (runc, terminals.md)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(old)
        self._listener.listen(1)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        _unlink(self._path)

    def receive(self) -> int:
        """Return the terminal's master: called when the binary has ended. Raises StageError."""
        self._listener.setblocking(False)
        try:
            connection, _ = self._listener.accept()
            with connection:
                _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        except BlockingIOError:
            fds = []
        if not fds:
            raise StageError("terminal", "the runtime has handed over no terminal")
        os.set_inheritable(fds[0], False)
        return fds[0]


def _mount_root(spec: Mapping[str, Any], bundle: str, layers: Mapping[str, Any] | None) -> None:
    """Mount the layers where the specification wants the root, for us and our children only."""
    if layers is None:
        return
    target = os.path.join(bundle, spec["root"]["path"])
    propagation = (spec.get("linux") or {}).get("rootfsPropagation")
    try:
        rootfs.detach_from_host(propagation, target)
        label = (spec.get("linux") or {}).get("mountLabel") or ""
        rootfs.mount_overlay(layers, target, label)
        _mount_overlays(spec, bundle, label)
    except OSError as err:
        raise StageError("rootfs", str(err)) from err


def _mount_overlays(spec: Mapping[str, Any], bundle: str, label: str) -> None:
    """Mount image volumes, which then are binds to the binary: it knows no `lowerdir+`."""
    changed = False
    for number, mount in enumerate(spec.get("mounts") or ()):
        layers = [o for o in mount.get("options") or () if o.startswith("lowerdir+=")]
        if mount.get("type") != "overlay" or not layers:
            continue
        lowerdirs = [option.partition("=")[2] for option in layers]
        target = f"{bundle}/overlay-{number}"
        os.mkdir(target, 0o755)
        attributes = mounts.MOUNT_ATTR_RDONLY
        overlay.mount(lowerdirs, target, source="image", attributes=attributes, context=label)
        others = [option for option in mount["options"] if option not in layers]
        mount.update(type="bind", source=target, options=["rbind", *others])
        changed = True
    if changed:
        with open("config.json.new", "x", encoding="utf-8") as file:
            json.dump(spec, file)
        os.rename("config.json.new", "config.json")


def _spawn(argv: Sequence[str], fds: Sequence[int]) -> int:
    """Run a program to its end; returns its exit code, 128 + signal for a death by signal."""
    # First out of the way of their targets, then into place.
    moved = [os.dup(fd) if fd < len(fds) else fd for fd in fds]
    try:
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(moved)],
            setsigmask=[],
            setsigdef=DEFAULT_SIGNALS,
        )
    finally:
        for old, new in zip(fds, moved, strict=True):
            if new != old:
                os.close(new)
    return wait.exit_code(os.waitpid(pid, 0)[1])


def _last_error(path: str) -> str:
    """Return the last message of level error or worse in a log of JSON lines; "" without one."""
    try:
        with open(path, "rb") as source:
            lines = source.read(MAX_LOG).splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:  # a line that is not of the log, or was cut
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            return str(entry.get("msg", ""))[:MAX_SAID]
    return ""


def _available(pipe: int | None) -> bytes:
    """Return what is in a pipe now."""
    if pipe is None:
        return b""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, MAX_LOG)
    except BlockingIOError:
        return b""


def _text(content: bytes) -> str:
    return content[-MAX_SAID:].decode("utf-8", "replace").strip()


def _read_pid(path: str) -> int:
    with open(path, encoding="ascii") as source:
        return int(source.read())


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:  # it was not made
        pass
