"""The OCI command line with directories of its own, called as another program calls it."""

from __future__ import annotations

import array
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtimeshim.cli import sealed
from runtimeshim.linux import mounts
from tests.integration import bundles, harness

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIMESHIM = Path(sys.executable).parent / "runtimeshim"

# Bounds a test that hangs; nothing here takes a second.
TIMEOUT = 60.0


# Cgroups are made by the tests' driver.
SYSTEMD_CGROUP = ["--systemd-cgroup"] if harness.CGROUP_DRIVER == "systemd" else []


class CLI:
    """`runtimeshim --root …`; containers and cgroups of one test."""

    def __init__(self, directory: Path, program: Path = RUNTIMESHIM) -> None:
        self.program = program
        self.directory = directory
        self.root = directory / "root"
        self.cgroup = harness.cgroup_parent(f"crtest-cli-{os.getpid()}-{directory.name}")
        self.layer = bundles.make_layer(directory / "layer")

    def cgroup_of(self, name: str) -> str:
        return harness.cgroup_below(self.cgroup, name)

    def spec(self, args: list[str], **process: Any) -> dict[str, Any]:
        spec = bundles.spec(args, self.cgroup_of("c"), **process)
        return spec | {"root": {"path": str(self.layer)}}

    def bundle(self, args: list[str], **process: Any) -> Path:
        """Write the bundle of a container; its root is one for all of a test."""
        return self.write(self.spec(args, **process))

    def write(self, spec: dict[str, Any], name: str = "bundle") -> Path:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(spec))
        return directory

    def command(self, *arguments: str | Path, flags: Sequence[str] = ()) -> list[str]:
        given = ["--root", str(self.root), *SYSTEMD_CGROUP, *flags]
        return [str(self.program), *given, *map(str, arguments)]

    def __call__(
        self, *arguments: str | Path, flags: Sequence[str] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; streams are captured."""
        given: dict[str, Any] = {
            "capture_output": True,
            "text": True,
            "timeout": TIMEOUT,
            **options,
        }
        return subprocess.run(self.command(*arguments, flags=flags), check=False, **given)

    def ok(self, *arguments: str | Path, **options: Any) -> str:
        """Run something that succeeds and complains of nothing; returns its output."""
        done = self(*arguments, **options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return str(done.stdout)

    def state(self, name: str = "c") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("state", name))
        return found

    def launch(self, bundle: Path, name: str = "c", *verb: str) -> Path:
        """Create, or what `verb` says, a container whose output is a file, which is returned."""
        output = self.directory / f"{name}.out"
        with output.open("wb") as out:
            done = subprocess.run(
                self.command(*(verb or ("create",)), "-b", bundle, name),
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=TIMEOUT,
            )
        assert done.returncode == 0, output.read_text()
        return output

    def created(self, args: list[str], name: str = "c", **process: Any) -> Path:
        return self.launch(self.bundle(args, **process), name)

    def started(self, args: list[str], name: str = "c", **process: Any) -> Path:
        output = self.created(args, name, **process)
        self.ok("start", name)
        return output

    async def status(self, wanted: str, name: str = "c") -> None:
        """Wait for a status."""
        await harness.until(lambda: self.state(name)["status"] == wanted)

    def close(self) -> None:
        """Delete what is there; no cgroup and no directory may be left then."""
        for name in self.ok("list", "-q").split():
            self.ok("delete", "-f", name)
        assert [path.name for path in self.root.glob("[!.]*")] == []
        harness.remove_cgroups(self.cgroup)


@contextmanager
def installed_apart(directory: Path) -> Iterator[Path]:
    """Install with an interpreter of its own, that may be overwritten; returns the program."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    programs = directory / "apart/bin"
    packages = directory / "apart/lib" / version / "site-packages"
    for made in (programs, packages):
        made.mkdir(parents=True)
    (directory / "apart/pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
    shutil.copy(os.path.realpath(sys.executable), programs / "python3")
    (packages / "runtimeshim").symlink_to(REPOSITORY / "runtimeshim")
    try:
        yield Path(shutil.copy(REPOSITORY / "runtimeshim/cli/bin/runtimeshim", programs))
    finally:
        forget_interpreter(programs)


def forget_interpreter(programs: Path) -> None:
    """Unmount the interpreter of an installation that is to go, if it has been mounted."""
    mounted = Path(f"{sealed.INTERPRETERS}{programs}")
    if mounted.is_mount():
        mounts.umount(str(mounted))
        shutil.rmtree(mounted.parent)


@contextmanager
def receiver(directory: Path) -> Iterator[socket.socket]:
    """Listen on DIRECTORY/console.sock."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(directory / "console.sock"))
        listener.listen(1)
        listener.settimeout(TIMEOUT)
        yield listener


def receive_fd(listener: socket.socket) -> tuple[str, int]:
    """Accept a connection and take one fd, with the data beside it."""
    connection, _ = listener.accept()
    with connection:
        fds = array.array("i")
        data, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(fds.itemsize))
        ((_, _, content),) = ancillary
        fds.frombytes(content)
        return data.decode(), fds[0]


def read_all(fd: int) -> str:
    """Read a terminal until its other side is gone, and close it."""
    content = b""
    with open(fd, "rb", buffering=0, closefd=True) as terminal:
        while True:
            try:
                chunk = terminal.read(4096)
            except OSError:  # EIO: the end of a terminal
                return content.decode()
            if not chunk:
                return content.decode()
            content += chunk
