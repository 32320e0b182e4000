"""`criserver teardown`: end what a daemon leaves running on purpose, and take away what it keeps.

That is the daemon itself, its spawner, the built-in network's bridge and nftables table, and the
run directory; with --purge also the root: images and database. Who has to end is found by lock and
pid file, and waited for. Pods have to be gone: only the daemon can remove them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from api.errors import CRIError
from criserver import config as configuration
from criserver import network_reset
from criserver.config import ConfigError
from criserver.store.database import DatabaseError
from criserver.store.lock import LockedError

END_SECONDS = 30.0  # what a daemon may take to finish its RPCs


class TeardownError(Exception):
    """Something is in the way; nothing after it was touched."""


def main(args: Sequence[str]) -> int:
    """Run `criserver teardown`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="criserver teardown",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--purge", action="store_true", help="delete images and database as well")
    configuration.add_flags(parser)
    options = parser.parse_args(args)
    try:
        config = configuration.load_flags(options)
        teardown(config.root, config.run_dir, purge=options.purge)
    except (
        ConfigError, DatabaseError, LockedError, TeardownError, CRIError, OSError
    ) as err:  # fmt: skip
        sys.stderr.write(f"criserver teardown: {err}\n")
        return 1
    return 0


def teardown(root: Path, run_dir: Path, *, purge: bool) -> None:
    """Take everything down, in the order in which it was built up, backwards; repeatable.

    Raises TeardownError where pods are left or a process does not end.
    """
    pods = run_dir / "sandboxes"
    if pods.is_dir() and (count := len(list(pods.iterdir()))):
        raise TeardownError(
            f"there are {count} pods in {pods}: remove them first, by `criserver rm --all --force`"
        )
    _end(_daemon_pid(run_dir), "criserver")
    _end(_spawner_pid(run_dir), "the spawner")
    network_reset.reset(root, force=True)
    _remove(run_dir)
    if purge:
        _remove(root)


def _daemon_pid(run_dir: Path) -> int | None:
    """Return the pid of the daemon that works in the run directory: it holds the lock there."""
    try:
        with (run_dir / "criserver.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return int((run_dir / "criserver.lock").read_text())
    return None


def _spawner_pid(run_dir: Path) -> int | None:
    """Return the pid of the run directory's spawner, if it still is one."""
    try:
        pid = int((run_dir / "spawner.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return None
    return pid if b"runtimeshim.spawner" in command else None


def _end(pid: int | None, name: str) -> None:
    """Send SIGTERM and wait for the end."""
    if pid is None:
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(process):
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], END_SECONDS)[0]:
            raise TeardownError(f"{name} (pid {pid}) ignores SIGTERM for {END_SECONDS:g} s")


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
