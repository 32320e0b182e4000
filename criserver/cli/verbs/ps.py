"""List containers: the running ones, or with -a all of them.

examples:
  criserver ps -a
  criserver rm $(criserver ps -aq)        remove all that have stopped
"""

from __future__ import annotations

import argparse
import sys

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.table import age, format_table, short_id

HEADER = ("CONTAINER ID", "IMAGE", "CREATED", "STATUS", "NAME", "POD")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    parser.add_argument("-q", "--quiet", action="store_true", help="print full ids only")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    with Client(options.endpoint) as client:
        containers = _containers(client, everything=options.all)
        if options.quiet:
            sys.stdout.writelines(f"{container.id}\n" for container in containers)
            return 0
        pods = _pod_names(client)
        rows = [
            _row(container, status, pods)
            for container in containers
            if (status := _status(client, container.id)) is not None
        ]
    sys.stdout.write(format_table(HEADER, rows))
    return 0


def _containers(client: Client, *, everything: bool) -> list[cri.Container]:
    request = cri.ListContainersRequest()
    if not everything:
        request.filter.state.state = cri.CONTAINER_RUNNING
    with client.doing("list containers"):
        containers = client.runtime.ListContainers(request).containers
    return sorted(containers, key=lambda container: container.created_at, reverse=True)


def _pod_names(client: Client) -> dict[str, str]:
    with client.doing("list pods"):
        pods = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    return {pod.id: pod.metadata.name for pod in pods}


def _status(client: Client, container_id: str) -> cri.ContainerStatus | None:
    """Return the status, or None for a container that has been removed since it was listed."""
    request = cri.ContainerStatusRequest(container_id=container_id)
    return client.unless_gone(
        f"get the status of {container_id}",
        lambda: client.runtime.ContainerStatus(request).status,
    )


def _row(
    container: cri.Container, status: cri.ContainerStatus, pods: dict[str, str]
) -> tuple[str, ...]:
    return (
        short_id(container.id),
        container.image.user_specified_image or container.image.image,
        f"{age(container.created_at)} ago",
        describe(status),
        container.metadata.name,
        pods.get(container.pod_sandbox_id, short_id(container.pod_sandbox_id)),
    )


def describe(status: cri.ContainerStatus) -> str:
    """Return a container's state in words: "Up 2 minutes", "Exited (137, OOMKilled) 1 day ago"."""
    match status.state:
        case cri.CONTAINER_RUNNING:
            return f"Up {age(status.started_at)}"
        case cri.CONTAINER_EXITED:
            usual = status.reason in ("", "Completed", "Error")
            why = str(status.exit_code) if usual else f"{status.exit_code}, {status.reason}"
            return f"Exited ({why}) {age(status.finished_at)} ago"
        case cri.CONTAINER_CREATED:
            return "Created"
    return "Unknown"
