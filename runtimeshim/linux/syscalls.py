"""System calls as functions: one wrapper each, every failure an OSError that names the call.

glibc 2.36 wraps some of them; a raw number is used only where an older libc lacks the symbol.
Numbers are those of asm-generic (the same on x86_64 and aarch64 since Linux 5.1) unless a table
says otherwise.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
_python = ctypes.PyDLL(None, use_errno=True)
_python.syscall.restype = ctypes.c_long
for _name in ("PyOS_BeforeFork", "PyOS_AfterFork_Child", "PyOS_AfterFork_Parent"):
    getattr(_python, _name).restype = None

_X86_64 = os.uname().machine == "x86_64"

SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_CLONE3 = 435
SYS_CLOSE_RANGE = 436
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442
SYS_CLONE = 56 if _X86_64 else 220
SYS_PIVOT_ROOT = 155 if _X86_64 else 41
SYS_RT_SIGACTION = 13 if _X86_64 else 134
SYS_KEYCTL = 250 if _X86_64 else 219
SYS_SETDOMAINNAME = 171 if _X86_64 else 162

# sched.h, man 7 namespaces
CLONE_PARENT = 0x00008000
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

SIGCHLD = 17  # man 7 signal; without the signal module, which takes a start its time

# linux/sched.h, struct clone_args: eleven fields up to CLONE_ARGS_SIZE_VER2.
_CLONE_ARGS = struct.Struct("=QQQQQQQQQQQ")

# man 2 prctl
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# man 2 openat2
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# openat2 answers EAGAIN when a rename races with the walk; runc retries as often.
OPENAT2_RETRIES = 128

for _name, _args in {
    "unshare": [ctypes.c_int],
    "setns": [ctypes.c_int, ctypes.c_int],
    "mount": [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
    ],
    "umount2": [ctypes.c_char_p, ctypes.c_int],
    "prctl": [ctypes.c_int] + [ctypes.c_ulong] * 4,
    "syncfs": [ctypes.c_int],
    "tee": [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint],
}.items():
    getattr(libc, _name).argtypes = _args


# One for all: ctypes makes a type for each length, and in a shim that would touch 340 KB of what it
# shares with the others.
_comm = ctypes.create_string_buffer(16)


def check(result: int, call: str, path: str | None = None) -> int:
    """Return `result`, or raise OSError from errno, named after the call and its object."""
    if result >= 0:
        return result
    errno = ctypes.get_errno()
    raise OSError(errno, f"{call}: {os.strerror(errno)}", path)


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def unshare(flags: int) -> None:
    """Move the caller into new namespaces; CLONE_NEWPID and CLONE_NEWTIME take the children."""
    check(libc.unshare(flags), f"unshare(0x{flags:x})")


def setns(fd: int, kind: int) -> None:
    """Enter a namespace by an nsfs fd, or those of a process by its pidfd (Linux 5.8)."""
    check(libc.setns(fd, kind), f"setns(0x{kind:x})")


def pivot_root(new_root: str, put_old: str) -> None:
    """See man 2 pivot_root; (".", ".") stacks the old root over the new one."""
    check(
        libc.syscall(_long(SYS_PIVOT_ROOT), os.fsencode(new_root), os.fsencode(put_old)),
        "pivot_root",
        new_root,
    )


def prctl(option: int, value: int, name: str) -> None:
    """Call prctl(option, value, 0, 0, 0); `name` stands in the error."""
    check(libc.prctl(option, value, 0, 0, 0), name)


def set_no_new_privs() -> None:
    """From here on execve grants nothing (man 2 prctl, PR_SET_NO_NEW_PRIVS)."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, "prctl(NO_NEW_PRIVS)")


def set_child_subreaper() -> None:
    """Become the parent of every orphaned descendant."""
    prctl(PR_SET_CHILD_SUBREAPER, 1, "prctl(CHILD_SUBREAPER)")


def set_not_dumpable() -> None:
    """Close /proc/PID/{mem,fd,environ,…} to everyone but global root (CVE-2016-9962)."""
    prctl(PR_SET_DUMPABLE, 0, "prctl(DUMPABLE)")


def set_keepcaps(keep: bool) -> None:
    """Keep the permitted set across a change from uid 0 to another."""
    prctl(PR_SET_KEEPCAPS, int(keep), "prctl(KEEPCAPS)")


def fork_sibling() -> int:
    """Fork a child whose parent is the caller's own parent (man 2 clone, CLONE_PARENT).

    As os.fork otherwise; only from a process with a single thread.
    """
    arguments = (_long(SYS_CLONE), _long(CLONE_PARENT), None, None, None, None)
    return _fork(arguments, "clone(CLONE_PARENT)")


def fork_into_cgroup(directory: int) -> int:
    """Fork a child that begins in the cgroup of version 2 with this directory (man 2 clone, 5.7).

    As os.fork otherwise; only from a process with a single thread. To move a process there, itself
    or another, the kernel waits for an RCU grace period, 5 to 30 ms; to begin there costs nothing.
    """
    packed = _CLONE_ARGS.pack(CLONE_INTO_CGROUP, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, directory)
    arguments = (_long(SYS_CLONE3), packed, _long(len(packed)))
    return _fork(arguments, "clone3(CLONE_INTO_CGROUP)")


