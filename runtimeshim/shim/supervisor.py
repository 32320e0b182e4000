"""The shim's loop: requests of the daemon, the container's streams, and the deaths of processes.

Requests and answers are runtimeshim.wire messages over shim.sock; any number of connections. Each
hears `exit` when the container is over, and `exec-exit` of what it has started itself.

The order at the end: streams drained into the log, the rest of the container killed, its cgroup
removed, the exit record on disk, and only then the announcement. The shim ends with it, or as
soon as its attached clients have read the rest: a container that is over costs no process.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from runtimeshim import exit_record, wire
from runtimeshim.exit_record import ExitRecord
from runtimeshim.linux import process_exits, syscalls, wait
from runtimeshim.oci.errors import StageError
from runtimeshim.shim import keeper
from runtimeshim.shim.execs import Execs
from runtimeshim.shim.log import LogFile
from runtimeshim.shim.poller import EDGE, PRIORITY, READ, Poller
from runtimeshim.shim.streams import Stdio
from runtimeshim.shim.task import Task

# How long output may flow after init's end: only from processes that outlive it, which are killed.
DRAIN_SECONDS = 2.0

# How long the parent of an adopted init may take to reap it, and how often it is looked for.
REAP_SECONDS = 5.0
REAP_INTERVAL_SECONDS = 0.01

# How long after its notification the OOM killer's work is looked for, and how often: a machine
# that is out of memory may be slow.
OOM_SECONDS = 5.0
OOM_INTERVAL_SECONDS = 0.05

Answer = wire.Message | None
Operation = Callable[[socket.socket, wire.Message, list[int]], Answer]


class Supervisor:
    """A created container and everything that goes on around it.

    With `rests`, the unfinished lines of a shim that was killed, the container is adopted: its init
    is no child of this process.
    """

    def __init__(
        self,
        task: Task,
        log: LogFile,
        request: wire.Message,
        channel: socket.socket | None,
        *,
        running: bool = False,
        rests: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self._bundle = task.bundle
        self._task = task
        self._log = log
        self._poller = Poller()
        self._stdio = Stdio(
            task.streams,
            log,
            once=bool(request["options"]["stdin_once"]),
            poller=self._poller,
            rests=rests or {},
        )
        self._keeper = keeper.Keeper(channel, request, self._poller)
        if self._stdio.stdin is not None and task.streams.terminal is None:
            self._stdio.stdin.on_close = lambda: self._keeper.drop("stdin")
        self._clients: list[socket.socket] = []
        self._execs = Execs(task, self._poller, self._send_to)
        self._starting: tuple[socket.socket, int] | None = None
        self._running = running
        self._adopted = rests is not None
        self._over = False
        self._oom_kills = 0
        self._oom_until = 0.0  # until when a kill may follow its notification
        self._oom = task.manager.watch_oom(task.cgroup_path)
        self._wakeup, self._wakeup_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wakeup_w, warn_on_full_buffer=False)
        if self._adopted:
            self._watch_exits()
        self._operations: dict[str, Operation] = {
            "start": self._start,
            "state": self._state,
            "kill": self._kill,
            "exec": self._exec,
            "exec-kill": self._exec_kill,
            "exec-resize": self._exec_resize,
            "attach": self._attach,
            "resize": self._resize,
            "reopen-log": self._reopen_log,
        }

    def run(self, first: socket.socket | None) -> None:
        """Serve until the container is over."""
        listener = listen(self._bundle)
        self._poller.register(listener.fileno(), READ, lambda _: self._on_connect(listener))
        self._watch_children()
        if first is not None:
            self._add_client(first)
        if self._adopted:
            self._poller.register(self._task.pidfd, READ, lambda _: self._on_pidfd())
        if self._oom is not None:
            events = READ if self._oom.eventfd else PRIORITY | EDGE
            self._poller.register(self._oom.fd, events, lambda _: self._on_oom())
        self._reap()  # a child that died before SIGCHLD had its handler
        while not self._over:
            self._turn()
        self._poller.unregister(listener.fileno())
        listener.close()
        for client in list(self._clients):
            self._drop(client)
        while self._stdio.flushing():
            self._poller.turn()

    def _watch_children(self) -> None:
        self._poller.register(self._wakeup, READ, lambda _: self._on_sigchld())

    def _turn(self) -> None:
        if self._oom_until > 0.0:
            self._poller.turn(OOM_INTERVAL_SECONDS)
            self._look_for_oom_kills()
        else:
            self._poller.turn(self._keeper.timeout())
        if self._keeper.retry():
            if self._task.exits is None:
                self._watch_exits()  # the new spawner will not be the init's parent after us
            self.keep()

    def rehearse(self, client: socket.socket) -> None:
        """Serve what is there until the start is answered, then let go of everything.

        See runtimeshim.shim.rehearsal.
        """
        self._watch_children()
        self._add_client(client)
        os.write(self._wakeup_w, b"\0")
        while not self._running:
            self._turn()
        self._drop(client)
        self._stdio.finish(0)
        self._keeper.close()
        self._poller.close()
        for fd in (self._wakeup, self._wakeup_w, self._task.pidfd):
            os.close(fd)

    def keep(self) -> None:
        """Entrust the container's ends to the spawner, before anyone hears of the container."""
        self._keeper.keep(self._task, self._stdio.rests(), self._kept_state())
        self._tell_end()

    def _watch_exits(self) -> None:
        """Listen for the end of an init that is not our child, or will be another's after us."""
        if self._task.exits is None:
            self._task.exits = listen_for_exits(self._task)
        if self._task.exits is not None:
            self._poller.register(self._task.exits.fileno(), READ, lambda _: self._read_exits())

    def answer_created(self, client: socket.socket, request: int) -> None:
        """Tell the daemon that the container is there; one that was killed finds it later."""
        try:
            wire.send(client, {"id": request, **self._describe()})
        except ConnectionError:  # the loop sees the end of the connection too
            pass

    def _on_connect(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        self._add_client(client)

    def _add_client(self, client: socket.socket) -> None:
        client.setblocking(False)
        self._clients.append(client)
        self._poller.register(client.fileno(), READ, lambda _: self._on_request(client))

    def _on_request(self, client: socket.socket) -> None:
        try:
            received = wire.receive(client)
        except BlockingIOError:
            return
        except (OSError, ValueError):  # a reset is an end as well; so is what is no message
            received = None
        if received is None:
            self._drop(client)
            return
        message, fds = received
        answer: wire.Message | None = None
        try:
            operation = self._operations.get(message["op"], _unknown)
            answer = operation(client, message, fds)
        except StageError as err:
            answer = {"error": err.message, "stage": err.stage, "kind": err.kind}
        except ProcessLookupError:
            answer = {"error": "process already finished", "kind": "finished"}
        except (OSError, ValueError, KeyError, TypeError) as err:
            text = wire.brief(f"{message.get('op')}: {err}")
            answer = {"error": text, "kind": "error"}
        if answer is not None:  # else it comes when there is something to tell
            self._send(client, {"id": message.get("id"), **answer})
        for fd in fds:
            os.close(fd)

    def _send_to(self, client: socket.socket, message: wire.Message, fds: Sequence[int]) -> None:
        """Send to a client that may have gone meanwhile."""
        if client in self._clients:
            self._send(client, message, fds)

    def _send(self, client: socket.socket, message: wire.Message, fds: Sequence[int] = ()) -> None:
        try:
            wire.send(client, message, fds)
        except OSError:  # it hung up, or reads nothing: the container must not wait for it
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._poller.unregister(client.fileno())
            client.close()

    def _state(self, _: socket.socket, __: wire.Message, ___: list[int]) -> Answer:
        return self._describe()

    def _kept_state(self) -> wire.Message:
        """Return what another shim needs to go on, beside the fds."""
        return {**self._task.describe(), "running": self._running}

    def _describe(self) -> wire.Message:
        """Return what a daemon wants to know of the container."""
        return {
            "protocol": wire.PROTOCOL,
            "pid": self._task.pid,
            "running": self._running,
            "timings": self._task.timings,
            "warnings": self._task.warnings,
            "log_bytes_lost": self._log.lost_bytes,
        }

    def _start(self, client: socket.socket, message: wire.Message, _: list[int]) -> Answer:
        """Begin the start; its answer is sent when execve has closed the socket, or failed."""
        if self._running or self._starting is not None:
            raise StageError("start", "the container is already started", "state")
        self._starting = (client, message["id"])
        self._keeper.started()
        self._task.handler.start(self._task)
        sync = self._task.sync
        assert sync is not None
        self._poller.register(sync.fileno(), READ, lambda _: self._on_started(sync))
        return None

    def _on_started(self, sync: socket.socket) -> None:
        assert self._starting is not None
        (client, request), self._starting = self._starting, None
        self._poller.unregister(sync.fileno())
        failure = self._task.started()
        if failure is None:
            self._running = True
            self._send(client, {"id": request, "ok": True})
        else:
            error = {"error": failure.message, "stage": failure.stage, "kind": failure.kind}
            self._send(client, {"id": request, **error})

    def _kill(self, client: socket.socket, message: wire.Message, _: list[int]) -> Answer:
        number = int(message["signal"])
        if message.get("everyone") and number == signal.SIGKILL:
            self._task.manager.kill(self._task.cgroup_path)
        elif message.get("everyone"):
            for pid in self._task.manager.pids(self._task.cgroup_path):
                os.kill(pid, number)
        else:
            sync = self._task.handler.kill(self._task, number)
            if sync is not None:
                self._await_kill(client, message["id"], sync)
                return None
        return {"ok": True}

    def _await_kill(self, client: socket.socket, request: int, sync: socket.socket) -> None:
        """Answer when the handler's binary has sent the signal, or has not."""

        def done(_: int) -> None:
            self._poller.unregister(sync.fileno())
            with sync:
                received = wire.receive(sync)
            answer = {"ok": True} if received is None else received[0]
            self._send_to(client, {"id": request, **answer}, [])

        self._poller.register(sync.fileno(), READ, done)

    def _exec(self, client: socket.socket, message: wire.Message, fds: list[int]) -> Answer:
        if not self._running:
            raise StageError("exec", "container not running", "state")
        self._execs.start(client, message, fds)
        return None

    def _exec_kill(self, _: socket.socket, message: wire.Message, __: list[int]) -> Answer:
        self._execs.find(message["exec"]).kill(int(message["signal"]), self._task)
        return {"ok": True}

    def _exec_resize(self, _: socket.socket, message: wire.Message, __: list[int]) -> Answer:
        width, height = int(message["width"]), int(message["height"])
        self._execs.find(message["exec"]).resize(width, height)
        return {"ok": True}

    def _attach(self, _: socket.socket, message: wire.Message, fds: list[int]) -> Answer:
        for name, fd in zip(message["streams"], list(fds), strict=True):
            self._stdio.attach(name, os.dup(fd))
        return {"ok": True}

    def _resize(self, _: socket.socket, message: wire.Message, __: list[int]) -> Answer:
        self._stdio.resize(int(message["width"]), int(message["height"]))
        return {"ok": True}

    def _reopen_log(self, _: socket.socket, __: wire.Message, ___: list[int]) -> Answer:
        self._log.reopen()
        return {"ok": True}

    def _on_sigchld(self) -> None:
        try:
            os.read(self._wakeup, 4096)
        except BlockingIOError:  # an earlier read took this wake-up's bytes too
            pass
        self._reap()

    def _reap(self) -> None:
        """Reap everything; init's exit is handled last, so that no exec's is lost."""
        self._tell_end()
        ended: int | None = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._task.pid:
                ended = status
            else:
                self._execs.exited(pid, wait.exit_code(status))
        if ended is not None:
            self._on_exit(ended)

    def _tell_end(self) -> None:
        """Leave it to the spawner how init ended, before it is reaped: this shim may be killed."""
        try:
            found = os.waitid(os.P_PIDFD, self._task.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # adopted
            return
        if found is not None:
            self._keeper.ended(wait.status_of(found))

    def _on_pidfd(self) -> None:
        """Learn how an adopted init ended: from the spawner that reaped it, or from the kernel.

        The kernel tells who has a pidfd since Linux 6.15, and listeners before.
        """
        self._poller.unregister(self._task.pidfd)
        deadline = time.monotonic() + REAP_SECONDS
        while time.monotonic() < deadline:
            status = self._keeper.exit_status
            if status is None:
                status = keeper.exit_status(self._task.pidfd)
            if status is None and self._task.exits is not None:
                status = self._task.exits.status()
            if status is not None:
                self._keeper.ended(status)
                self._on_exit(status)
                return
            self._poller.turn(REAP_INTERVAL_SECONDS)
        # Reaped by a stranger, where the kernel does not tell: the daemon reports it as lost.
        self._keeper.release()
        self._stdio.finish(0)
        self._over = True

    def _read_exits(self) -> None:
        """Make room for what is told next.

        What the kernel tells of the end stays with it until it is asked for, and told: if this shim
        is killed before, the next one finds it there.
        """
        assert self._task.exits is not None
        if not wait.has_ended(self._task.pidfd):
            self._task.exits.status()

    def _on_oom(self) -> None:
        """Tell the daemons if it was the OOM killer: the end of the cgroup notifies too."""
        assert self._oom is not None
        try:
            self._oom.clear()
        except OSError:  # ENODEV: the cgroup has gone
            self._poller.unregister(self._oom.fd)
            return
        self._oom_until = time.monotonic() + OOM_SECONDS
        self._look_for_oom_kills()

    def _look_for_oom_kills(self) -> None:
        """Tell of new ones; cgroup v1 notifies before it kills, and counts after."""
        if self._over:
            return
        if time.monotonic() > self._oom_until:
            self._oom_until = 0.0
        kills = self._task.manager.oom_kills(self._task.cgroup_path)
        if kills > self._oom_kills:
            self._oom_kills = kills
            self._oom_until = 0.0
            for client in list(self._clients):
                self._send(client, {"event": "oom", "kills": kills})

    def _on_exit(self, status: int) -> None:
        finished = time.time_ns()
        if self._starting is not None and self._task.sync is not None:
            self._on_started(self._task.sync)
        task = self._task
        # Once more: the exit may have come before the notification.
        oom_killed = max(self._oom_kills, task.manager.oom_kills(task.cgroup_path)) > 0
        if not oom_killed and wait.exit_code(status) == 128 + signal.SIGKILL:
            oom_killed = task.manager.was_oom_killed(task.cgroup_path)
        task.manager.kill(task.cgroup_path)
        self._stdio.finish(DRAIN_SECONDS)
        self._reap_rest()
        try:
            task.manager.delete(task.cgroup_path)
        except OSError as err:  # a stray directory is less than a lost exit code
            os.write(2, f"{task.bundle}: {err}\n".encode())  # RUN/spawner.log
        for warning in task.handler.finish(task):
            os.write(2, f"{warning}\n".encode())  # RUN/spawner.log
        record = ExitRecord(wait.exit_code(status), finished, oom_killed)
        exit_record.write(self._bundle, record)
        self._keeper.release()
        try:
            os.unlink(f"{self._bundle}/shim.sock")
        except FileNotFoundError:  # who has read the record may remove the bundle
            pass
        event = {"event": "exit", "record": exit_record.to_json(record)}
        for client in list(self._clients):
            self._send(client, event)
        self._over = True

    def _reap_rest(self) -> None:
        """Reap what the kill above has ended: execs and orphans that were ours."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                time.sleep(0.001)
            else:
                self._execs.exited(pid, wait.exit_code(status))


def _unknown(_: socket.socket, message: wire.Message, __: list[int]) -> Answer:
    """Answer a daemon of a newer build, which says what that means (runtimeshim.wire)."""
    return {"error": f"unknown operation {message['op']!r}", "kind": "unknown"}


def listen_for_exits(task: Task) -> process_exits.ExitWatch | None:
    """Listen for the exit of an init; None where nobody tells of exits."""
    try:
        return process_exits.listen(task.pid)
    except OSError as err:  # a kernel without connector, or a network namespace of the node's own
        lost = "its exit code is lost if the spawner is killed as well, before Linux 6.15"
        os.write(2, f"{task.bundle}: {lost}: {err}\n".encode())  # RUN/spawner.log
        return None


def listen(bundle: str) -> socket.socket:
    """Listen on shim.sock; bound through its directory's fd, as a path has 107 bytes at most."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(bundle, os.O_PATH | os.O_CLOEXEC)
    old = os.umask(0o177)
    try:
        path = f"/proc/self/fd/{directory}/shim.sock"
        try:
            listener.bind(path)
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise
            os.unlink(path)  # of a shim that was killed: this one takes its place
            listener.bind(path)
    finally:
        os.umask(old)
        os.close(directory)
    listener.listen(16)
    return listener


def set_oom_score() -> None:
    """Ask to be the last that the kernel kills; where it refuses, the spawner's score stays."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as out:
            out.write("-998")
    except PermissionError:  # no CAP_SYS_RESOURCE on this node: as good as can be had
        pass


def identify(container_id: str) -> None:
    """Take the container's name, so that ps and top tell shims apart."""
    syscalls.set_process_name(f"shim {container_id[:10]}")
