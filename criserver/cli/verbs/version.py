"""Show the versions of this program and of the runtime that it talks to."""

from __future__ import annotations

import argparse
from importlib import metadata

from api.cri import api_pb2 as cri
from criserver.cli.client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: there are none."""


def run(options: argparse.Namespace) -> int:
    """Print the versions."""
    print(f"client   criserver {metadata.version('criserver')}", flush=True)
    with Client(options.endpoint) as client, client.doing("ask for the runtime's version"):
        answer = client.runtime.Version(cri.VersionRequest())
    print(f"runtime  {answer.runtime_name} {answer.runtime_version}")
    print(f"CRI      {answer.runtime_api_version}")
    return 0
