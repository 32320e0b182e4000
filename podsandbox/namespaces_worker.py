"""Makes a pod's namespaces and pins them; runs in a short-lived fork of the spawner.

The fork leaves the host's namespaces for new ones, fits them out from inside and pins each with a
bind mount of its nsfs file, which it makes in the host's mount namespace: that one it never leaves.
When it exits, the pins alone keep the namespaces.

With a user namespace, that one must own the others, and whoever enters it cannot pin anything: a
second fork enters it, makes the others and hands their fds over.

A shared PID namespace needs a process with pid 1. That is another fork, which becomes the program
of podsandbox.pod_init: without capabilities, in an empty root of its own, since other processes
of the pod can look at it through /proc/1.

    worker   pin ns/net ─ fork ─ pin ns/pid ─ init.json ─ "go" ─ exit
    pid 1             └────────── wait for "go" ────────────── cgroup ─ empty root ─ … ─ execve
    daemon            cgroup, network ────────────────────────── EOF on the status pipe ┘

If the worker dies before "go", pid 1 reads EOF and exits, so nothing is left without a record.
The daemon attaches the network as soon as the namespace for it is pinned, beside all the rest: the
plugins take much longer. It reads the status pipe at the end: what went wrong, or nothing when
execve has closed it. Pid 1 joins its cgroup itself: to put another process there takes 10 to 30 ms,
in which the kernel waits for an RCU grace period. In a user namespace it has no right to that, so
there the worker does it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import struct
from typing import Any, NoReturn

from runtimeshim.linux import capabilities, cgroups, mounts, syscalls, userns

_FLAGS = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
}

# man 7 netdevice
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sH22x")

# The pause image's user: nobody's, and not the 65534 of nobody. A user namespace has it as long as
# its mapping is the kubelet's 65536 ids.
_INIT_USER = 65535

# Where pid 1 has its empty root mounted before it becomes the root.
_ROOT = "/proc"

# Of one message between the processes of this module: an error is a few lines; six namespaces and
# a socket.
_MAX_ANSWER, _MAX_FDS = 1 << 16, 8

_NO_CAPABILITIES = capabilities.Sets(0, 0, 0, 0, 0)


def main(args: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    """Make what `args` asks for, all or nothing.

    directory   RUN/sandboxes/ID; it exists
    namespaces  of "net", "ipc", "uts": what is not the host's
    hostname    of the new UTS namespace; "" keeps the copy of the host's
    sysctls     path below /proc/sys -> value; the caller has checked that they are namespaced
    shm_size    bytes of the tmpfs at DIRECTORY/shm; 0 for none
    mount_label its SELinux label; "" for none
    init_cgroup the cgroup of pid 1; None for no PID namespace. fds[1] is then its program.
    user        None, or {"uids": mappings, "gids": mappings} of a user namespace that owns the
                others; a mapping is {"containerID", "hostID", "size"}

    fds[0] is a socket to the daemon. It is sent an rtnetlink socket, opened in the network
    namespace, as soon as that is pinned: from then on this pin is the daemon's to undo. It sends
    something when the cgroup is there.

    Returns {"init_pid": int | None} and, of pid 1, the read end of the pipe above.
    """
    directory, user = str(args["directory"]), args["user"]
    daemon = socket.socket(fileno=fds[0])
    with contextlib.ExitStack() as undo:
        os.makedirs(f"{directory}/ns", mode=0o711, exist_ok=True)
        start = None
        if args["init_cgroup"] is not None:
            start = _InitStart(fds[1], None if user else args["init_cgroup"])
        made = _make(args) if user is None else _make_in_user_namespace(args, start, user)
        if made.rtnetlink is not None:
            _hand_network_over(made.namespaces.pop("net"), made.rtnetlink, directory, daemon)
        if user is None and start is not None:
            made.fork_init(start, _INIT_USER)
        for kind, fd in made.namespaces.items():
            _pin(fd, f"{directory}/ns/{kind}", undo)
        if args["shm_size"]:
            _mount_shm(f"{directory}/shm", args, undo)
        answers = []
        if start is not None and made.init_pid is not None:
            # Without the user namespace it is a child of ours, with it the spawner reaps it.
            undo.callback(_kill, made.init_pid)
            _await_cgroup(daemon)
            if user is not None:
                _join(args["init_cgroup"], made.init_pid)
            _record(f"{directory}/init.json", made.init_pid, undo)
            answers.append(start.go())
        undo.pop_all()
    return {"init_pid": made.init_pid}, answers


def _hand_network_over(
    namespace: int, rtnetlink: int, directory: str, daemon: socket.socket
) -> None:
    """Pin the network namespace and have the daemon go on with it."""
    with contextlib.ExitStack() as undo:
        _pin(namespace, f"{directory}/ns/net", undo)
        socket.send_fds(daemon, [b"{}"], [rtnetlink])
        undo.pop_all()


def _await_cgroup(daemon: socket.socket) -> None:
    if not daemon.recv(_MAX_ANSWER):
        raise ConnectionAbortedError(errno.ECONNABORTED, "the daemon has made no cgroup for it")


class _InitStart:
    """What pid 1 is started with: its program, its cgroup, and the pipes between it and us."""

    def __init__(self, program: int, cgroup: str | None) -> None:
        """Without `cgroup` it is put into one by us."""
        self.program = program
        self.cgroup = cgroup
        self.read_go, self._write_go = os.pipe2(os.O_CLOEXEC)
        self._read_status, self.write_status = os.pipe2(os.O_CLOEXEC)

    def fork(self, user_id: int) -> int:
        """Fork pid 1 into the PID namespace of our children; returns its host pid."""
        capabilities.last()  # read from /proc, which pid 1 has left by the time it needs it
        pid = os.fork()
        if pid == 0:
            _become_init(self, user_id)
        return pid

    def go(self) -> int:
        """Let pid 1 go on; returns the read end of its status pipe."""
        os.close(self.read_go)
        os.close(self.write_status)
        os.write(self._write_go, b"g")
        return self._read_status


class _Made:
    """New namespaces as nsfs fds by their names below `ns`, and what was made inside them."""

    def __init__(
        self, namespaces: dict[str, int], rtnetlink: int | None = None, init_pid: int | None = None
    ) -> None:
        self.namespaces = namespaces
        self.rtnetlink = rtnetlink
        self.init_pid = init_pid

    def fork_init(self, start: _InitStart, user_id: int) -> None:
        """Fork pid 1 into a new PID namespace."""
        syscalls.unshare(syscalls.CLONE_NEWPID)
        self.init_pid = start.fork(user_id)
        # It can be opened since the namespace has its first process.
        self.namespaces["pid"] = _open_namespace("pid_for_children")


def _make(args: dict[str, Any]) -> _Made:
    """Leave the namespaces that we are in for new ones."""
    kinds: list[str] = args["namespaces"]
    _enter_new(kinds, args["hostname"], args["sysctls"])
    made = _Made({kind: _open_namespace(kind) for kind in kinds})
    if "net" in kinds:
        made.rtnetlink = _open_rtnetlink()
    return made


def _open_namespace(name: str) -> int:
    return os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)


def _make_in_user_namespace(
    args: dict[str, Any],
    start: _InitStart | None,
    user: dict[str, Any],
) -> _Made:
    """As _make, with pid 1, by a child in a new user namespace, which is made here too."""
    namespace = userns.create(user["uids"], user["gids"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _make_for_parent(args, start, namespace, user["uids"], theirs)
    theirs.close()
    with ours:
        data, fds, _, _ = socket.recv_fds(ours, _MAX_ANSWER, _MAX_FDS)
    os.waitpid(pid, 0)
    answer = json.loads(data or b'{"error": ["RuntimeError", "it ended without an answer"]}')
    if "error" in answer:
        kind, words, *number = answer["error"]
        message = f"in the pod's user namespace: {words}"
        if kind == "ValueError":  # the pod's mistake, as in _set_sysctl
            raise ValueError(message)
        raise OSError(*number or [errno.EIO], message)
    named = dict(zip(answer["fds"], fds, strict=True))
    rtnetlink = named.pop("rtnetlink", None)
    return _Made({"user": namespace, **named}, rtnetlink, answer["init_pid"])


def _make_for_parent(
    args: dict[str, Any],
    start: _InitStart | None,
    namespace: int,
    uids: list[dict[str, int]],
    channel: socket.socket,
) -> NoReturn:
    """Make namespaces in a user namespace, hand them over, and end."""
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
        userns.become_root()
        last = max(line["containerID"] + line["size"] - 1 for line in uids)
        made = _make(args)
        if start is not None:
            made.fork_init(start, min(last, _INIT_USER))
        named = dict(made.namespaces)
        if made.rtnetlink is not None:
            named["rtnetlink"] = made.rtnetlink
        answer = {"init_pid": made.init_pid, "fds": list(named)}
        socket.send_fds(channel, [json.dumps(answer).encode()], list(named.values()))
    except Exception as err:  # noqa: BLE001 - told to the parent
        number = [err.errno] if isinstance(err, OSError) and err.errno else []
        error = [type(err).__name__, str(err), *number]
        channel.send(json.dumps({"error": error}).encode())
    finally:
        os._exit(0)


def _kill(pid: int) -> None:
    """Kill pid 1 and, if it is a child of ours, reap it."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _enter_new(kinds: list[str], hostname: str, sysctls: dict[str, str]) -> None:
    flags = 0
    for kind in kinds:
        flags |= _FLAGS[kind]
    if flags:
        syscalls.unshare(flags)
    if hostname:
        socket.sethostname(hostname)
    if "net" in kinds:
        _set_loopback_up()
    for path, value in sysctls.items():
        _set_sysctl(path, value)


