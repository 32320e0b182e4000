"""Makes a pod's namespaces and pins them; runs in a short-lived fork of the spawner.

The fork leaves the host's namespaces for new ones, fits them out from inside and pins each with a
bind mount of its nsfs file, which it makes in the host's mount namespace: that one it never leaves.
When it exits, the pins alone keep the namespaces.

A shared PID namespace needs a process with pid 1. That is a second fork, which becomes the program
of podsandbox.pod_init: without capabilities, in an empty root of its own, since other processes
of the pod can look at it through /proc/1.

    worker   fork ─ pin ns/pid ─ init.json ─ "go" ─ exit
    pid 1        wait for "go" ───────────────── cgroup ─ empty root ─ no capabilities ─ execve
    daemon                                         network ──── EOF on the status pipe ┘

If the worker dies before "go", pid 1 reads EOF and exits, so nothing is left without a record.
To join a cgroup can take 30 ms (the kernel waits for an RCU grace period when nobody has done it
lately), so the daemon goes on with the network meanwhile. It reads the status pipe at the end: what
went wrong, or nothing when execve has closed it.
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

from runtimeshim.linux import capabilities, cgroups, mounts, syscalls

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

# The pause image's user: nobody's, and not the 65534 of nobody.
_INIT_USER = 65535

_NO_CAPABILITIES = capabilities.Sets(0, 0, 0, 0, 0)


def main(args: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    """Make what `args` asks for, all or nothing.

    directory   RUN/sandboxes/ID; it exists
    namespaces  of "net", "ipc", "uts": what is not the host's
    hostname    of the new UTS namespace; "" keeps the copy of the host's
    sysctls     path below /proc/sys -> value; the caller has checked that they are namespaced
    shm_size    bytes of the tmpfs at DIRECTORY/shm; 0 for none
    init_cgroup the cgroup of pid 1; None for no PID namespace. fds[0] is then its program.

    Returns {"init_pid": int | None, "fds": names} and as many fds: "rtnetlink", a socket opened in
    the network namespace, and "init_status", the pipe above.
    """
    directory, kinds = str(args["directory"]), list(args["namespaces"])
    with contextlib.ExitStack() as undo:
        _enter_new(kinds, args["hostname"], args["sysctls"])
        os.makedirs(f"{directory}/ns", mode=0o711, exist_ok=True)
        for kind in kinds:
            _pin(f"/proc/self/ns/{kind}", f"{directory}/ns/{kind}", undo)
        if args["shm_size"]:
            _mount_shm(f"{directory}/shm", args["shm_size"], undo)
        pid, answers = None, {}
        if "net" in kinds:
            answers["rtnetlink"] = _open_rtnetlink()
        if args["init_cgroup"] is not None:
            pid, answers["init_status"] = _start_init(directory, args["init_cgroup"], fds[0], undo)
        undo.pop_all()
    return {"init_pid": pid, "fds": list(answers)}, list(answers.values())


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


def _pin(source: str, target: str, undo: contextlib.ExitStack) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    undo.callback(os.unlink, target)
    mounts.mount(source, target, None, mounts.MS_BIND)
    undo.callback(mounts.umount, target)


def _mount_shm(target: str, size: int, undo: contextlib.ExitStack) -> None:
    os.mkdir(target)
    undo.callback(os.rmdir, target)
    flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    mounts.mount("shm", target, "tmpfs", flags, f"mode=1777,size={size}")
    undo.callback(mounts.umount, target)


def _open_rtnetlink() -> int:
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE).detach()


def _start_init(
    directory: str, cgroup: str, program: int, undo: contextlib.ExitStack
) -> tuple[int, int]:
    """Fork pid 1; returns its host pid and the read end of its status pipe."""
    capabilities.last()  # read from /proc, which pid 1 has left by the time it needs it
    syscalls.unshare(syscalls.CLONE_NEWPID)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become_init(directory, cgroup, program, go_read, status_write)
    undo.callback(os.waitpid, pid, 0)
    undo.callback(os.kill, pid, signal.SIGKILL)
    os.close(go_read)
    os.close(status_write)
    _pin("/proc/self/ns/pid_for_children", f"{directory}/ns/pid", undo)
    _record(f"{directory}/init.json", pid, undo)
    os.write(go_write, b"g")
    return pid, status_read


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


def _become_init(directory: str, cgroup: str, program: int, go: int, status: int) -> NoReturn:
    """Turn the fork into the pod's pid 1; leaves by execve or _exit only."""
    try:
        syscalls.close_all_but([program, go, status])
        if os.read(go, 1) == b"g":
            os.setsid()
            cgroups.manager().join(cgroup, 0)
            _enter_empty_root(directory)
            _drop_privileges()
            _reset_signals()
            # execve closes program, go and status; stdio is the spawner's and nobody's business.
            for fd in range(3):
                os.set_inheritable(fd, False)
            os.execve(program, ["pod-init"], {})
    except BaseException as err:  # noqa: BLE001 - the worker must not run on in its child
        os.write(status, f"{type(err).__name__}: {err}".encode())
    finally:
        os._exit(1)


def _enter_empty_root(directory: str) -> None:
    """Leave the host's mounts: /proc/1/root of the pod leads nowhere."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts.set_propagation("/", mounts.MS_PRIVATE | mounts.MS_REC)
    flags = mounts.MS_RDONLY | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    mounts.mount("pod-init", directory, "tmpfs", flags, "mode=555,size=4k")
    os.chdir(directory)
    syscalls.pivot_root(".", ".")
    mounts.umount(".")
    os.chdir("/")


def _drop_privileges() -> None:
    capabilities.apply_bounding(0)
    os.setgroups([])
    os.setresgid(_INIT_USER, _INIT_USER, _INIT_USER)
    os.setresuid(_INIT_USER, _INIT_USER, _INIT_USER)
    capabilities.apply(_NO_CAPABILITIES)
    syscalls.set_no_new_privs()


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # The kernel then reaps whatever the namespace orphans; an ignored signal survives execve.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
