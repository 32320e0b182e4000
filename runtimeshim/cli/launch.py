"""create and run: a container out of a bundle, its directory, and what the caller is handed."""

from __future__ import annotations

import os

from runtimeshim.cli import foreground, handover
from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, UsageError
from runtimeshim.cli.undo import Undo
from runtimeshim.linux import syscalls
from runtimeshim.linux.cgroups import units
from runtimeshim.oci import container as oci
from runtimeshim.oci import state
from runtimeshim.oci.gate import Gate
from runtimeshim.oci.init import Invocation
from runtimeshim.oci.state import ContainerError
from runtimeshim.wire import Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FLAGS = (
    Flag("bundle b", "path", "the bundle's directory (default: the current one)"),
    Flag("console-socket", "path", "the unix socket that gets the terminal's master"),
    Flag("pidfd-socket", "path", "the unix socket that gets a pidfd of the init"),
    Flag("pid-file", "path", "where to write the init's pid"),
    Flag("no-pivot", "", "chroot instead of pivot_root: for a root on a ramdisk"),
    Flag("no-new-keyring", "", "let the container have the caller's session keyring"),
    Flag("preserve-fds", "number", "how many fds from 3 on the program gets"),
)


class Launched:
    """A created container, with the lock on its directory."""

    __slots__ = ("container", "directory", "master", "record")

    def __init__(self, directory: state.Directory, container: oci.Container) -> None:
        self.directory = directory
        self.container = container
        self.master: int | None = None  # the terminal's, where no console socket took it
        self.record = _record(directory.id, container)

    def remove(self) -> list[str]:
        """Remove what is left of it, once its init has ended; returns warnings."""
        self.container.delete_cgroup()
        self.directory.remove()
        return self.container.run_poststop()


def launch(
    context: Context, options: Options, container_id: str, *, held: bool, detached: bool
) -> Launched:
    """Create a container; its start is `release`d at the gate if `held`, else up to the caller.

    Raises StageError, ContainerError, UsageError or OSError; nothing is left then.
    """
    syscalls.set_process_name("runtimeshim")  # and of the init: that of a memfd is a number
    pid_file, bundle = _absolute(options, "pid-file"), os.path.abspath(options.text("bundle", "."))
    preserved = preserved_fds(options)
    with Undo() as undo:
        console = connect(undo, options, "console-socket")
        receiver = connect(undo, options, "pidfd-socket")
        os.chdir(bundle)  # what is relative in the specification is so to the bundle
        spec = _spec(bundle, container_id, systemd_cgroup=context.systemd_cgroup)
        check_terminal(spec["process"], console is not None, detached=detached)
        if spec["process"].get("terminal") and not detached:
            foreground.begin(spec["process"])
        directory = state.make(context.root, container_id)
        undo.add(directory.close)
        undo.add(directory.remove)
        launched = Launched(directory, oci.Container(bundle, spec, directory.seccomp_cache))
        directory.save_spec(spec)
        directory.save(launched.record)
        _create(undo, launched, _invocation(undo, options, directory, preserved, held=held))
        _hand_over(launched, console, receiver, pid_file)
        undo.forget()
    for warning in launched.container.warnings:
        context.log.warning(warning)
    context.log.debug(f"created in ns: {launched.container.timings}")
    return launched


def _absolute(options: Options, name: str) -> str:
    path = options.text(name)
    return os.path.abspath(path) if path else ""


def connect(undo: Undo, options: Options, name: str) -> Socket | None:
    """Connect to the socket that a flag names; None without the flag."""
    path = options.text(name)
    if not path:
        return None
    connection = handover.connect(path)
    undo.add(connection.close)
    return connection


def preserved_fds(options: Options) -> int:
    """Return how many fds from 3 on go to the program: sockets that systemd gave us come first."""
    count = _listening() + (options.number("preserve-fds") or 0)
    for fd in range(3, 3 + count):
        try:
            os.set_inheritable(fd, True)
        except OSError as err:
            raise UsageError(f"fd {fd}, one of {count} to preserve, is not open") from err
    return count


