"""A process object of the runtime-spec, from its credentials to execve: create and exec alike."""

from __future__ import annotations

import errno
import os
import resource
import stat

from runtimeshim.linux import capabilities, syscalls
from runtimeshim.linux.signals import IGNORED_SIGNALS, signal
from runtimeshim.oci import fields
from runtimeshim.oci.errors import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Process = Mapping[str, Any]

# Used where the spec has no PATH, as execvp(3) does.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Bounds what is read of an image's /etc/passwd to find HOME.
MAX_PASSWD = 1 << 20


def reset_signals() -> None:
    """Give the program to come default dispositions and an empty mask."""
    for number in IGNORED_SIGNALS:
        syscalls.default_signal(number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def set_rlimits(rlimits: Sequence[Mapping[str, Any]]) -> None:
    """Apply process.rlimits (POSIXRlimit)."""
    for limit in rlimits:
        kind = fields.rlimit(limit["type"])
        soft, hard = (_rlimit(limit[key]) for key in ("soft", "hard"))
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError) as err:
            raise StageError(
                "rlimits", f"{limit['type']} soft {limit['soft']} hard {limit['hard']}: {err}"
            ) from err


def _rlimit(value: int) -> int:
    return resource.RLIM_INFINITY if value >= 1 << 63 else value


def set_oom_score_adj(value: int | None) -> str | None:
    """Set our oom_score_adj; returns a warning where the kernel refuses a lower one."""
    if value is None:
        return None
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except PermissionError:
        return f"oom_score_adj {value} is below what this process may have: it stays as it is"
    finally:
        os.close(fd)
    return None


def open_exec_label(process: Process) -> tuple[int, bytes] | None:
    """Open the attribute of the AppArmor or SELinux label for execve; None without a label.

    On the host's procfs, before any image can put another one in its place.
    """
    if process.get("apparmorProfile"):
        path, label = "/proc/self/attr/apparmor/exec", f"exec {process['apparmorProfile']}"
        field = "process.apparmorProfile"
    elif process.get("selinuxLabel"):
        path, label = "/proc/self/attr/exec", str(process["selinuxLabel"])
        field = "process.selinuxLabel"
    else:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC), label.encode()
    except OSError as err:
        raise StageError("label", f"{field}: this kernel does not offer {path}: {err}") from err


def environment(process: Process) -> list[str]:
    """Return the environment with HOME, from the container's own /etc/passwd if need be."""
    env = list(process.get("env") or ())
    if not any(entry.startswith("HOME=") for entry in env):
        env.append(f"HOME={_home((process.get('user') or {}).get('uid') or 0)}")
    return env


def _home(uid: int) -> str:
    """Look up a home directory in /etc/passwd, read with bounds and only if a regular file."""
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # no such file in this image: as with an unknown uid
        return "/"
    try:
        found = os.fstat(fd)
        # A link may lead to procfs, whose files have no size: to read kmsg would consume it.
        if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
            return "/"
        content = os.read(fd, min(found.st_size, MAX_PASSWD))
    except OSError:  # what cannot be read names nobody
        return "/"
    finally:
        os.close(fd)
    for line in content.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 7 and fields[2] == str(uid).encode():
            return os.fsdecode(fields[5]) or "/"
    return "/"


def find_executable(name: str, env: Sequence[str]) -> str:
    """Resolve args[0] as execvp(3) does. Raises StageError of kind "start"."""
    if "/" in name:
        _check_executable(name, name)
        return name
    path = DEFAULT_PATH
    for entry in env:
        if entry.startswith("PATH="):
            path = entry[5:]
    denied: StageError | None = None
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        try:
            _check_executable(candidate, name)
        except StageError as err:
            denied = err if "permission denied" in err.message else denied
            continue
        return candidate
    if denied is not None:
        raise denied
    raise StageError(
        "exec", f'exec: "{name}": executable file not found in $PATH ({path})', "start"
    )


