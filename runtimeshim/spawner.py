"""The spawner: the one process that forks, so that nothing on the start path execs an interpreter.

It runs from a sealed copy of the interpreter, is single-threaded, has imported all that its
children will need, and holds no secret. It outlives the daemon: a new daemon connects to the same
socket and finds it as it was. As a subreaper it reaps whatever a shim or a worker leaves behind.

Requests (see runtimeshim.wire), each with an `id`; the answer carries the same id. A daemon asks a
spawner of its own build only; one of another build hears `hello` and `retire`, and a shim of any
build may send `ward` and what follows it:

    hello                                  -> {protocol, build, pid}
    shim     container, bundle, options    -> {pid}, later {exit}; the shim answers on fd 0
    worker   name, args                    -> {pid}, later {exit}; the worker answers on fd 0
    program  argv, env                     -> {pid}, later {exit}; the fds are its stdio
    kill     target                        -> SIGKILL to what request `target` started
    retire                                 -> the socket is closed; exits when its last child has
    ward     container, bundle, options    -> the connection becomes a shim's, see below

Each shim has a connection of its own to the spawner (runtimeshim.shim.keeper), over which it
leaves duplicates of its container's streams. When it ends without a release it was killed: a new
shim is forked that takes them up, so that the container never notices.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from runtimeshim import wire
from runtimeshim.linux import syscalls, wait
from runtimeshim.linux.signals import IGNORED_SIGNALS
from runtimeshim.shim import main as shim_main
from runtimeshim.shim.template import Template
from runtimeshim.ward import Ward

# The daemon passes the listening socket as this fd.
LISTENER_FD = 3

# glibc keeps these for itself, and its posix_spawn leaves them ignored in the child.
LIBC_SIGNALS = (32, 33)

# A shim or a worker that stands by is forked this long after the last one was taken: not while a
# container or a pod is being created.
STANDBY_SECONDS = 0.02

# A shim whose connection has ended ends itself in a moment; one that does not is killed.
SHIM_END_SECONDS = 1.0

Worker = Callable[[dict[str, Any], list[int]], tuple[dict[str, Any], list[int]]]


class Child:
    """A process that a request started."""

    __slots__ = ("client", "request")

    def __init__(self, request: int, client: socket.socket) -> None:
        self.request = request
        self.client = client


class Spawner:
    """The loop: one listener, the connections of daemons, and SIGCHLD."""

    def __init__(self, workers: dict[str, Worker], build: str) -> None:
        self._listener: socket.socket | None = None  # None before run and after retire
        self._workers = workers
        self._build = build
        self._children: dict[int, Child] = {}
        self._wards: list[Ward] = []
        self._ended: dict[int, int] = {}  # shims of wards that were reaped: wait status
        self._template: Template | None = None
        self._standby: tuple[int, socket.socket] | None = None
        self._standby_due = False  # the last one has been taken
        self._init_stands_by = True  # the last container could have used one: so may the next
        self._worker: tuple[int, socket.socket] | None = None  # that stands by
        self._worker_due = False
        self._selector = selectors.DefaultSelector()
        self._wakeup_r, self._wakeup_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self, listener: socket.socket) -> None:
        """Serve until told to retire and the last child is gone."""
        self._listener = listener
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_w, warn_on_full_buffer=False)
        self._selector.register(self._wakeup_r, selectors.EVENT_READ, self._on_sigchld)
        self._selector.register(listener, selectors.EVENT_READ, self._on_connect)
        self._template = Template(self._fork)
        while self._serving() or self._wards or self._has_children():
            due = self._standby_due or self._worker_due
            happened = self._selector.select(STANDBY_SECONDS if due else None)
            for key, _ in happened:
                key.data(key.fileobj)
            if not happened:
                self._stand_by()
            if not self._serving() and not self._wards:
                self._end_template()

    def _serving(self) -> bool:
        return self._listener is not None

    def _has_children(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _on_connect(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        client.setblocking(False)
        self._selector.register(client, selectors.EVENT_READ, self._on_request)

    def _on_request(self, client: socket.socket) -> None:
        try:
            received = wire.receive(client)
        except BlockingIOError:
            return
        except (OSError, ValueError) as err:
            log(f"a request was lost: {err}")
            received = None
        if received is None:
            self._drop(client)
            return
        message, fds = received
        try:
            self._serve(client, message, fds)
        except (OSError, KeyError, TypeError, ValueError) as err:
            text = wire.brief(f"{type(err).__name__}: {err}")
            self._answer(client, {"id": message.get("id"), "error": text})
        finally:
            for fd in fds:
                os.close(fd)

    def _drop(self, client: socket.socket) -> None:
        if client.fileno() < 0:
            return  # dropped already, by an answer that could not be sent
        self._selector.unregister(client)
        client.close()
        for pid in [pid for pid, child in self._children.items() if child.client is client]:
            del self._children[pid]

    def _serve(self, client: socket.socket, message: wire.Message, fds: list[int]) -> None:
        request = int(message["id"])
        match message["op"]:
            case "hello":
                answer = {"protocol": wire.PROTOCOL, "build": self._build, "pid": os.getpid()}
                self._answer(client, {"id": request, **answer})
                return
            case "kill":
                self._kill(client, int(message["target"]))
                return
            case "retire":
                self._retire()
                self._answer(client, {"id": request})
                return
            case "shim":
                pid = self._fork_shim(message, fds[0])
            case "ward":
                self._selector.unregister(client)
                self._add_ward(message, client)
                return
            case "worker":
                pid = self._give_work(self._workers[message["name"]], message, fds)
            case "program":
                pid = spawn_program(message["argv"], message["env"], fds)
            case unknown:
                raise ValueError(f"unknown operation {unknown!r}")
        self._children[pid] = Child(request, client)
        self._answer(client, {"id": request, "pid": pid})

    def _give_work(self, worker: Worker, message: wire.Message, fds: list[int]) -> int:
        """Have a worker work: the one that stands by, or else a new one."""
        standby, self._worker = self._worker, None
        self._worker_due = self._serving()
        if standby is not None:
            pid, channel = standby
            with channel:
                try:
                    wire.send(channel, message, fds)
                except OSError:  # it was killed meanwhile
                    pass
                else:
                    return pid
        return self._fork(lambda: run_worker(worker, message["args"], fds), fds)

    def _fork_worker(self) -> tuple[int, socket.socket]:
        ours, theirs = wire.pair()
        with theirs:
            return self._fork(lambda: self._await_work(theirs), [theirs.fileno()]), ours

    def _await_work(self, channel: socket.socket) -> None:
        syscalls.set_process_name("worker-standby")
        with channel:
            received = wire.receive(channel)
        if received is None:  # none is needed any more
            return
        message, fds = received
        run_worker(self._workers[message["name"]], message["args"], fds)

    def _fork_shim(self, message: wire.Message, client: int) -> int:
        pid, channel = self._give_shim(message, [client])
        self._add_ward(message, channel)
        return pid

    def _give_shim(self, message: wire.Message, fds: list[int]) -> tuple[int, socket.socket]:
        """Give a shim its work: the one that stands by, or else a new one."""
        standby, self._standby = self._standby, None
        self._standby_due = self._serving()
        if standby is not None:
            try:
                wire.send(standby[1], message, fds)
            except OSError:  # it was killed meanwhile
                standby[1].close()
            else:
                return standby
        pid, channel = self._fork_from_template()
        wire.send(channel, message, fds)
        return pid, channel

    def _fork_from_template(self) -> tuple[int, socket.socket]:
        ours, theirs = wire.pair()
        with theirs:
            for last in (False, True):
                if self._template is None:
                    self._template = Template(self._fork)
                try:
                    pid = self._template.fork(theirs.fileno(), init=self._init_stands_by)
                    return pid, ours
                except OSError as err:  # it was killed
                    log(f"a shim could not be forked: {err}")
                    self._end_template()
                    if last:
                        ours.close()
                        raise
        raise AssertionError("the second try returns or raises")

    def _stand_by(self) -> None:
        """Fork what is due; what cannot be forked now is forked when it is needed."""
        if self._worker_due:
            self._worker_due = False
            try:
                self._worker = self._fork_worker()
            except OSError as err:
                log(f"a worker could not be forked: {err}")
        if self._standby_due:
            self._standby_due = False
            with contextlib.suppress(OSError):  # logged
                self._standby = self._fork_from_template()

    def _end_template(self) -> None:
        """End what waits for containers that will not come."""
        if self._standby is not None:
            self._standby[1].close()
            self._standby = None
        if self._template is not None:
            self._template.close()
            self._template = None

    def _add_ward(self, message: wire.Message, channel: socket.socket) -> None:
        channel.setblocking(False)
        ward = Ward(message, channel)
        self._wards.append(ward)
        self._selector.register(channel, selectors.EVENT_READ, lambda _: self._on_ward(ward))

    def _on_ward(self, ward: Ward) -> None:
        try:
            received = wire.receive(ward.channel)
        except BlockingIOError:
            return
        except (OSError, ValueError) as err:
            log(f"a message of the shim of {ward.message.get('container')} was lost: {err}")
            received = None
        if received is None:
            self._on_shim_ended(ward)
            return
        message, fds = received
        match message.get("op"):
            case "keep":
                ward.keep(message, fds)
                self._init_stands_by = not ward.state.get("forked", False)
            case "started":
                ward.state["running"] = True
            case "drop":
                if message["name"] in ward.fds:
                    os.close(ward.fds.pop(message["name"]))
            case "exit":
                ward.state["exit"] = int(message["status"])
            case "release":
                ward.pid = 0

    def _on_shim_ended(self, ward: Ward) -> None:
        self._selector.unregister(ward.channel)
        ward.channel.close()
        over = ward.pid == 0  # or never created
        if over or not ward.may_be_adopted(killed=self._was_killed(ward.shim)):
            if not over:
                log(f"the shims of {ward.message['container']} end at once: it is given up")
            ward.close()
            self._wards.remove(ward)
            self._ended.pop(ward.shim, None)
            return
        log(f"the shim of {ward.message['container']} was killed: another one adopts its init")
        names, state = list(ward.fds), ward.state
        adoption = {"op": "adopt", "ward": ward.message, "state": state, "names": names}
        ward.shim, ward.channel = self._give_shim(adoption, list(ward.fds.values()))
        ward.channel.setblocking(False)
        self._selector.register(ward.channel, selectors.EVENT_READ, lambda _: self._on_ward(ward))
        if "exit" in ward.state:  # it ended before its new shim was there
            self._answer_ward(ward, {"exit": ward.state["exit"]})

    def _was_killed(self, shim: int) -> bool:
        """Tell whether a shim, whose connection has just ended, was killed."""
        if shim not in self._ended:
            try:
                await_end(shim)
                _, status = os.waitpid(shim, 0)
            except (ProcessLookupError, ChildProcessError):  # of another spawner, who took its end
                return True
            self._on_ended(shim, status)
        status = self._ended.pop(shim)
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def _on_orphan(self, pid: int, status: int) -> None:
        """Pass on how an adopted init has ended: its shim is not its parent."""
        for ward in self._wards:
            if ward.pid == pid:
                ward.state["exit"] = status
                self._answer_ward(ward, {"exit": status})

    def _answer_ward(self, ward: Ward, message: wire.Message) -> None:
        try:
            wire.send(ward.channel, message)
        except OSError:  # that shim is dead as well: the next one is told
            return

    def _answer(self, client: socket.socket, message: wire.Message) -> None:
        try:
            wire.send(client, message)
        except OSError as err:  # the daemon has gone, or hangs; its next connection asks anew
            log(f"an answer had no reader: {err}")
            self._drop(client)

    def _kill(self, client: socket.socket, target: int) -> None:
        for pid, child in self._children.items():
            if child.client is client and child.request == target:
                # Not yet reaped, so the pid is still that child's.
                for kill in (os.killpg, os.kill):
                    try:
                        kill(pid, signal.SIGKILL)
                    except ProcessLookupError:  # it leads no group, or is a zombie
                        continue

    def _retire(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
            self._standby_due = self._worker_due = False
            if self._worker is not None:
                self._worker[1].close()
                self._worker = None

    def _fork(self, run: Callable[[], None], keep: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            become_child(run, keep)
        return pid

    def _on_sigchld(self, wakeup: int) -> None:
        try:
            os.read(wakeup, 4096)
        except BlockingIOError:  # an earlier read took this wake-up's bytes too
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._on_ended(pid, status)

    def _on_ended(self, pid: int, status: int) -> None:
        if any(ward.shim == pid for ward in self._wards):
            self._ended[pid] = status
        child = self._children.pop(pid, None)
        if child is None:  # an orphan, or of a daemon that has gone
            self._on_orphan(pid, status)
        else:
            self._answer(child.client, {"id": child.request, "exit": wait.exit_code(status)})


def await_end(pid: int) -> None:
    """Wait for the end of a process that has let go of us; a living one is killed after a while.

    Raises ProcessLookupError.
    """
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], SHIM_END_SECONDS)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def become_child(run: Callable[[], None], keep: list[int]) -> NoReturn:
    """Run in a fresh fork and leave it: never return into the spawner's loop."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        syscalls.close_all_but(keep)
        run()
        code = 0
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        log(f"child {os.getpid()}: {type(err).__name__}: {err} ({location(err)})")
    finally:
        os._exit(code)