def _listening() -> int:
    """Return how many sockets were passed to this very process (man 3 sd_listen_fds)."""
    count = os.environ.get("LISTEN_FDS", "")
    meant = os.environ.get("LISTEN_PID") == str(os.getpid())
    return int(count) if meant and count.isdecimal() else 0


def _spec(bundle: str, container_id: str, *, systemd_cgroup: bool) -> dict[str, Any]:
    spec = dict(oci.load(bundle))
    linux = spec["linux"] = dict(spec.get("linux") or {})
    # Without a path, and with a relative one, it is ours to choose (config-linux.md).
    path = linux.get("cgroupsPath")
    if systemd_cgroup:
        path = path or f"system.slice:runtimeshim:{container_id}"
        if not units.is_unit(path):
            raise UsageError(
                f"--systemd-cgroup: linux.cgroupsPath {path!r} is not of the form slice:prefix:name"
            )
        linux["cgroupsPath"] = path
    else:
        path = path or f"runtimeshim-{container_id}"
        linux["cgroupsPath"] = path if path.startswith("/") else f"/{path}"
    process = spec["process"] = dict(spec.get("process") or {})
    if _listening():
        listen = [f"LISTEN_FDS={_listening()}", "LISTEN_PID=1"]
        process["env"] = [*(process.get("env") or ()), *listen]
    return spec


def check_terminal(process: Mapping[str, Any], has_socket: bool, *, detached: bool) -> None:
    """Refuse a terminal that nobody would have, and a socket that would get none."""
    terminal = bool(process.get("terminal"))
    if terminal and detached and not has_socket:
        raise UsageError("process.terminal: who detaches has to give a --console-socket")
    if has_socket and not (terminal and detached):
        raise UsageError(
            "--console-socket needs process.terminal, and a container that is detached"
        )


def _record(container_id: str, container: oci.Container) -> state.Record:
    spec = container.spec
    return state.Record(
        id=container_id,
        bundle=container.bundle,
        cgroup_path=container.cgroup_path,
        rootfs=os.path.join(container.bundle, str((spec.get("root") or {}).get("path", ""))),
        oci_version=str(spec.get("ociVersion", "")),
        annotations=spec.get("annotations") or {},
        created=state.now(),
        owner=os.geteuid(),
    )


def _invocation(
    undo: Undo, options: Options, directory: state.Directory, preserved: int, *, held: bool
) -> Invocation:
    gate = Gate(directory.path) if held else None
    if gate is not None:
        undo.add(gate.close)
    return Invocation(
        gate=gate,
        preserve_fds=preserved,
        pivot=not options.flag("no-pivot"),
        new_keyring=not options.flag("no-new-keyring"),
        container_id=directory.id,
    )


def _create(undo: Undo, launched: Launched, invocation: Invocation) -> None:
    container = launched.container
    if container.manager.pids(container.cgroup_path):
        # Its processes would be limited, and in the end killed, with the container.
        raise ContainerError(f"container's cgroup is not empty: {container.cgroup_path}")
    stdio = None if container.spec["process"].get("terminal") else (0, 1, 2)
    container.create(None, stdio=stdio, invocation=invocation)
    undo.add(lambda: _end(container))
    launched.record.set_init(container.pid)
    launched.directory.save(launched.record)


def _end(container: oci.Container) -> None:
    container.delete_cgroup()
    os.waitpid(container.pid, 0)


def _hand_over(
    launched: Launched,
    console: Socket | None,
    receiver: Socket | None,
    pid_file: str,
) -> None:
    master = launched.container.streams.terminal
    if master is not None and console is not None:
        handover.send(console, "/dev/ptmx", master)
        os.close(master)
    else:
        launched.master = master
    if receiver is not None:
        handover.send(receiver, "pidfd", launched.container.pidfd)
    if pid_file:
        handover.write_pid(pid_file, launched.container.pid)
