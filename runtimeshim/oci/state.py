"""Containers of the command line: their directories, and what state each is in.

    ROOT/ID/state.json    what is known since create; written whole, by a rename
    ROOT/ID/config.json   the specification it was created from, as it was then
    ROOT/ID/*.fifo        where the init waits for `start` (runtimeshim.oci.gate)
    ROOT/.seccomp/        compiled filters, by the digest of their profile

The directory itself is the lock (man 2 flock): whoever changes a container holds it. The status is
never stored. It is what the kernel says at the moment of asking:

    no init recorded, its creator at work        creating
    the init is gone, or a zombie                stopped
    the init waits at the gate                   created
    its cgroup is frozen                         paused
    else                                         running

A pid alone proves nothing, since the kernel hands it out again: the time when its process started
belongs to it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from runtimeshim import json_text
from runtimeshim.linux.cgroups import CgroupManager
from runtimeshim.linux.signals import signal
from runtimeshim.oci import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSION = 1

CREATING = "creating"
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"

NOT_RUNNING = "container not running"  # callers of an OCI runtime look for it

MAX_ID = 1024  # as in runc: a file name may not have more than 255, so most fail before
_ID_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-")
_ID_REST = _ID_FIRST | {"."}


class ContainerError(Exception):
    """The container is not there, or not in a state for what is asked; callers match the text."""


class NotFoundError(ContainerError):
    """There is no such container; the text is what callers of an OCI runtime look for."""

    def __init__(self) -> None:
        super().__init__("container does not exist")


class Record:
    """What is known of a container since it was created."""

    __slots__ = (
        "annotations",
        "bundle",
        "cgroup_path",
        "created",
        "id",
        "oci_version",
        "owner",
        "pid",
        "rootfs",
        "start_time",
    )

    def __init__(
        self,
        *,
        id: str,
        bundle: str,
        cgroup_path: str,
        rootfs: str,
        oci_version: str,
        annotations: Mapping[str, str],
        created: str,
        owner: int,
        pid: int = 0,
        start_time: int = 0,
    ) -> None:
        self.id = id
        self.bundle = bundle
        self.cgroup_path = cgroup_path
        self.rootfs = rootfs
        self.oci_version = oci_version
        self.annotations = annotations
        self.created = created  # RFC 3339
        self.owner = owner  # uid of the creator
        self.pid = pid  # of the init, in the host's PID namespace; 0 before it is created
        self.start_time = start_time  # of the init, in clock ticks since boot

    def set_init(self, pid: int) -> None:
        """Note the init; call it while its parent, so that the pid is surely its own."""
        self.pid = pid
        self.start_time = _stat(pid)[1]

    def is_alive(self) -> bool:
        """Tell whether the init still runs: the same process, and not a zombie."""
        if self.pid == 0:
            return False
        try:
            state, start_time = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return start_time == self.start_time and state not in "ZXx"

    def open_init(self) -> int:
        """Return a pidfd of the init, which cannot come to mean another process.

        Raises ContainerError when the container does not run.
        """
        if self.pid:
            try:
                pidfd = os.pidfd_open(self.pid)
            except ProcessLookupError:
                raise ContainerError(NOT_RUNNING) from None
            if self.is_alive():
                return pidfd
            os.close(pidfd)
        raise ContainerError(NOT_RUNNING)


def _stat(pid: int) -> tuple[str, int]:
    """Return a process's state and start time (man 5 proc, stat: fields 3 and 22)."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as source:
        fields = source.read().rpartition(b") ")[2].split()
    return fields[0].decode(), int(fields[19])


