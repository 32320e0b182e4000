"""Pull images from a registry, and print the id of each.

How it goes is shown on stderr: a bar for each layer on a terminal, plain lines elsewhere. What an
interrupted pull has fetched is gone on with by the next one.

Credentials come from docker's ~/.docker/config.json (or $DOCKER_CONFIG/config.json) and the
credential helpers that it names, as `docker login` writes it. Mirrors and certificates of
registries are configured on the daemon's side, in /etc/criserver/certs.d/HOST/hosts.toml as
containerd reads it, and so are proxies, by HTTP_PROXY, HTTPS_PROXY and NO_PROXY in its environment.
"""

from __future__ import annotations

import argparse

from criserver.cli.client import Client
from criserver.cli.pulling import pull_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-q", "--quiet", action="store_true", help="do not show how it goes")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="NAME, NAME:TAG or NAME@DIGEST")


def run(options: argparse.Namespace) -> int:
    """Pull each of the images."""
    with Client(options.endpoint) as client:
        for image in options.images:
            print(pull_image(client, image, quiet=options.quiet), flush=True)
    return 0
