"""List the images on this machine."""

from __future__ import annotations

import argparse
import sys

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.table import format_table, short_id, size

HEADER = ("IMAGE", "TAG", "IMAGE ID", "SIZE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-q", "--quiet", action="store_true", help="print full ids only")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    with Client(options.endpoint) as client, client.doing("list images"):
        images = client.images.ListImages(cri.ListImagesRequest()).images
    if options.quiet:
        sys.stdout.writelines(f"{image.id}\n" for image in images)
        return 0
    lines = sorted(row for image in images for row in rows(image))
    sys.stdout.write(format_table(HEADER, lines))
    return 0


def rows(image: cri.Image) -> list[tuple[str, ...]]:
    """Return a row for each of the image's names; one that has a digest only has no tag."""
    rest = (short_id(image.id), size(image.size))
    if image.repo_tags:
        return [(*_split(name), *rest) for name in image.repo_tags]
    repositories = [digest.partition("@")[0] for digest in image.repo_digests]
    return [(name, "<none>", *rest) for name in repositories or ["<none>"]]


def _split(name: str) -> tuple[str, str]:
    repository, _, tag = name.rpartition(":")
    return repository, tag
