"""Work on the images of this machine: archives, what is known of one, damage, disk space, mounts.

Archives are OCI image layouts, or what `docker save` writes. `verify` reads everything again and
ends with 1 when something is damaged: pull those images again, which repairs them.

examples:
  criserver image import busybox.tar
  criserver image export -o images.tar docker.io/library/busybox registry.k8s.io/pause:3.10
  criserver image verify
  criserver image gc --unused
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import BinaryIO

from api.extension import extension_pb2 as pb
from criserver.cli.client import Client
from criserver.cli.errors import FAILURE, CommandError
from criserver.cli.table import short_id, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    importing = actions.add_parser("import", help="import the images of an archive")
    importing.add_argument("file", type=Path, metavar="FILE", help="a tar archive")
    exporting = actions.add_parser("export", help="write images to an archive")
    exporting.add_argument(
        "-o", "--output", metavar="FILE", default="-", help="instead of the standard output"
    )
    exporting.add_argument("images", nargs="+", metavar="IMAGE")
    inspecting = actions.add_parser("inspect", help="print all that is known of images, as JSON")
    inspecting.add_argument("images", nargs="+", metavar="IMAGE")
    verifying = actions.add_parser("verify", help="compare blobs and layers with their digests")
    verifying.add_argument("images", nargs="*", metavar="IMAGE", help="(default: all)")
    verifying.add_argument("-v", "--verbose", action="store_true", help="print what is whole too")
    collecting = actions.add_parser("gc", help="remove what nobody needs")
    collecting.add_argument(
        "--unused", action="store_true", help="also images that no container uses, unless pinned"
    )
    mounting = actions.add_parser("mount", help="mount an image read-only at a directory")
    mounting.add_argument("image", metavar="IMAGE")
    mounting.add_argument("target", type=Path, metavar="DIRECTORY")
    unmounting = actions.add_parser("unmount", help="undo mount")
    unmounting.add_argument("target", type=Path, metavar="DIRECTORY")


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    with Client(options.endpoint) as client:
        return _ACTIONS[options.action](client, options)


def _import(client: Client, options: argparse.Namespace) -> int:
    path: Path = options.file.absolute()
    if not path.is_file():
        raise CommandError(f"cannot import {path}: there is no such file")
    with client.doing(f"import {path}"):
        answer = client.extension.ImportImage(pb.ImportImageRequest(path=str(path)))
    for name in answer.names:
        print(name)
    return 0


def _export(client: Client, options: argparse.Namespace) -> int:
    if options.output == "-":
        if sys.stdout.isatty():
            raise CommandError("an archive is not for a terminal: use --output FILE, or redirect")
        _receive(client, options.images, sys.stdout.buffer)
        return 0
    output = Path(options.output)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with partial.open("xb") as file:
            _receive(client, options.images, file)
        partial.rename(output)
    except OSError as err:
        raise CommandError(f"cannot write {output}: {err.strerror}") from err
    finally:
        partial.unlink(missing_ok=True)
    return 0


def _receive(client: Client, images: list[str], file: BinaryIO) -> None:
    with client.doing(f"export {', '.join(images)}"):
        for answer in client.extension.ExportImages(pb.ExportImagesRequest(images=images)):
            file.write(answer.data)


def _inspect(client: Client, options: argparse.Namespace) -> int:
    found = []
    for image in options.images:
        with client.doing(f"inspect {image}"):
            answer = client.extension.InspectImage(pb.InspectImageRequest(image=image))
        found.append(json.loads(answer.json))
    print(json.dumps(found, indent=2))
    return 0


def _verify(client: Client, options: argparse.Namespace) -> int:
    checked = damaged = 0
    with client.doing("verify the images"):
        request = pb.VerifyImagesRequest(images=options.images)
        for found in client.extension.VerifyImages(request):
            checked += 1
            damaged += bool(found.damages)
            if found.damages or options.verbose:
                _print_finding(found)
    print(f"{checked} blobs and layers checked, {damaged} damaged")
    if damaged:
        print("pull the images named above again: that repairs them", file=sys.stderr)
    return FAILURE if damaged else 0


def _print_finding(found: pb.VerifyImagesResponse) -> None:
    where = f" of {', '.join(found.images)}" if found.images else ""
    state = "damaged" if found.damages else found.note or "whole"
    print(f"{found.kind} {found.name}{where}: {state}")
    for damage in found.damages:
        print(f"  {damage}")


def _collect(client: Client, options: argparse.Namespace) -> int:
    with client.doing("collect garbage"):
        request = pb.CollectImagesRequest(unused=options.unused)
        answer = client.extension.CollectImages(request)
    for name in answer.images:
        print(f"removed {name}")
    print(f"{answer.layers} layers and {answer.blobs} blobs removed: {size(answer.freed_bytes)}")
    return 0


def _mount(client: Client, options: argparse.Namespace) -> int:
    target: Path = options.target.absolute()
    with client.doing(f"mount {options.image}"):
        request = pb.MountImageRequest(image=options.image, target=str(target))
        answer = client.extension.MountImage(request)
    print(f"{short_id(answer.image_id)} at {target}; `criserver image unmount {target}` undoes it")
    return 0


def _unmount(client: Client, options: argparse.Namespace) -> int:
    target: Path = options.target.absolute()
    with client.doing(f"unmount {target}"):
        client.extension.UnmountImage(pb.UnmountImageRequest(target=str(target)))
    return 0


_ACTIONS = {
    "import": _import,
    "export": _export,
    "inspect": _inspect,
    "verify": _verify,
    "gc": _collect,
    "mount": _mount,
    "unmount": _unmount,
}
