"""The criserver command: the daemon, and a small client for people at a terminal.

`main` reads the verb and imports only that verb's module. In particular nothing here imports grpc:
`criserver serve` has to start its spawner before grpc's threads exist.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, NoReturn

from criserver.cli.errors import RUNTIME_FAILURE, USAGE, CommandError

DEFAULT_ENDPOINT = "unix:///run/criserver/criserver.sock"
ENDPOINT_VARIABLE = "CRISERVER_ENDPOINT"

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE


@dataclass(frozen=True)
class Verb:
    """One word of the command line, and the module that knows the rest."""

    help: str
    group: str
    usage_exit_code: int = USAGE


CONTAINERS, IMAGES, DAEMON = "containers", "images", "the daemon"

VERBS = {
    "run": Verb("run a command in a new container", CONTAINERS, RUNTIME_FAILURE),
    "exec": Verb("run a command in a running container", CONTAINERS, RUNTIME_FAILURE),
    "attach": Verb("join the streams of a container", CONTAINERS, RUNTIME_FAILURE),
    "ps": Verb("list containers", CONTAINERS),
    "pods": Verb("list pods", CONTAINERS),
    "inspect": Verb("print all that is known of containers and pods", CONTAINERS),
    "logs": Verb("print what a container has written", CONTAINERS),
    "stats": Verb("show what containers use, live", CONTAINERS),
    "top": Verb("list the processes of a container", CONTAINERS),
    "events": Verb("print what happens to containers and pods", CONTAINERS),
    "cp": Verb("copy files from or to a container", CONTAINERS),
    "port-forward": Verb("forward ports of this machine to a pod", CONTAINERS),
    "stop": Verb("stop containers", CONTAINERS),
    "rm": Verb("remove containers, with the pods that `run` made for them", CONTAINERS),
    "images": Verb("list images", IMAGES),
    "pull": Verb("pull images from a registry", IMAGES),
    "image": Verb("import, export, inspect, verify, gc and mount images", IMAGES),
    "rmi": Verb("remove images", IMAGES),
    "serve": Verb("run the daemon", DAEMON),
    "config": Verb("print or check the daemon's configuration", DAEMON),
    "check": Verb("find out whether this node is fit to run pods", DAEMON),
    "network": Verb("reset the built-in network", DAEMON),
    "teardown": Verb("end daemon, spawner and network of a node without pods", DAEMON),
    "explain": Verb("tell what was done to an object, and what it waits for", DAEMON),
    "audit": Verb("find, and remove, what belongs to nobody", DAEMON),
    "info": Verb("show the state of the runtime", DAEMON),
    "completion": Verb("print a script that completes commands in a shell", DAEMON),
    "version": Verb("show the versions of client and runtime", DAEMON),
}

# These parse their own arguments, and import what they need when they need it.
PROGRAMS = {
    "serve": "criserver.daemon",
    "config": "criserver.config_command",
    "check": "criserver.check",
    "network": "criserver.network_reset",
    "teardown": "criserver.teardown",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line argv (default: the process's) and return its exit code."""
    options = _parser().parse_args(argv)
    if options.version:
        sys.stdout.write(f"criserver {version('criserver')}\n")
        return 0
    if options.verb is None:
        _parser().print_help()
        return 0
    if options.verb not in VERBS:
        sys.stderr.write(
            f"criserver: unknown command {options.verb!r}; `criserver --help` lists them\n"
        )
        return USAGE
    if options.verb in PROGRAMS:
        program: Callable[[Sequence[str]], int] = import_module(PROGRAMS[options.verb]).main
        return program(options.arguments)
    return _run_verb(options.verb, options.arguments, options.endpoint)


def _run_verb(name: str, arguments: Sequence[str], endpoint: str) -> int:
    module = verb_module(name)
    parser = verb_parser(name)
    options = parser.parse_args(arguments, argparse.Namespace(endpoint=endpoint))
    run: Callable[[argparse.Namespace], int] = module.run
    try:
        return run(options)
    except CommandError as err:
        sys.stderr.write(f"criserver {name}: {err}\n")
        return err.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough of it. The interpreter flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def verb_parser(name: str) -> VerbParser:
    """Return what parses the arguments of a client's verb."""
    module = verb_module(name)
    parser = VerbParser(
        prog=f"criserver {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.usage_exit_code = VERBS[name].usage_exit_code
    module.add_arguments(parser)
    return parser


def verb_module(name: str) -> ModuleType:
    """Return the module of a client's verb."""
    return import_module(f"criserver.cli.verbs.{name.replace('-', '_')}")


class VerbParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, and where to read on.

    It also remembers what was declared, for completion.
    """

    usage_exit_code = USAGE

    def __init__(self, **settings: Any) -> None:
        self.flags: set[str] = set()
        self.metavars: set[str] = set()  # of positional arguments
        self.actions: dict[str, VerbParser] = {}  # the verb's own verbs
        super().__init__(**settings)

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Declare an argument."""
        action = super().add_argument(*names, **settings)
        self.flags.update(action.option_strings)
        if not action.option_strings and isinstance(action.metavar, str):
            self.metavars.add(action.metavar)
        return action

    def add_subparsers(self, **settings: Any) -> Any:
        """Declare verbs of the verb."""
        declared = super().add_subparsers(**settings)
        self.actions = declared.choices
        return declared

    def error(self, message: str) -> NoReturn:
        """End with the usage error's exit code."""
        self.exit(self.usage_exit_code, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="criserver",
        usage="criserver [--endpoint ENDPOINT] COMMAND …",
        description="A Kubernetes container runtime, and a small client for it.",
        epilog=_verbs_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--endpoint",
        default=os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT,
        help=f"the runtime's socket (default: ${ENDPOINT_VARIABLE}, or {DEFAULT_ENDPOINT})",
    )
    parser.add_argument("--version", action="store_true", help="print the version of this program")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _verbs_help() -> str:
    lines = []
    for group in (CONTAINERS, IMAGES, DAEMON):
        lines.append(f"commands for {group}:")
        lines += [
            f"  {name:<12} {verb.help}" for name, verb in VERBS.items() if verb.group == group
        ]
        lines.append("")
    lines.append("`criserver COMMAND --help` explains one. A first container:")
    lines.append("  criserver run -it --rm docker.io/library/busybox sh")
    return "\n".join(lines)
