"""Join the streams of a container's own process.

Output comes here from now on, signals go there, and the exit code is the container's. With -i,
stdin is passed on, if the container was made with one. ^P ^Q leaves a terminal; the end of this
program leaves the container as it is.

examples:
  criserver run -dit --name shell docker.io/library/busybox sh
  criserver attach -i shell
"""

from __future__ import annotations

import argparse

import grpc

from api.extension import extension_pb2 as pb
from criserver.cli import relay
from criserver.cli.client import Client
from criserver.cli.containers import find_container
from criserver.cli.errors import RUNTIME_FAILURE, CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-i", "--interactive", action="store_true", help="pass stdin on")
    parser.add_argument("container", metavar="CONTAINER", help="id, beginning of an id, or name")


def run(options: argparse.Namespace) -> int:
    """Relay the streams; the exit code is the container's, or 0 when its terminal was left."""
    with Client(options.endpoint) as client:
        container = find_container(client, options.container)
        size = relay.terminal_size() if options.interactive else None
        start = pb.AttachStart(container_id=container.id, stdin=options.interactive, size=size)
        try:
            return relay.relay(
                client.extension.Attach,
                pb.AttachInput(start=start),
                stdin=options.interactive,
                raw=None,
            )
        except relay.DetachedError:
            return 0
        except relay.GivenUpError as err:
            message = f"interrupted; container {options.container} runs on"
            raise CommandError(message, RUNTIME_FAILURE) from err
        except grpc.RpcError as err:
            why = client.explain(err)
            message = f"cannot attach to {options.container}: {why}"
            raise CommandError(message, RUNTIME_FAILURE) from err
