"""Remove images, with all of their names."""

from __future__ import annotations

import argparse

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.containers import for_each
from criserver.cli.errors import CommandError
from criserver.cli.image_names import find_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="name, id or beginning of an id")


def run(options: argparse.Namespace) -> int:
    """Remove each of the images."""
    with Client(options.endpoint) as client:
        return for_each("rmi", options.images, lambda name: _remove(client, name))


def _remove(client: Client, name: str) -> None:
    if find_image(client, name) is None:
        raise CommandError(f"no image {name!r}: `criserver images` lists them")
    with client.doing(f"remove image {name}"):
        client.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))
