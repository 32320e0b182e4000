"""Print all that is known of containers and pods, as JSON.

Each is an object with the CRI's status of it under "status", and under "info" what only this
runtime tells: the process id, how long each stage of the start took, the OCI configuration.

examples:
  criserver inspect web
  criserver inspect web | jq .[0].info.pid
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.containers import find_pod, search_container
from criserver.cli.errors import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "references",
        nargs="+",
        metavar="CONTAINER|POD",
        help="id, beginning of an id, or name; of equal ones, a container's counts",
    )


def run(options: argparse.Namespace) -> int:
    """Print one array with an object for each, in the order of the arguments."""
    with Client(options.endpoint) as client:
        found = [inspect(client, reference) for reference in options.references]
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


def inspect(client: Client, reference: str) -> dict[str, Any]:
    """Return what is known of a container or a pod. Raises CommandError."""
    container = search_container(client, reference)
    if container is not None:
        of_container = cri.ContainerStatusRequest(container_id=container.id, verbose=True)
        with client.doing(f"inspect {reference}"):
            status = client.runtime.ContainerStatus(of_container)
        return _object("container", status.status, status.info)
    try:
        pod = find_pod(client, reference)
    except CommandError as err:
        raise CommandError(f"no container either: {err}") from err
    of_pod = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
    with client.doing(f"inspect {reference}"):
        answer = client.runtime.PodSandboxStatus(of_pod)
    return _object("pod", answer.status, answer.info)


def _object(kind: str, status: Message, info: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": kind,
        "status": MessageToDict(status, always_print_fields_with_no_presence=True),
        "info": {key: _parsed(value) for key, value in sorted(info.items())},
    }


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:  # a plain string
        return value
