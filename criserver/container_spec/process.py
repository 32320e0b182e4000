"""The process of a container's spec: arguments, environment, directory, user, rights."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from typing import Any

from criserver.container_spec import security
from criserver.container_spec.fields import MAX_PATH, absolute_path, invalid, text
from criserver.container_spec.inputs import ContainerSpecInput

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MIN_OOM_SCORE, MAX_OOM_SCORE = -1000, 1000


def process(given: ContainerSpecInput) -> dict[str, Any]:
    """Return the OCI `process` object. No rlimits: the container inherits the runtime's."""
    user = given.user
    made: dict[str, Any] = {
        "terminal": given.config.tty,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": list(user.additional_gids),
        },
        "args": _arguments(given),
        "env": _environment(given),
        "cwd": _directory(given),
        "capabilities": security.capabilities(given.context, given.host),
        "noNewPrivileges": given.context.no_new_privs,
    }
    if given.config.linux.HasField("resources"):
        made["oomScoreAdj"] = oom_score_adj(given.config.linux.resources.oom_score_adj)
    profile = security.apparmor_profile(given.context, given.host)
    if profile:
        made["apparmorProfile"] = profile
    label = security.process_label(given)
    if label:
        made["selinuxLabel"] = label
    return made


def _arguments(given: ContainerSpecInput) -> list[str]:
    """Return command and args; each defaults to the image's, but its Cmd only without a command.

    An Entrypoint of one empty string is how an image says that it has none.
    """
    command, arguments = list(given.config.command), list(given.config.args)
    if not command:
        arguments = arguments or list(given.image_config.get("Cmd") or ())
        entrypoint = list(given.image_config.get("Entrypoint") or ())
        command = entrypoint if entrypoint != [""] else []
    both = command + arguments
    if not both:
        raise invalid("config.command", "no command is given, and the image has none")
    return [text(f"config.command or config.args [{i}]", part) for i, part in enumerate(both)]


def _environment(given: ContainerSpecInput) -> list[str]:
    """Return the environment: defaults, then the image's, then the request's, the last one wins.

    HOME is the account's where nothing sets it, as runc has it.
    """
    variables = {"PATH": DEFAULT_PATH}
    if given.config.tty:
        variables["TERM"] = "xterm"
    variables["HOSTNAME"] = given.sandbox_config.hostname or given.host.hostname
    _merge_image(variables, given.image_config.get("Env") or ())
    for index, entry in enumerate(given.config.envs):
        field = f"config.envs[{index}]"
        if not entry.key or "=" in entry.key:
            raise invalid(f"{field}.key", f"{entry.key!r} is not a variable's name")
        # Values are bytes: what is not UTF-8 passes through JSON as lone surrogates.
        value = os.fsdecode(entry.value)
        variables[text(f"{field}.key", entry.key)] = text(f"{field}.value", value)
    if not variables.get("HOME"):
        variables["HOME"] = given.user.home
    return [f"{name}={value}" for name, value in variables.items()]


def _merge_image(variables: dict[str, str], entries: Iterable[str]) -> None:
    """Set each "NAME=value"; a name alone takes the variable away."""
    for entry in entries:
        name, separator, value = text("image config Env", entry).partition("=")
        if separator:
            variables[name] = value
        else:
            variables.pop(name, None)


def _directory(given: ContainerSpecInput) -> str:
    if given.config.working_dir:
        return absolute_path("config.working_dir", given.config.working_dir)
    image = text("image config WorkingDir", given.image_config.get("WorkingDir") or "/")
    if len(os.fsencode(image)) >= MAX_PATH:
        raise invalid("image config WorkingDir", f"longer than {MAX_PATH - 1} bytes")
    return posixpath.join("/", image)


def oom_score_adj(value: int) -> int:
    """Return the value if the kernel knows it (man 5 proc)."""
    if not MIN_OOM_SCORE <= value <= MAX_OOM_SCORE:
        raise invalid(
            "linux.resources.oom_score_adj",
            f"{value} is not between {MIN_OOM_SCORE} and {MAX_OOM_SCORE}",
        )
    return value
