"""This machine's root file system in private: what is written to it is seen by a test alone.

An overlay over / with a tmpfs above it, in a mount namespace that a holder keeps, with a /run, a
/tmp and a /var/log of its own: so there is no systemd in it, as in an image that is being built.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 300.0

HOLD = """
set -eu
mount -t tmpfs -o size=2G tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
for directory in proc sys dev; do mount --rbind "/$directory" "$1/root/$directory"; done
for directory in run tmp var/log; do mount -t tmpfs tmpfs "$1/root/$directory"; done
echo ready
exec sleep infinity
"""


class PrivateRoot:
    """A root that programs can be run in, and whose changes can be listed."""

    def __init__(self) -> None:
        # Short: the path of a socket inside has 107 bytes (man 7 unix).
        self._directory = tempfile.mkdtemp(prefix="root-", dir="/run")
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HOLD, "sh"]
        self._holder = subprocess.Popen(
            [*command, self._directory],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert select.select([self._holder.stdout], [], [], SECONDS)[0]
        assert self._holder.stdout.readline() == b"ready\n"

    def path(self, inside: str | Path) -> Path:
        """Where a path inside is, for a process outside."""
        return Path(f"/proc/{self._holder.pid}/root{self._directory}/root{inside}")

    def command(self, *command: str | Path) -> list[str]:
        """The command line that runs one inside."""
        root = f"{self._directory}/root"
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "chroot", root]
        return [*enter, *map(str, command)]

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside, whatever becomes of it; its output is shown when the test fails."""
        environment = {"PATH": os.defpath + ":/usr/sbin:/sbin:/usr/local/bin", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            self.command(*command), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=SECONDS, check=False, env=environment, **options,
        )  # fmt: skip
        print(command, done.returncode, done.stdout, done.stderr, sep="\n")
        return done

    def do(self, *command: str | Path) -> str:
        """Run a program inside that has to succeed; returns all its output."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def show(self, directory: Path, inside: str) -> None:
        """Have a directory of this machine inside as well."""
        target = f"{self._directory}/root{inside}"
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]
        subprocess.run([*enter, "mkdir", "-p", target], check=True, timeout=SECONDS)
        subprocess.run([*enter, "mount", "--bind", directory, target], check=True, timeout=SECONDS)

    def written(self) -> list[str]:
        """Every file and link that is another one than this machine's, or is gone."""
        upper = Path(f"/proc/{self._holder.pid}/root{self._directory}/upper")
        found = [path for path in upper.rglob("*") if not path.is_dir() or path.is_symlink()]
        return sorted(f"/{path.relative_to(upper)}" for path in found)

    def close(self) -> None:
        """End the holder, and the mounts with it, once nothing runs inside."""
        assert self._holder.stdout is not None
        self._holder.send_signal(signal.SIGKILL)
        self._holder.wait(SECONDS)
        self._holder.stdout.close()
        Path(self._directory).rmdir()
