"""Copy files between this machine and a running container, which needs no program for it.

One of the two is CONTAINER:PATH. A directory is copied with all below it; where the target is a
directory, the copy is put into it, and DIRECTORY/. means what is in a directory. Modes and times
are kept, owners are not: what is copied belongs to root. A symbolic link that is named is followed,
within the container; those in a directory are copied as they are. Devices, FIFOs and sockets are
left out, which is told and makes the exit code 1.

examples:
  criserver cp site.conf web:/etc/nginx/conf.d/
  criserver cp web:/var/log/app ./logs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from api.cri import api_pb2 as cri
from criserver.cli import container_files as files
from criserver.cli.client import Client
from criserver.cli.containers import find_container
from criserver.cli.errors import FAILURE, CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SOURCE", help="CONTAINER:PATH, or a path here")
    parser.add_argument("target", metavar="TARGET", help="CONTAINER:PATH, or a path here")


def run(options: argparse.Namespace) -> int:
    """Copy; 1 when something was left out."""
    source, target = _split(options.source), _split(options.target)
    if (source[0] is None) == (target[0] is None):
        raise CommandError("one of SOURCE and TARGET has to be CONTAINER:PATH, and only one")
    skipped: list[str] = []

    def left_out(path: str, what: str) -> None:
        skipped.append(path)
        sys.stderr.write(f"criserver cp: {path} is left out: it is {what}\n")

    with (
        Client(options.endpoint) as client,
        _root(client, source[0]) as source_root,
        _root(client, target[0]) as target_root,
    ):
        try:
            _copy(source_root, source[1], target_root, target[1], left_out)
        except OSError as err:
            where = f" ({err.filename})" if err.filename else ""
            raise CommandError(
                f"cannot copy {options.source} to {options.target}: {err.strerror}{where}"
            ) from err
    return FAILURE if skipped else 0


def _split(argument: str) -> tuple[str | None, str]:
    """Return the container and the path; no container for a path here, as ./a:b is one."""
    container, colon, path = argument.partition(":")
    if not colon or "/" in container or not container:
        return None, os.path.abspath(argument) + ("/" * argument.endswith(("/", "/.")))
    return container, path or "/"


@contextmanager
def _root(client: Client, container: str | None) -> Iterator[int]:
    """Open the root directory of a running container, or ours."""
    if container is None:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        root = files.open_root(running_pid(client, container))
    try:
        yield root
    finally:
        os.close(root)


def running_pid(client: Client, reference: str) -> int:
    """Return the process id, on this machine, of a running container's own process."""
    container = find_container(client, reference)
    request = cri.ContainerStatusRequest(container_id=container.id, verbose=True)
    with client.doing(f"get the status of {reference}"):
        answer = client.runtime.ContainerStatus(request)
    if answer.status.state != cri.CONTAINER_RUNNING:
        raise CommandError(f"container {reference!r} does not run: start it first")
    return int(json.loads(answer.info["info"])["pid"])


def _copy(
    source_root: int,
    source: str,
    target_root: int,
    target: str,
    left_out: Callable[[str, str], None],
) -> None:
    content = source.endswith("/.")
    found = files.open_inside(source_root, source)
    try:
        name = os.path.basename(os.path.normpath(source)) or "root"
        place = files.target_inside(target_root, target, "." if content else name)
        try:
            if place.name == ".":
                files.copy_content(found, place.directory, source, left_out)
            else:
                files.copy(found, place, source, left_out)
        finally:
            os.close(place.directory)
    finally:
        os.close(found)
