"""Stop containers: the stop signal, and SIGKILL when the time is over.

The pod of a container that `criserver run` made is stopped with it, which frees its address and its
host ports. A container that has stopped stays until `criserver rm`.
"""

from __future__ import annotations

import argparse

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.containers import find_container, for_each, is_made_by_run

DEFAULT_TIMEOUT = 10  # seconds, as docker and podman have it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "-t",
        "--time",
        type=int,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help=f"how long it may take to end by itself (default {DEFAULT_TIMEOUT}; 0: not at all)",
    )
    parser.add_argument("containers", nargs="+", metavar="CONTAINER", help="id or name")


def run(options: argparse.Namespace) -> int:
    """Stop each of the containers."""
    with Client(options.endpoint) as client:
        return for_each(
            "stop", options.containers, lambda name: _stop(client, name, max(options.time, 0))
        )


def _stop(client: Client, reference: str, timeout: int) -> None:
    container = find_container(client, reference)
    with client.doing(f"stop {reference}"):
        request = cri.StopContainerRequest(container_id=container.id, timeout=timeout)
        client.runtime.StopContainer(request)
        if is_made_by_run(container):
            pod = cri.StopPodSandboxRequest(pod_sandbox_id=container.pod_sandbox_id)
            client.runtime.StopPodSandbox(pod)
