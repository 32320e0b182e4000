"""The global flags, the choice of the verb, and what becomes of errors."""

from __future__ import annotations

import os
import sys

from runtimeshim.cli.log import Log
from runtimeshim.cli.options import Flag, Options, UsageError, parse, usage
from runtimeshim.oci.errors import SpecError, StageError
from runtimeshim.oci.state import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OCI_VERSION = "1.3.0"
DEFAULT_ROOT = "/run/runtimeshim"

# verb -> (arguments, what it does); each is a module of its name, which has the flags.
VERBS = {
    "create": ("ID", "set up a container, all but the start of its program"),
    "start": ("ID", "start the program of a created container"),
    "run": ("ID", "create and start a container, and wait for it"),
    "state": ("ID", "print a container's state as JSON"),
    "kill": ("ID [SIGNAL]", "send a signal (default: TERM) to a container's init"),
    "delete": ("ID", "remove what is left of a stopped container"),
    "exec": ("ID COMMAND [ARGUMENT…]", "run a process in a container"),
    "list": ("", "list the containers"),
    "ps": ("ID [PS-ARGUMENT…]", "list the processes of a container"),
    "pause": ("ID", "stop all processes of a container until it is resumed"),
    "resume": ("ID", "let the processes of a paused container go on"),
    "update": ("ID", "change the limits of a container"),
    "events": ("ID", "print OOM kills and statistics as they come"),
    "spec": ("", "write a config.json to begin with"),
    "features": ("", "print what this runtime can do, as JSON"),
}
UNSUPPORTED = ("checkpoint", "restore")

FLAGS = (
    Flag("root", "path", f"where containers are kept (default: {DEFAULT_ROOT})"),
    Flag("log", "path", "where log lines go (default: stderr)"),
    Flag("log-format", "format", "text (default) or json"),
    Flag("debug", "", "log more"),
    Flag("systemd-cgroup", "", "systemd makes the cgroups: cgroupsPath is slice:prefix:name"),
    Flag("rootless", "value", "accepted, and without effect"),
    Flag("version v", "", "print the version"),
    Flag("help h", "", "print this"),
)
HELP = Flag("help h", "", "print this")

# runc's code for an exec that could not be carried out: 1 could be the program's own.
EXEC_FAILED = 255


class Context:
    """What all verbs share: the global flags."""

    __slots__ = ("log", "root", "systemd_cgroup")

    def __init__(self, root: str, log: Log, *, systemd_cgroup: bool = False) -> None:
        self.root = root
        self.log = log
        self.systemd_cgroup = systemd_cgroup


def run(argv: Sequence[str]) -> int:
    """Carry out a command line; returns the exit code."""
    try:
        options, arguments = parse(FLAGS, argv, stop_at=1)
        log = _open_log(options)
    except (UsageError, OSError) as err:
        print(f"runtimeshim: {err}", file=sys.stderr)
        return 1
    if options.flag("version"):
        print(version())
        return 0
    if options.flag("help") or not arguments:
        print(help_())
        return 0 if options.flag("help") else 1
    verb = arguments[0]
    try:
        root = os.path.abspath(options.text("root", DEFAULT_ROOT))
        context = Context(root, log, systemd_cgroup=options.flag("systemd-cgroup"))
        return _dispatch(context, verb, arguments[1:])
    except (UsageError, ContainerError, SpecError, OSError) as err:
        log.failure(_explained(verb, err))
    except StageError as err:
        log.failure(f"{verb} failed: {err.stage}: {err.message}")
    return EXEC_FAILED if verb == "exec" else 1


def _explained(verb: str, err: Exception) -> str:
    if isinstance(err, ContainerError):
        return str(err)
    if isinstance(err, OSError):
        place = "" if err.filename is None else f": {err.filename}"
        return f"{verb} failed: {err.strerror or err}{place}"
    return f"{verb} failed: {err}"


def _open_log(options: Options) -> Log:
    form = options.text("log-format", "text")
    if form not in ("text", "json"):
        raise UsageError(f"unknown log-format {form!r}: text and json are known")
    return Log(options.text("log"), as_json=form == "json", debug=options.flag("debug"))


def _dispatch(context: Context, verb: str, argv: Sequence[str]) -> int:
    if verb in UNSUPPORTED:
        raise UsageError("checkpoint and restore are not supported by this runtime")
    if verb not in VERBS:
        raise UsageError(f"no such command; there are: {', '.join(VERBS)}")
    expected, summary = VERBS[verb]
    module = __import__(f"runtimeshim.cli.verbs.{verb}", fromlist=("run",))
    options, arguments = parse((*module.FLAGS, HELP), argv, stop_at=module.STOP_AT)
    if options.flag("help"):
        print(usage(f"runtimeshim {verb}", f"[FLAG…] {expected}", summary, module.FLAGS))
        return 0
    return int(module.run(context, options, arguments))


def help_() -> str:
    """Return the help of the whole command line."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, (_, summary) in VERBS.items()]
    summary = "Run OCI containers.\n\ncommands:\n" + "\n".join(lines)
    return usage("runtimeshim", "[FLAG…] COMMAND [ARGUMENT…]", summary, FLAGS)


def version() -> str:
    """Return the lines that callers of an OCI runtime look for."""
    from importlib import metadata  # slow, and nobody else wants to know

    release = metadata.version("criserver")
    return f"runtimeshim version {release}\ncommit: v{release}\nspec: {OCI_VERSION}"
