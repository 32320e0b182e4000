"""Print what happens to containers and pods, as it happens, until it is interrupted.

A line has the time, what happened (created, started, stopped, deleted), whether to a container or a
pod, its id and its name; of a container that has stopped, also how it ended.

examples:
  criserver events
  criserver events --json | jq .container_id
"""

from __future__ import annotations

import argparse
import sys
import time

from google.protobuf.json_format import MessageToJson

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.table import short_id

WORDS = {
    cri.CONTAINER_CREATED_EVENT: "created",
    cri.CONTAINER_STARTED_EVENT: "started",
    cri.CONTAINER_STOPPED_EVENT: "stopped",
    cri.CONTAINER_DELETED_EVENT: "deleted",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--json", action="store_true", help="print the CRI's message of each, one a line"
    )


def run(options: argparse.Namespace) -> int:
    """Print events until the daemon stops."""
    with Client(options.endpoint) as client, client.doing("get events"):
        for event in client.runtime.GetContainerEvents(cri.GetEventsRequest()):
            line = _json(event) if options.json else describe(event)
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    return 0


def _json(event: cri.ContainerEventResponse) -> str:
    return MessageToJson(
        event,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=None,
    )


def describe(event: cri.ContainerEventResponse) -> str:
    """Return the line of an event."""
    seconds, rest = divmod(event.created_at, 10**9)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
    parts = [f"{moment}.{rest // 10**6:03d}", WORDS[event.container_event_type]]
    pod = event.pod_sandbox_status
    name = f"{pod.metadata.namespace}/{pod.metadata.name}"
    if event.container_id == pod.id:
        return " ".join([*parts, "pod", short_id(pod.id), name])
    parts += ["container", short_id(event.container_id)]
    for status in event.containers_statuses:
        if status.id == event.container_id:
            parts.append(f"{name}/{status.metadata.name}")
            if event.container_event_type == cri.CONTAINER_STOPPED_EVENT:
                parts.append(f"({status.exit_code}, {status.reason})")
    return " ".join(parts)