def location(err: BaseException) -> str:
    """Return where `err` was raised, from the outside in; the traceback module is a big import."""
    places = []
    step = err.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        places.append(f"{code.co_name}:{step.tb_lineno}")
        step = step.tb_next
    return " > ".join(places)


def run_worker(worker: Worker, args: dict[str, Any], fds: list[int]) -> None:
    """Run one job and send its answer, or its exception, on the first fd."""
    channel = socket.socket(fileno=fds[0])
    syscalls.set_process_name("criserver-work")
    answer: wire.Message
    result_fds: Sequence[int] = ()
    try:
        result, result_fds = worker(args, fds[1:])
        answer = {"result": result}
    except Exception as err:  # noqa: BLE001 - it is carried to the caller, whatever it is
        answer = {
            "error": {
                "kind": type(err).__name__,
                "message": wire.brief(str(err)),
                "errno": err.errno if isinstance(err, OSError) else None,
            }
        }
    try:
        wire.send(channel, answer, result_fds)
    except ConnectionError:  # the daemon was killed: its successor looks at what has been done
        pass


def spawn_program(argv: list[str], env: dict[str, str], fds: list[int]) -> int:
    """Start a helper program in a session of its own; no Python runs in the child."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
    return os.posix_spawn(
        argv[0],
        argv,
        env,
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=IGNORED_SIGNALS,
    )


def log(text: str) -> None:
    """Write one line to RUN/spawner.log, which is stderr here."""
    os.write(2, f"{text}\n".encode(errors="replace"))


def load_workers(names: list[str]) -> dict[str, Worker]:
    """Import the workers given as name=package.module:function."""
    workers: dict[str, Worker] = {}
    for entry in names:
        name, _, target = entry.partition("=")
        module, _, function = target.partition(":")
        workers[name] = getattr(importlib.import_module(module), function)
    return workers


def reset_signals() -> None:
    """Undo ignored signals that were inherited: they would survive into containers."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for libc_signal in LIBC_SIGNALS:
        syscalls.default_signal(libc_signal)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # The daemon's terminal is not ours; SIGPIPE would end us with a dying peer.
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """Entry point; the arguments are BUILD [NAME=MODULE:FUNCTION …] (runtimeshim.client.launch)."""
    reset_signals()
    syscalls.close_all_but([LISTENER_FD])  # whatever the daemon's own parent had left open
    os.umask(0o022)
    workers = load_workers(sys.argv[2:])
    syscalls.set_process_name("criserver-spawn")
    syscalls.set_child_subreaper()
    listener = socket.socket(fileno=LISTENER_FD)
    listener.set_inheritable(False)
    shim_main.prepare()
    gc.collect()
    gc.disable()
    gc.freeze()
    Spawner(workers, sys.argv[1]).run(listener)


if __name__ == "__main__":
    main()
