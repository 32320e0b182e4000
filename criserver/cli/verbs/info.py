"""Show the state of the runtime: is it ready, which handlers has it, how is it set up."""

from __future__ import annotations

import argparse
import json

from api.cri import api_pb2 as cri
from criserver.cli.client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: there are none."""


def run(options: argparse.Namespace) -> int:
    """Print the status."""
    with Client(options.endpoint) as client, client.doing("get the runtime's status"):
        version = client.runtime.Version(cri.VersionRequest())
        answer = client.runtime.Status(cri.StatusRequest(verbose=True))
    print(f"runtime: {version.runtime_name} {version.runtime_version}")
    print(f"endpoint: {client.endpoint}")
    for condition in answer.status.conditions:
        print(f"{condition.type}: {_condition(condition)}")
    handlers = ", ".join(handler.name or '""' for handler in answer.runtime_handlers)
    print(f"runtime handlers: {handlers}")
    for key, value in sorted(answer.info.items()):
        print(f"{key}: {_pretty(value)}")
    return 0


def _condition(condition: cri.RuntimeCondition) -> str:
    if condition.status:
        return "yes"
    return f"no: {condition.reason}: {condition.message}"


def _pretty(value: str) -> str:
    try:
        return json.dumps(json.loads(value), indent=2)
    except ValueError:  # a plain string
        return value