class Directory:
    """The directory of one container; with the lock when `locked`."""

    def __init__(self, root: str, container_id: str, fd: int) -> None:
        self.id = container_id
        self.path = f"{root}/{container_id}"
        self.seccomp_cache = f"{root}/.seccomp"
        self._fd = fd

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it, and of the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def lock(self) -> None:
        """Wait for the lock. Raises NotFoundError when the container was deleted meanwhile."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        if os.fstat(self._fd).st_nlink == 0:
            raise NotFoundError

    def _is_locked(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def save(self, record: Record) -> None:
        """Write state.json, whole or not at all."""
        content = {"version": VERSION} | {name: getattr(record, name) for name in Record.__slots__}
        self._write("state.json", json_text.dumps(content))

    def save_spec(self, spec: Mapping[str, Any]) -> None:
        """Keep the specification: what becomes of the bundle's own is its owner's affair."""
        self._write("config.json", json_text.dumps(spec))

    def _write(self, name: str, content: str) -> None:
        new = f"{self.path}/.{name}.new"
        with open(new, "w", encoding="utf-8") as out:
            out.write(content)
        os.rename(new, f"{self.path}/{name}")

    def record(self) -> Record:
        """Read state.json. Raises NotFoundError: a creation that was killed may have left none."""
        try:
            with open(f"{self.path}/state.json", "rb", buffering=0) as source:
                content = json_text.loads(source.read())
        except FileNotFoundError:
            raise NotFoundError from None
        if content.pop("version") != VERSION:
            raise ContainerError(f"{self.path}/state.json is of another version of this program")
        return Record(**content)

    def spec(self) -> dict[str, Any]:
        """Read the specification that the container was created from."""
        with open(f"{self.path}/config.json", "rb", buffering=0) as source:
            spec: dict[str, Any] = json_text.loads(source.read())
        return spec

    def status(self, record: Record, manager: CgroupManager) -> str:
        """Find out in what state the container is now; for who does not hold the lock."""
        if record.pid == 0:
            return CREATING if self._is_locked() else STOPPED
        return status(self.path, record, manager)

    def remove(self) -> None:
        """Remove the directory with all in it."""
        for name in os.listdir(self.path):
            os.unlink(f"{self.path}/{name}")
        os.rmdir(self.path)


def status(directory: str, record: Record, manager: CgroupManager) -> str:
    """Find out in what state a container is whose creation is over."""
    if not record.is_alive():
        return STOPPED
    if gate.is_held(directory):
        return CREATED
    return PAUSED if manager.is_frozen(record.cgroup_path) else RUNNING


def describe(record: Record, now: str) -> dict[str, Any]:
    """Return the state of the runtime-spec (runtime.md, "State"), with runc's additions."""
    described: dict[str, Any] = {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": 0 if now in (STOPPED, CREATING) else record.pid,
        "status": now,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": "",
    }
    if record.annotations:
        described["annotations"] = dict(record.annotations)
    return described


def check_id(container_id: str) -> None:
    """Refuse an id that is no file name, or could be mistaken. Raises ContainerError."""
    if not container_id:
        raise ContainerError("container id cannot be empty")
    valid = container_id[0] in _ID_FIRST and _ID_REST.issuperset(container_id)
    if not valid or len(container_id) > MAX_ID:
        raise ContainerError(f"invalid container ID format: {container_id!r}")


def make(root: str, container_id: str) -> Directory:
    """Make the directory of a new container, locked. Raises ContainerError."""
    check_id(container_id)
    os.makedirs(root, 0o711, exist_ok=True)
    try:
        os.mkdir(f"{root}/{container_id}", 0o700)
    except FileExistsError:
        raise ContainerError(f"container with given ID already exists: {container_id}") from None
    directory = find(root, container_id)
    directory.lock()
    return directory


def find(root: str, container_id: str) -> Directory:
    """Open the directory of a container, not locked. Raises ContainerError."""
    check_id(container_id)
    try:
        fd = os.open(f"{root}/{container_id}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        raise NotFoundError from None
    return Directory(root, container_id, fd)


def opened(root: str, container_id: str, *, lock: bool = False) -> Directory:
    """Open a container for as long as a with block lasts; with the lock to change it."""
    directory = find(root, container_id)
    try:
        if lock:
            directory.lock()
    except BaseException:
        directory.close()
        raise
    return directory


def ids(root: str) -> list[str]:
    """Return the containers there are, sorted."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.startswith("."))


def now() -> str:
    """Return the present in UTC, in RFC 3339 with microseconds."""
    moment = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 10**9))
    return f"{seconds}.{moment % 10**9 // 1000:06d}Z"


def send_signal(record: Record, number: int) -> None:
    """Signal the init. Raises ContainerError when it has ended."""
    pidfd = record.open_init()
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        raise ContainerError(NOT_RUNNING) from None
    finally:
        os.close(pidfd)
