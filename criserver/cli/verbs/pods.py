"""List pods: the ready ones, or with -a all of them.

examples:
  criserver pods
  criserver pods -a --namespace kube-system
"""

from __future__ import annotations

import argparse
import sys

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.table import age, format_table, short_id

HEADER = ("POD ID", "NAMESPACE", "NAME", "CREATED", "STATE", "ADDRESS", "HANDLER")

STATES = {cri.SANDBOX_READY: "Ready", cri.SANDBOX_NOTREADY: "Stopped"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-a", "--all", action="store_true", help="also those that are stopped")
    parser.add_argument("-q", "--quiet", action="store_true", help="print full ids only")
    parser.add_argument("--namespace", metavar="NAME", help="only those of this namespace")


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    with Client(options.endpoint) as client:
        pods = _pods(client, options)
        if options.quiet:
            sys.stdout.writelines(f"{pod.id}\n" for pod in pods)
            return 0
        rows = [_row(client, pod) for pod in pods]
    sys.stdout.write(format_table(HEADER, rows))
    return 0


def _pods(client: Client, options: argparse.Namespace) -> list[cri.PodSandbox]:
    request = cri.ListPodSandboxRequest()
    if not options.all:
        request.filter.state.state = cri.SANDBOX_READY
    with client.doing("list pods"):
        pods = client.runtime.ListPodSandbox(request).items
    wanted = [pod for pod in pods if options.namespace in (None, pod.metadata.namespace)]
    return sorted(wanted, key=lambda pod: pod.created_at, reverse=True)


def _row(client: Client, pod: cri.PodSandbox) -> tuple[str, ...]:
    return (
        short_id(pod.id),
        pod.metadata.namespace,
        pod.metadata.name,
        f"{age(pod.created_at)} ago",
        STATES[pod.state],
        _address(client, pod),
        pod.runtime_handler,
    )


def _address(client: Client, pod: cri.PodSandbox) -> str:
    """Return the pod's first address; nothing for one that has none, or has gone meanwhile."""
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id)
    status = client.unless_gone(
        f"get the status of pod {pod.id}", lambda: client.runtime.PodSandboxStatus(request).status
    )
    return status.network.ip if status is not None else ""
