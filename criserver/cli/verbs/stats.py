"""Show what containers use: CPU, memory, disk, and the network of their pods.

On a terminal the table is live, until it is interrupted; elsewhere, or with --no-stream, it is
printed once. CPU is measured over the time between two lines: 100 % is one whole CPU. MEMORY is the
working set, which the kernel cannot drop, and its share of the limit; DISK the writable layer.
NET I/O is of the whole pod.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.containers import find_container
from criserver.cli.table import format_table, short_id, size

HEADER = ("CONTAINER ID", "NAME", "POD", "CPU", "MEMORY / LIMIT", "SHARE", "NET I/O", "DISK")

# From the top left corner on, and what was there before is wiped out (man 4 console_codes).
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
CLEAR_SCREEN = "\x1b[2J"

DEFAULT_SECONDS = 1.0


class Sample(NamedTuple):
    """What one container used at one time."""

    container_id: str
    name: str
    pod: str
    at: int  # ns
    cpu: int  # ns of CPU time since its start
    memory: int
    memory_limit: int  # 0: none
    received: int
    sent: int
    disk: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--no-stream", action="store_true", help="print the table once")
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help=f"between two measurements (default {DEFAULT_SECONDS:g})",
    )
    parser.add_argument(
        "containers", nargs="*", metavar="CONTAINER", help="id or name (default: all that run)"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("must be from 0.1 to 3600")
    return value


def run(options: argparse.Namespace) -> int:
    """Print the table, again and again on a terminal."""
    live = sys.stdout.isatty() and not options.no_stream
    with Client(options.endpoint) as client:
        wanted = {find_container(client, reference).id for reference in options.containers}
        before = {sample.container_id: sample for sample in samples(client, wanted)}
        if live:
            sys.stdout.write(CLEAR_SCREEN)
        while True:
            time.sleep(options.interval)
            now = list(samples(client, wanted))
            table = format_table(HEADER, [row(each, before) for each in now])
            sys.stdout.write(_over(table) if live else table)
            sys.stdout.flush()
            if not live:
                return 0
            before = {sample.container_id: sample for sample in now}


def _over(table: str) -> str:
    """Return what draws the table over the one before, without flicker."""
    return HOME + table.replace("\n", f"{CLEAR_LINE}\n") + CLEAR_BELOW


def samples(client: Client, wanted: set[str]) -> Iterator[Sample]:
    """Yield what the wanted containers use, or all that run if none is named."""
    with client.doing("get statistics"):
        pods = client.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats
    for pod in pods:
        for container in pod.linux.containers:
            if not wanted or container.attributes.id in wanted:
                yield _sample(pod, container)


def _sample(pod: cri.PodSandboxStats, container: cri.ContainerStats) -> Sample:
    network = pod.linux.network.default_interface
    memory = container.memory.working_set_bytes.value
    limited = container.memory.HasField("available_bytes")
    return Sample(
        container_id=container.attributes.id,
        name=container.attributes.metadata.name,
        pod=pod.attributes.metadata.name,
        at=container.cpu.timestamp,
        cpu=container.cpu.usage_core_nano_seconds.value,
        memory=memory,
        memory_limit=memory + container.memory.available_bytes.value if limited else 0,
        received=network.rx_bytes.value,
        sent=network.tx_bytes.value,
        disk=container.writable_layer.used_bytes.value,
    )


def row(sample: Sample, before: Mapping[str, Sample]) -> Sequence[str]:
    """Return a container's line; CPU needs an earlier sample of it."""
    earlier = before.get(sample.container_id)
    cpu = "-"
    if earlier is not None and sample.at > earlier.at:
        cpu = f"{(sample.cpu - earlier.cpu) / (sample.at - earlier.at):.1%}"
    limit, share = "-", "-"
    if sample.memory_limit:
        limit, share = size(sample.memory_limit), f"{sample.memory / sample.memory_limit:.1%}"
    return (
        short_id(sample.container_id),
        sample.name,
        sample.pod,
        cpu,
        f"{size(sample.memory)} / {limit}",
        share,
        f"{size(sample.received)} / {size(sample.sent)}",
        size(sample.disk),
    )
