"""Tell what was done to a pod, a container or an image, and what it is waiting for right now.

Every operation with its stages: when, how long, how it went and why not, also of what has been
gone for less than a day. A pod's tell of its containers and of the images that were pulled for it.

examples:
  criserver explain nginx                    # a pod or a container of this name
  criserver explain default/nginx            # NAMESPACE/POD, or POD/CONTAINER
  criserver explain 3f2a9c                   # the begin of an id
  criserver explain docker.io/library/nginx  # the pulls of an image
  criserver explain nginx --svg nginx.svg    # as a picture
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from api.extension import extension_pb2 as pb
from criserver.cli import timeline_svg, timeline_text
from criserver.cli.client import Client
from criserver.cli.errors import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("reference", metavar="POD|CONTAINER|IMAGE", help="a name, or an id's begin")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw a waterfall instead")


def run(options: argparse.Namespace) -> int:
    """Ask, and print or draw the answer."""
    with Client(options.endpoint) as client, client.doing(f"explain {options.reference}"):
        request = pb.ExplainRequest(reference=options.reference)
        answer = client.extension.Explain(request)
    found = json.loads(answer.json)
    if options.svg is not None:
        _draw(options.svg, timeline_svg.render(found))
    elif options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(timeline_text.render(found))
    return 0


def _draw(path: Path, picture: str) -> None:
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as err:
        raise CommandError(f"cannot write {path}: {err.strerror}") from err
