"""Run a command in a running container, beside its own process.

The command is executed as it is, without a shell, and ends with this program. The exit code is the
command's; 126 if it cannot be executed, 127 if it is not found, 125 if the runtime failed.

examples:
  criserver exec web ps
  criserver exec -it web sh
  tar c . | criserver exec -i web tar x -C /srv
"""

from __future__ import annotations

import argparse

import grpc

from api.extension import extension_pb2 as pb
from criserver.cli import relay, terminal
from criserver.cli.client import Client
from criserver.cli.containers import find_container
from criserver.cli.errors import RUNTIME_FAILURE, CommandError, start_exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-i", "--interactive", action="store_true", help="pass stdin on")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("container", metavar="CONTAINER", help="id, beginning of an id, or name")
    parser.add_argument("command", metavar="COMMAND", help="the program")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT …", help="its arguments"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    raw = options.tty and options.interactive
    if raw:
        terminal.require_terminal()
    with Client(options.endpoint) as client:
        start = pb.ExecStart(
            container_id=_container_id(client, options.container),
            command=[options.command, *options.arguments],
            terminal=options.tty,
            stdin=options.interactive,
            size=relay.terminal_size(),
        )
        try:
            return relay.relay(
                client.extension.Exec,
                pb.ExecInput(start=start),
                stdin=options.interactive,
                raw=raw,
            )
        except relay.GivenUpError as err:
            raise CommandError("interrupted: the command is killed", RUNTIME_FAILURE) from err
        except grpc.RpcError as err:
            why = client.explain(err)
            refused = err.code() is grpc.StatusCode.INVALID_ARGUMENT
            raise CommandError(
                f"cannot run {options.command!r} in {options.container}: {why}",
                start_exit_code(why) if refused else RUNTIME_FAILURE,
            ) from err


def _container_id(client: Client, reference: str) -> str:
    try:
        return find_container(client, reference).id
    except CommandError as err:
        raise CommandError(str(err), RUNTIME_FAILURE) from err