def _fork(arguments: tuple[object, ...], what: str) -> int:
    # Not by CDLL, which would let go of the interpreter's lock around the call: the child could
    # never take it again.
    _python.PyOS_BeforeFork()
    pid = int(_python.syscall(*arguments))
    errno = ctypes.get_errno()
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0
    _python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(errno, f"{what}: {os.strerror(errno)}")
    return pid


def set_process_name(name: str) -> None:
    """Set comm, 15 bytes at most: what ps and top show."""
    _comm.value = name.encode()[: len(_comm) - 1]
    check(libc.prctl(PR_SET_NAME, ctypes.addressof(_comm), 0, 0, 0), "prctl(SET_NAME)")


def setdomainname(name: str) -> None:
    """Set the NIS domain name of the caller's UTS namespace."""
    raw = name.encode()
    check(libc.syscall(_long(SYS_SETDOMAINNAME), raw, _long(len(raw))), "setdomainname")


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Close every fd in [first, last]; falls back to a walk of /proc/self/fd before Linux 5.9."""
    if libc.syscall(_long(SYS_CLOSE_RANGE), _long(first), _long(last), _long(0)) < 0:
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            if first <= fd <= last:
                try:
                    os.close(fd)
                except OSError:  # listdir's own fd is in the list and closed by now
                    continue


def close_all_but(keep: Sequence[int]) -> None:
    """Close every fd above 2 that is not in `keep`."""
    first = 3
    for fd in sorted(set(keep)):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first)


def openat2(dirfd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` below `dirfd` under the kernel's resolve rules (Linux 5.6); returns an fd.

    EAGAIN means that a rename or mount raced with the walk: it is tried again.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    raw = os.fsencode(path)
    for _ in range(OPENAT2_RETRIES):
        fd = libc.syscall(_long(SYS_OPENAT2), _long(dirfd), raw, how, _long(len(how)))
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (11, 4):  # EAGAIN, EINTR
            break
    return check(-1, "openat2", path)


def syncfs(fd: int) -> None:
    """Write back the whole filesystem that holds `fd`."""
    check(libc.syncfs(fd), "syncfs")


def tee(source: int, target: int, length: int) -> int:
    """Copy up to `length` bytes from pipe to pipe without consuming them; returns the count."""
    while True:
        copied = int(libc.tee(source, target, length, 0))
        if copied >= 0 or ctypes.get_errno() != 4:  # EINTR, of a SIGCHLD, is no failure (PEP 475)
            return check(copied, "tee")


def default_signal(number: int) -> None:
    """Set a signal to SIG_DFL by the bare system call: libc refuses its own two, 32 and 33."""
    default_action = bytes(32)  # struct sigaction of the kernel: handler, flags, restorer, mask
    mask_size = 8
    arguments = (_long(number), default_action, None, _long(mask_size))
    check(libc.syscall(_long(SYS_RT_SIGACTION), *arguments), f"rt_sigaction({number})")


def join_session_keyring(name: str | None) -> None:
    """Begin a new session keyring, so that keys of the caller are out of reach."""
    keyctl_join_session_keyring = 1
    raw = None if name is None else name.encode()
    check(
        libc.syscall(_long(SYS_KEYCTL), _long(keyctl_join_session_keyring), raw),
        "keyctl(JOIN_SESSION_KEYRING)",
    )


def prepare_execve(path: str, argv: Sequence[str], env: Sequence[str]) -> Callable[[], None]:
    """Return a callable that only calls execve: all memory is allocated now.

    After a seccomp filter is loaded, the allocator's own system calls may be denied.
    """
    raw_path = os.fsencode(path)
    raw_argv = (ctypes.c_char_p * (len(argv) + 1))(*map(os.fsencode, argv), None)
    raw_env = (ctypes.c_char_p * (len(env) + 1))(*map(os.fsencode, env), None)
    call = libc.execve

    def execve() -> None:
        call(raw_path, raw_argv, raw_env)
        check(-1, "execve", path)

    return execve


class _IoVector(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MessageHeader(ctypes.Structure):
    """struct msghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_IoVector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _FdControl(ctypes.Structure):
    """struct cmsghdr with one fd, padded as CMSG_SPACE has it (man 3 cmsg)."""

    _fields_ = (
        ("length", ctypes.c_size_t),
        ("level", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("fd", ctypes.c_int),
        ("padding", ctypes.c_int),
    )


def prepare_send_fd(connection: int, payload: bytes) -> Callable[[int], None]:
    """Return what sends `payload` with one fd on a stream socket, and closes both.

    It only calls sendmsg and close: all memory is allocated now, for a seccomp filter may deny
    what an allocator calls.
    """
    sol_socket, scm_rights, msg_nosignal = 1, 1, 0x4000
    content = ctypes.create_string_buffer(payload, len(payload))
    vector = _IoVector(ctypes.addressof(content), len(payload))
    control = _FdControl(_FdControl.padding.offset, sol_socket, scm_rights, -1, 0)
    header = _MessageHeader(
        None,
        0,
        ctypes.pointer(vector),
        1,
        ctypes.addressof(control),
        ctypes.sizeof(control),
        0,
    )
    call, address = libc.sendmsg, ctypes.byref(header)

    def send(fd: int, _keep: object = (content, vector, control)) -> None:
        control.fd = fd
        sent = check(call(connection, address, msg_nosignal), "sendmsg(seccomp notify fd)")
        os.close(fd)
        os.close(connection)
        if sent != len(payload):
            raise OSError(90, "sendmsg(seccomp notify fd): the listener took a part of it only")

    return send
