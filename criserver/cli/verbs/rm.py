"""Remove containers that have stopped, or with -f any.

With a container that `criserver run` made go its pod and its log. --all removes every container and
every pod of the runtime, whoever made them.
"""

from __future__ import annotations

import argparse

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.containers import (
    LOG_DIRECTORY,
    find_container,
    for_each,
    is_made_by_run,
    remove_pod,
)
from criserver.cli.errors import USAGE, CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-f", "--force", action="store_true", help="even if they run: kill them")
    parser.add_argument("--all", action="store_true", help="everything; needs --force")
    parser.add_argument("containers", nargs="*", metavar="CONTAINER", help="id or name")


def run(options: argparse.Namespace) -> int:
    """Remove what is named."""
    if options.all == bool(options.containers):
        raise CommandError("name containers, or give --all; see `criserver rm --help`", USAGE)
    if options.all and not options.force:
        raise CommandError("--all kills what runs: it needs --force as well", USAGE)
    with Client(options.endpoint) as client:
        if options.all:
            return _remove_everything(client)
        return for_each(
            "rm", options.containers, lambda name: _remove(client, name, force=options.force)
        )


def _remove(client: Client, reference: str, *, force: bool) -> None:
    container = find_container(client, reference)
    if container.state == cri.CONTAINER_RUNNING and not force:
        raise CommandError(f"{reference} is running: `criserver stop` it first, or use rm --force")
    if is_made_by_run(container):
        pod = _pod(client, container.pod_sandbox_id)
        remove_pod(client, pod.id, pod.annotations.get(LOG_DIRECTORY, ""))
        return
    with client.doing(f"remove {reference}"):
        client.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container.id))


def _pod(client: Client, pod_id: str) -> cri.PodSandboxStatus:
    with client.doing(f"get the status of pod {pod_id}"):
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
        return client.runtime.PodSandboxStatus(request).status


def _remove_everything(client: Client) -> int:
    with client.doing("list pods"):
        pods = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    logs = {pod.id: pod.annotations.get(LOG_DIRECTORY, "") for pod in pods}
    return for_each("rm", list(logs), lambda pod_id: remove_pod(client, pod_id, logs[pod_id]))
