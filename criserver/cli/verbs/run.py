"""Run a command in a new container, in a pod of its own.

The image is pulled if it is not here. In the foreground (without -d) the container's output comes
here, signals go there, and the exit code is the container's; 126 if its command cannot be executed,
127 if it is not found, 125 if the runtime failed. The container stays until `criserver rm`, unless
--rm is given. Its log is kept below /var/log/criserver, or $CRISERVER_LOG_DIR.

examples:
  criserver run --rm docker.io/library/busybox echo hello
  criserver run -it --rm docker.io/library/busybox sh
  criserver run -d --name web -p 8080:80 -v /srv/www:/www:ro docker.io/library/busybox \\
      httpd -f -h /www
"""

from __future__ import annotations

import argparse

from criserver.cli.client import Client
from criserver.cli.runner import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    _add_ways_to_run(parser)
    _add_settings(parser)
    parser.add_argument("image", metavar="IMAGE", help="NAME, NAME:TAG, NAME@DIGEST, or an id")
    command = parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND …", help="instead of the image's"
    )
    command.required = False  # Python 3.11 would ask for it in the error about a missing IMAGE


def _add_ways_to_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-i", "--interactive", action="store_true", help="pass stdin on")
    add("-t", "--tty", action="store_true", help="give the container a terminal")
    add("-d", "--detach", action="store_true", help="print the id, and leave it running")
    add("--rm", action="store_true", help="remove it when it has exited")
    add(
        "--pull",
        choices=("missing", "always", "never"),
        default="missing",
        help="when to pull the image (default: when it is missing)",
    )


# Flags of `run` with a value of their own, and what they mean.
SETTINGS = {
    ("--name",): ("NAME", "of the container and its pod (default: made of the image's)"),
    ("--entrypoint",): ("PROGRAM", "instead of the image's entrypoint"),
    ("-w", "--workdir"): ("DIR", "working directory"),
    ("-u", "--user"): ("USER[:GID]", "user id or name, and group id"),
    ("--hostname",): ("NAME", "(default: the container's name)"),
    ("-m", "--memory"): ("BYTES", "memory limit, such as 64m or 1g"),
    ("--cpus",): ("N", "CPU limit, such as 0.5"),
}

REPEATABLE_SETTINGS = {
    ("-e", "--env"): ("NAME[=VALUE]", "an environment variable; the value is ours if not given"),
    ("-v", "--volume"): ("HOST:CONTAINER[:ro]", "a file or directory of this machine"),
    ("-p", "--publish"): ("[IP:]HOST:CONTAINER[/udp]", "forward a port of this machine"),
}


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for flags, (metavar, text) in SETTINGS.items():
        parser.add_argument(*flags, metavar=metavar, help=text)
    for flags, (metavar, text) in REPEATABLE_SETTINGS.items():
        text += "; repeatable"
        parser.add_argument(*flags, action="append", default=[], metavar=metavar, help=text)
    parser.add_argument(
        "--network",
        choices=("pod", "host"),
        default="pod",
        help="an address of its own, or this machine's network (default: pod)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the container; the exit code is its own, or 0 with -d."""
    with Client(options.endpoint) as client:
        return Runner(client, options).run()
