"""exec: one more process in a container."""

from __future__ import annotations

import os

from runtimeshim import json_text
from runtimeshim.cli import foreground, handover, launch
from runtimeshim.cli.command import Context
from runtimeshim.cli.options import Flag, Options, UsageError
from runtimeshim.cli.undo import Undo
from runtimeshim.linux import cgroups, syscalls
from runtimeshim.linux.cgroups import units
from runtimeshim.oci import exec as oci_exec
from runtimeshim.oci import state
from runtimeshim.oci.state import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FLAGS = (
    Flag("process p", "path", "the process object as JSON: instead of COMMAND and most flags"),
    Flag("detach d", "", "end as soon as the process runs"),
    Flag("pid-file", "path", "where to write its pid"),
    Flag("console-socket", "path", "the unix socket that gets the terminal's master"),
    Flag("pidfd-socket", "path", "the unix socket that gets its pidfd"),
    Flag("cwd", "path", "its working directory"),
    Flag("env e", "list", "KEY=VALUE, beside the container's own environment"),
    Flag("tty t", "", "give it a terminal"),
    Flag("user u", "uid[:gid]", "its user"),
    Flag("additional-gids g", "list", "a group more"),
    Flag("process-label", "label", "its SELinux label"),
    Flag("apparmor", "profile", "its AppArmor profile"),
    Flag("no-new-privs", "", "execve must not raise its privileges"),
    Flag("cap c", "list", "a capability more"),
    Flag("preserve-fds", "number", "how many fds from 3 on it gets"),
    Flag("cgroup", "path", "a cgroup below the container's, which exists"),
    Flag("ignore-paused", "", "start it in a paused container too, to run when that is resumed"),
)
STOP_AT = 1


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Start the process; returns its exit code, 0 when detached."""
    if not arguments:
        raise UsageError("a container's ID is needed")
    syscalls.set_process_name("runtimeshim")  # that of a memfd is a number
    detached = options.flag("detach")
    pid_file = options.text("pid-file")
    preserved = launch.preserved_fds(options)
    with Undo() as undo:
        console = launch.connect(undo, options, "console-socket")
        receiver = launch.connect(undo, options, "pidfd-socket")
        directory = state.opened(context.root, arguments[0])
        undo.add(directory.close)
        target, spec = _target(undo, directory, options)
        process = process_object(options, spec["process"], arguments[1:])
        launch.check_terminal(process, console is not None, detached=detached)
        if not detached:
            foreground.hold_signals()
            if process.get("terminal"):
                foreground.begin(process)
        stdio = None if process.get("terminal") else (0, 1, 2)
        pid, master = oci_exec.start(target, process, stdio, preserve_fds=preserved)
        if master is not None and console is not None:
            handover.send(console, "/dev/ptmx", master)
        if receiver is not None:
            handover.send(receiver, "pidfd", os.pidfd_open(pid))
        if pid_file:
            handover.write_pid(pid_file, pid)
    return 0 if detached else foreground.wait(pid, master)


def _target(
    undo: Undo, directory: state.Directory, options: Options
) -> tuple[oci_exec.Target, dict[str, Any]]:
    """Return the container, which has to run, and its specification."""
    record, manager = directory.record(), cgroups.manager()
    now = directory.status(record, manager)
    if now in (state.STOPPED, state.CREATING):
        raise ContainerError(f"cannot exec in a container that is {now}: container not running")
    if now == state.PAUSED and not options.flag("ignore-paused"):
        raise ContainerError("cannot exec in a paused container (use --ignore-paused to override)")
    spec = directory.spec()
    below = options.text("cgroup").strip("/")
    if below and manager.version == 1:
        raise UsageError("--cgroup is not supported on cgroup v1")
    pidfd = record.open_init()
    undo.add(lambda: os.close(pidfd))
    target = oci_exec.Target(
        pid=record.pid,
        pidfd=pidfd,
        manager=manager,
        cgroup_path=_below(record.cgroup_path, below),
        seccomp_cache=directory.seccomp_cache,
        linux=spec.get("linux") or {},
        state=state.describe(record, now),
    )
    return target, spec


def _below(path: str, name: str) -> str:
    """Return a cgroup below a container's, of which nobody but the container knows as a unit."""
    return f"{units.directory(path)}/{name}" if name else path


def process_object(options: Options, own: Mapping[str, Any], command: list[str]) -> dict[str, Any]:
    """Return the process object of --process, or the container's own with what the flags say."""
    if options.text("process"):
        return _read(options.text("process"))
    if not command:
        raise UsageError("a COMMAND is needed, or --process")
    process: dict[str, Any] = {**own, "args": command, "terminal": options.flag("tty")}
    process.pop("consoleSize", None)  # that of the container's own terminal
    process["env"] = [*(own.get("env") or ()), *options.texts("env")]
    process["cwd"] = options.text("cwd") or own["cwd"]
    process["user"] = _user(options, own.get("user") or {})
    for flag, field in (("process-label", "selinuxLabel"), ("apparmor", "apparmorProfile")):
        if options.text(flag):
            process[field] = options.text(flag)
    if options.flag("no-new-privs"):
        process["noNewPrivileges"] = True
    if options.texts("cap"):
        process["capabilities"] = _capabilities(own.get("capabilities") or {}, options.texts("cap"))
    return process


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as source:
            given = json_text.loads(source.read())
    except ValueError as err:
        raise UsageError(f"--process: {path}: {err}") from err
    if not isinstance(given, dict):
        raise UsageError(f"--process: {path} holds no JSON object")
    return given


def _user(options: Options, own: Mapping[str, Any]) -> dict[str, Any]:
    user = dict(own)
    uid, colon, gid = options.text("user").partition(":")
    try:
        if uid:
            user["uid"] = int(uid)
        if colon:
            user["gid"] = int(gid)
        more = [int(group) for group in options.texts("additional-gids")]
    except ValueError as err:
        raise UsageError(f"--user, --additional-gids: {err}") from None
    user["additionalGids"] = [*(own.get("additionalGids") or ()), *more]
    return user


def _capabilities(own: Mapping[str, Any], more: list[str]) -> dict[str, Any]:
    """Add capabilities: to the ambient ones only where there are inheritable, as runc does."""
    names = ["bounding", "effective", "permitted"] + (["ambient"] if own.get("inheritable") else [])
    return {**own, **{name: [*(own.get(name) or ()), *more] for name in names}}
