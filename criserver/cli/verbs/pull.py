"""Pull images from a registry, and print what each name stands for.

Mirrors and certificates of registries are configured on the daemon's side, in
/etc/criserver/certs.d/HOST/hosts.toml as containerd reads it.
"""

from __future__ import annotations

import argparse

from criserver.cli.client import Client
from criserver.cli.image_names import pull_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="NAME, NAME:TAG or NAME@DIGEST")


def run(options: argparse.Namespace) -> int:
    """Pull each of the images."""
    with Client(options.endpoint) as client:
        for image in options.images:
            print(pull_image(client, image), flush=True)
    return 0
