"""Look for what is on this machine and belongs to no pod, container or image of the daemon.

Files, mounts, cgroups, shims, links, address leases, host ports, layers, blobs; and the reverse:
records whose container or namespaces are gone. What is found is looked at twice, seconds apart.
--fix removes what provably is this daemon's own. The daemon does the same from time to time (the
settings `audit.*`). Ends with 1 when something is left that belongs to nobody.

examples:
  criserver audit
  criserver audit --fix
  criserver audit --json
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from api.extension import extension_pb2 as pb
from criserver.cli.client import Client
from criserver.cli.errors import FAILURE
from criserver.cli.table import format_table, short_id


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--fix", action="store_true", help="remove what belongs to nobody")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Ask for an audit and print what it has found."""
    with Client(options.endpoint) as client, client.doing("audit the machine"):
        answer = client.extension.Audit(pb.AuditRequest(fix=options.fix))
    found = json.loads(answer.json)
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        _print(found, options.fix)
    left = [stray for stray in found["strays"] if stray not in found["removed"]]
    return FAILURE if left or found["failures"] else 0


def _print(found: dict[str, Any], fix: bool) -> None:
    if not found["strays"]:
        sys.stdout.write("nothing is left that belongs to nobody\n")
    else:
        rows = [_row(stray, stray in found["removed"]) for stray in found["strays"]]
        sys.stdout.write(format_table(("KIND", "NAME", "OF", "STATE"), rows))
        if not fix and any(stray["removable"] for stray in found["strays"]):
            sys.stderr.write("`criserver audit --fix` removes what can be removed\n")
    for failure in found["failures"]:
        sys.stderr.write(f"{failure}\n")


def _row(stray: dict[str, Any], removed: bool) -> tuple[str, str, str, str]:
    state = "removed" if removed else "left" if stray["removable"] else "to be removed by its owner"
    return stray["kind"], stray["name"], short_id(stray["owner"]) or "-", state