def _set_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _, flags = _IFREQ.unpack(answer)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _set_sysctl(path: str, value: str) -> None:
    """Write one value; CVE-2022-0811 is why neither path nor value is taken apart again here."""
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"sysctl path {path!r}")
    try:
        with open(f"/proc/sys/{path}", "w", encoding="utf-8") as file:
            file.write(value)
    except OSError as err:
        words = f"sysctl {path} cannot be {value!r}: {err.strerror}"
        if err.errno in (errno.EINVAL, errno.ENOENT):  # it is the pod's mistake
            raise ValueError(words) from err
        raise OSError(err.errno, words) from err


def _pin(namespace: int, target: str, undo: contextlib.ExitStack) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    undo.callback(os.unlink, target)
    mounts.mount(f"/proc/self/fd/{namespace}", target, None, mounts.MS_BIND)
    undo.callback(mounts.umount, target)


def _mount_shm(target: str, args: dict[str, Any], undo: contextlib.ExitStack) -> None:
    os.mkdir(target)
    undo.callback(os.rmdir, target)
    flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    options = f"mode=1777,size={args['shm_size']}"
    if args["user"] is not None:
        uid, gid = (userns.host_id(args["user"][kind], 0) for kind in ("uids", "gids"))
        options += f",uid={uid},gid={gid}"
    if args["mount_label"]:
        options += f',context="{args["mount_label"]}"'
    mounts.mount("shm", target, "tmpfs", flags, options)
    undo.callback(mounts.umount, target)


