"""Import images from an archive on this machine: OCI, or what `docker save` writes.

The file is read by the daemon. Each image keeps the name that the archive gives it, and is printed.

example:
  criserver image import busybox.tar
"""

from __future__ import annotations

import argparse
from pathlib import Path

from api.extension import extension_pb2 as pb
from criserver.cli.client import Client
from criserver.cli.errors import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="import")
    importing = actions.add_parser("import", help="import the images of an archive")
    importing.add_argument("file", type=Path, metavar="FILE", help="a tar archive")


def run(options: argparse.Namespace) -> int:
    """Import the archive and print the names."""
    path: Path = options.file.absolute()
    if not path.is_file():
        raise CommandError(f"cannot import {path}: there is no such file")
    with Client(options.endpoint) as client, client.doing(f"import {path}"):
        answer = client.extension.ImportImage(pb.ImportImageRequest(path=str(path)))
    for name in answer.names:
        print(name)
    return 0
