"""Print what a container has written, to stdout and stderr as it did.

The log is read from its file on this machine, so it can be read and followed while the daemon is
down. With -f it ends when the container has exited.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.containers import container_status, find_container
from criserver.cli.errors import CommandError
from criserver.cli.log_file import LogFile, LogFormatError, LogPrinter, follow, tail

FILE_PAUSE_SECONDS = 0.1
STATE_PAUSE_SECONDS = 0.5  # between questions to the daemon, which cost it more than a stat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("-f", "--follow", action="store_true", help="wait for more until it exits")
    parser.add_argument("-t", "--timestamps", action="store_true", help="begin lines with the time")
    parser.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
    parser.add_argument("container", metavar="CONTAINER", help="id, beginning of an id, or name")


def run(options: argparse.Namespace) -> int:
    """Print the log."""
    with Client(options.endpoint) as client:
        container = find_container(client, options.container)
        log_path = container_status(client, container.id).log_path
        if not log_path:
            raise CommandError(f"container {options.container!r} was created without a log")
        with closing(_open(Path(log_path))) as log:
            _print(log, client, container.id, options)
    return 0


def _open(path: Path) -> LogFile:
    try:
        return LogFile(path)
    except OSError as err:
        raise CommandError(f"cannot read the log {path}: {err.strerror}") from err


def _print(log: LogFile, client: Client, container_id: str, options: argparse.Namespace) -> None:
    printer = LogPrinter(sys.stdout.buffer, sys.stderr.buffer, timestamps=options.timestamps)

    def pause() -> None:
        printer.flush()
        time.sleep(FILE_PAUSE_SECONDS)

    if options.tail is not None:
        for line in tail(log.read_lines(), max(options.tail, 0)):
            _write(printer, line)
    is_over = _exit_check(client, container_id) if options.follow else lambda: True
    for line in follow(log, is_over, pause):
        _write(printer, line)
    printer.flush()


def _write(printer: LogPrinter, line: bytes) -> None:
    try:
        printer.write(line)
    except LogFormatError as err:
        sys.stderr.write(f"criserver logs: {err}\n")


def _exit_check(client: Client, container_id: str) -> Callable[[], bool]:
    """Return a function that tells whether the container has exited, asking now and then.

    A daemon that is down knows nothing and stops nothing: the log is written without it.
    """
    next_question = time.monotonic()

    def has_exited() -> bool:
        nonlocal next_question
        if time.monotonic() < next_question:
            return False
        next_question = time.monotonic() + STATE_PAUSE_SECONDS
        return _has_exited(client, container_id)

    return has_exited


def _has_exited(client: Client, container_id: str) -> bool:
    request = cri.ContainerStatusRequest(container_id=container_id)
    with client.doing(f"get the status of {container_id}"):
        try:
            status = client.runtime.ContainerStatus(request).status
        except grpc.RpcError as err:
            if err.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            if err.code() is grpc.StatusCode.NOT_FOUND:
                return True  # removed
            raise
    return status.state == cri.CONTAINER_EXITED