def _open_rtnetlink() -> int:
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE).detach()


def _record(path: str, pid: int, undo: contextlib.ExitStack) -> None:
    """Write what identifies pid 1 for as long as it lives, for whoever has to kill it."""
    record = json.dumps({"pid": pid, "start_time": start_time(pid)})
    with open(path, "x", encoding="ascii") as file:
        undo.callback(os.unlink, path)
        file.write(record)


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (man 5 proc, stat field 22)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The command name may hold spaces and parentheses; the fields after it do not.
        return int(file.read().rpartition(b")")[2].split()[19])


def _become_init(start: _InitStart, user_id: int) -> NoReturn:
    """Turn the fork into the pod's pid 1; leaves by execve or _exit only."""
    try:
        syscalls.close_all_but([start.program, start.read_go, start.write_status])
        if os.read(start.read_go, 1) == b"g":
            os.setsid()
            if start.cgroup is not None:
                _join(start.cgroup, 0)
            _enter_empty_root()
            _drop_privileges(user_id)
            _reset_signals()
            # execve closes program and pipes; stdio is the spawner's and nobody's business.
            for fd in range(3):
                os.set_inheritable(fd, False)
            os.execve(start.program, ["pod-init"], {})
    except BaseException as err:  # noqa: BLE001 - the worker must not run on in its child
        os.write(start.write_status, f"{type(err).__name__}: {err}".encode())
    finally:
        os._exit(1)


def _join(cgroup: str, pid: int) -> None:
    """Put pid 1 (0: the caller) into its cgroup, which has no limits beside the pod's."""
    manager = cgroups.manager()
    manager.apply(cgroup, {})
    manager.join(cgroup, pid)


def _enter_empty_root() -> None:
    """Leave the host's mounts: /proc/1/root of the pod leads nowhere."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts.set_propagation("/", mounts.MS_PRIVATE | mounts.MS_REC)
    flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    # On a directory that is there and that everybody can reach, in a user namespace too.
    mounts.mount("pod-init", _ROOT, "tmpfs", flags, "mode=555,size=4k")
    os.chdir(_ROOT)
    syscalls.pivot_root(".", ".")
    mounts.umount(".")
    os.chdir("/")


def _drop_privileges(user_id: int) -> None:
    capabilities.apply_bounding(0)
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)
    capabilities.apply(_NO_CAPABILITIES)
    syscalls.set_no_new_privs()


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # The kernel then reaps whatever the namespace orphans; an ignored signal survives execve.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
