"""`criserver network reset`: take the built-in network off this machine, without a trace.

It works on the directories of a daemon that does not run. What is host-wide and may be others' by
now stays: the sysctls that turn forwarding on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from api.errors import CRIError
from criserver import config as configuration
from criserver.config import ConfigError
from criserver.store.database import FILE_NAME, DatabaseError, open_database
from criserver.store.lock import Lock, LockedError
from podsandbox.network.builtin import BuiltinConfig, BuiltinNetwork
from podsandbox.network.pod_cidrs import PodCIDRs


class InUseError(Exception):
    """Pods would lose their network."""


def main(args: Sequence[str]) -> int:
    """Run `criserver network reset`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="criserver network", description="Look after the built-in network."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "reset",
        help="remove its bridge, links, rules and leases; the daemon must not run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--force", action="store_true", help="although pods hold addresses: they lose their network"
    )
    configuration.add_flags(command)
    options = parser.parse_args(args)
    try:
        config = configuration.load_flags(options)
        removed = reset(config.root, force=options.force)
    except LockedError as err:
        sys.stderr.write(f"criserver network reset: {err}; stop it first\n")
        return 1
    except (ConfigError, DatabaseError, InUseError, CRIError, OSError) as err:
        sys.stderr.write(f"criserver network reset: {err}\n")
        return 1
    sys.stdout.write(f"{removed or 'there is no built-in network to remove'}\n")
    return 0


def reset(root: Path, *, force: bool) -> str:
    """Remove the network of the daemon with this root; returns what was removed, "" for nothing.

    Raises LockedError while the daemon runs, InUseError without `force` while pods hold addresses.
    """
    if not (root / FILE_NAME).exists():
        return ""
    lock = Lock([root])
    try:
        with contextlib.closing(open_database(root)) as connection:
            network = BuiltinNetwork(BuiltinConfig(), connection, PodCIDRs(connection))
            return asyncio.run(_remove(network, force=force))
    finally:
        lock.release()


async def _remove(network: BuiltinNetwork, *, force: bool) -> str:
    try:
        holders = network.holders()
        if holders and not force:
            raise InUseError(
                f"{len(holders)} pods hold addresses: remove them first, or reset with --force"
            )
        bridge = await network.reset()
        return bridge and f"removed {bridge}"
    finally:
        await network.close()