def _check_executable(path: str, name: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as err:
        reason = f"stat {path}: {os.strerror(err.errno or 0).lower()}"
        raise StageError("exec", f'exec: "{name}": {reason}', "start") from err
    if stat.S_ISDIR(mode):
        raise StageError("exec", f'exec: "{name}": {path} is a directory', "start")
    if not os.access(path, os.X_OK, effective_ids=True):
        raise StageError("exec", f'exec: "{name}": {path}: permission denied', "start")


def own_stdio(user: Mapping[str, Any]) -> None:
    """Give pipes and terminals on 0, 1, 2 to the user, so that /dev/stdout can be reopened."""
    uid = user.get("uid") or 0
    for fd in (0, 1, 2):
        found = os.fstat(fd)
        if found.st_rdev == os.makedev(1, 3) or found.st_uid == uid:
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError:  # a read-only or foreign file: it stays as it was given to us
            continue


def enter_directory(cwd: str) -> bool:
    """Enter process.cwd as we are; False where only the user to come may."""
    try:
        os.chdir(cwd)
    except PermissionError:  # a network filesystem that does not trust root
        return False
    except OSError as err:
        raise StageError("cwd", f"process.cwd: chdir {cwd}: {err.strerror}") from err
    return True


def check_directory(cwd: str) -> None:
    """Refuse a working directory outside of the root.

    By /proc/self/fd/N it could be one of the host (CVE-2024-21626): getcwd(2) of such a one is
    unreachable.
    """
    try:
        where = os.getcwd()
    except FileNotFoundError:
        where = ""
    if not where.startswith("/"):
        raise StageError("cwd", f"process.cwd: {cwd!r} is outside of the container's root")


class Launch:
    """A process with its final credentials but for the last steps, made in `prepare`."""

    __slots__ = ("_execve", "_filter", "failure", "warnings")

    def __init__(
        self,
        execve: Callable[[], None] | None,
        filter_: Callable[[], object] | None,
        failure: StageError | None,
        warnings: list[str],
    ) -> None:
        self.warnings = warnings
        self._execve = execve
        self._filter = filter_
        self.failure = failure

    def go(self) -> None:
        """Load the filter and execve, back to back; returns only by an exception."""
        if self._execve is None:
            assert self.failure is not None
            raise self.failure
        if self._filter is not None:
            self._filter()
        try:
            self._execve()
        except OSError as err:
            raise StageError("exec", f"exec {err.filename}: {err.strerror}", "start") from err


def prepare(
    process: Process, filter_: Callable[[], object] | None, label: tuple[int, bytes] | None
) -> Launch:
    """Take on the process's credentials, in the container's root; returns what is left to do.

    The order is that of runc and crun: bounding set, user, the capability sets,
    no_new_privs; the filter comes first where it needs CAP_SYS_ADMIN, last otherwise.
    """
    user = process.get("user") or {}
    no_new_privileges = bool(process.get("noNewPrivileges"))
    own_stdio(user)
    umask = user.get("umask")
    os.umask(0o022 if umask is None else umask)
    env = environment(process)
    if label is not None:
        _set_label(process, *label)
    if filter_ is not None and not no_new_privileges:
        filter_()
        filter_ = None
    entered = enter_directory(process["cwd"])
    wanted = process.get("capabilities")
    sets, warnings = capabilities.prepare(wanted) if wanted is not None else (None, [])
    if sets is not None:
        capabilities.apply_bounding(sets.bounding)
        syscalls.set_keepcaps(True)
    _set_ids(user)
    if sets is not None:
        syscalls.set_keepcaps(False)
        capabilities.apply(sets)
    if no_new_privileges:
        syscalls.set_no_new_privs()
    if not entered and not enter_directory(process["cwd"]):
        raise StageError("cwd", f"process.cwd: chdir {process['cwd']}: permission denied")
    check_directory(process["cwd"])
    reset_signals()
    args = list(process["args"])
    try:
        path = find_executable(args[0], env)
    except StageError as err:
        return Launch(
            None, None, err, warnings
        )  # told by start: a created container may lack its program
    return Launch(syscalls.prepare_execve(path, args, env), filter_, None, warnings)


def _set_ids(user: Mapping[str, Any]) -> None:
    """Take on the user's ids. The primary group is a supplementary one as well.

    Else a process could give it up, and be let in by a mode that shuts the group out
    (CVE-2022-36109).
    """
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    groups = list(user.get("additionalGids") or ())
    os.setgroups(groups if gid in groups else [gid, *groups])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _set_label(process: Process, fd: int, label: bytes) -> None:
    try:
        os.write(fd, label)
    except OSError as err:
        field = "apparmorProfile" if process.get("apparmorProfile") else "selinuxLabel"
        why = err.strerror or str(err)
        if field == "apparmorProfile" and err.errno == errno.ENOENT:
            why = "no profile of that name is loaded (aa-status lists them)"
        refused = f"process.{field}: the kernel refuses the label {process[field]!r}: {why}"
        raise StageError("label", refused) from err
    finally:
        os.close(fd)
