"""The OCI process object of an exec, derived from the container's own.

ExecSync, the streaming servers and the extension service all start their processes from this one
function, so that an exec has the same identity and the same confinement by every way in.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from api.errors import InvalidArgumentError

DEFAULT_TERM = "xterm"  # what the peers give a terminal whose image does not say otherwise


def exec_process(
    container_process: Mapping[str, Any], args: Sequence[str], *, terminal: bool
) -> dict[str, Any]:
    """Return the OCI process object that runs args beside the container's own process.

    container_process is ``process`` of the container's config.json. Environment, working directory,
    user, capabilities, noNewPrivileges, LSM labels, rlimits and OOM score are the container's;
    args and terminal are the caller's, and the size of the container's console is not inherited.
    With a terminal TERM is set unless the container's environment has it. The input is not changed.

    Raises InvalidArgumentError when args is empty or names nothing to execute, or holds a NUL.
    """
    _check_args(args)
    process: dict[str, Any] = copy.deepcopy(dict(container_process))
    process.pop("consoleSize", None)
    process["args"] = list(args)
    process["terminal"] = terminal
    if terminal:
        process["env"] = _with_term(process.get("env", []))
    return process


def _check_args(args: Sequence[str]) -> None:
    if not args or not args[0]:
        raise InvalidArgumentError("exec: the command is empty")
    if any("\0" in arg for arg in args):
        raise InvalidArgumentError("exec: an argument contains a NUL byte")


def _with_term(env: Sequence[str]) -> list[str]:
    if any(entry.startswith("TERM=") for entry in env):
        return list(env)
    return [*env, f"TERM={DEFAULT_TERM}"]
