"""Debian's containerd with `runtimeshim` as the BinaryName of its runc shim.

The daemon is private to the module: root, state and socket; its client is the package's own, ctr.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.linux import cgroups
from tests.integration import bundles, harness
from tests.integration.oci_cli import RUNTIMESHIM, read_all

IMAGE = "localhost/busybox:test"
NAMESPACE = f"crtest-{os.getpid()}"
# Where containerd puts containers of a namespace, without being told.
CGROUP = harness.cgroup_parent(NAMESPACE)
TIMEOUT = 120.0


class Containerd:
    """A containerd without CRI, and ctr to talk to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "oci"
        self.log = directory / "log"
        config = directory / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{directory}/root"\n'
            f'state = "{directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{directory}/sock"\n'
            f'[ttrpc]\naddress = "{directory}/sock.ttrpc"\n'
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["containerd", "--config", config], stdout=log, stderr=log
            )
        while self("version").returncode:  # until it serves
            assert self.process.poll() is None, self.log.read_text()

    def command(self, *arguments: str | Path) -> list[str]:
        given = ["--address", f"{self.directory}/sock", "--namespace", NAMESPACE]
        return ["ctr", *given, *map(str, arguments)]

    def run(self, *arguments: str) -> list[str]:
        """Return the arguments of `ctr run`: the shim option BinaryName is --runc-binary."""
        binary = ["--runc-binary", str(RUNTIMESHIM), "--runc-root", str(self.root)]
        if harness.CGROUP_DRIVER == "systemd":
            binary += ["--runc-systemd-cgroup", "--cgroup", f"{CGROUP}:{NAMESPACE}:c"]
        return ["run", *binary, "--snapshotter", "native", *arguments]

    def __call__(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"capture_output": True, "text": True, **options}
        command = self.command(*arguments)
        return subprocess.run(command, check=False, timeout=TIMEOUT, **given)

    def ok(self, *arguments: str | Path, **options: Any) -> str:
        done = self(*arguments, **options)
        assert done.returncode == 0, (done, self.log.read_text())
        return str(done.stdout)

    def start(self, name: str, *args: str) -> None:
        """Start a container that nobody waits for."""
        done = subprocess.run(
            self.command(*self.run("-d", "--null-io", IMAGE, name, *args)), check=False
        )
        assert done.returncode == 0, self.log.read_text()

    def status(self, name: str) -> str:
        lines = (line.split() for line in self.ok("task", "ls").splitlines()[1:])
        return next(line[2] for line in lines if line[0] == name)

    def containers(self) -> list[str]:
        """The containers that the runtime knows."""
        return [path.name for path in (self.root / NAMESPACE).glob("[!.]*")]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(TIMEOUT)
        harness.remove_cgroups(CGROUP)


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """containerd with an image of busybox, loaded from a local archive."""
    directory = tmp_path_factory.mktemp("containerd")
    archive = make_image(directory)
    running = Containerd(directory)
    try:
        running.ok("image", "import", "--snapshotter", "native", archive)
        yield running
    finally:
        running.stop()


def make_image(directory: Path) -> Path:
    """Write an OCI archive with one layer, by umoci and skopeo."""
    layout = f"{directory}/layout"
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:test"], check=True)
    layer = bundles.make_layer(directory / "layer")
    insert = ["umoci", "insert", "--image", f"{layout}:test", layer, "/"]
    subprocess.run(insert, check=True)
    config = ["umoci", "config", "--image", f"{layout}:test", "--config.env", "PATH=/bin"]
    subprocess.run(config, check=True)
    archive = directory / "image.tar"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:test"]
    subprocess.run([*copy, f"docker-archive:{archive}:{IMAGE}"], check=True)
    return archive


@pytest.fixture
def ctr(containerd: Containerd) -> Iterator[Containerd]:
    yield containerd
    for name in containerd.ok("task", "ls", "-q").split():
        containerd("task", "kill", "-s", "SIGKILL", name)
        containerd("task", "delete", "--force", name)
    for name in containerd.ok("container", "ls", "-q").split():
        containerd.ok("container", "delete", name)
    assert containerd.containers() == []


def test_run_passes_output_and_exit_codes(ctr: Containerd) -> None:
    done = ctr(*ctr.run("--rm", IMAGE, "c", "sh", "-c", "echo out; echo err >&2; exit 5"))
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")


def test_the_error_of_a_create_arrives(ctr: Containerd) -> None:
    done = ctr(*ctr.run("--rm", IMAGE, "c", "nonesuch"))
    assert done.returncode == 1
    assert "executable file not found in $PATH" in done.stderr


def test_a_containers_life(ctr: Containerd) -> None:
    ctr.start("c", "sleep", "1000")
    assert ctr.containers() == ["c"]
    assert ctr.status("c") == "RUNNING"
    ctr.ok("task", "pause", "c")
    assert ctr.status("c") == "PAUSED"
    ctr.ok("task", "resume", "c")
    assert ctr.status("c") == "RUNNING"
    assert len(ctr.ok("task", "ps", "c").splitlines()) == 2
    usage = {1: "memory.usage_in_bytes", 2: "memory.usage "}[cgroups.manager().version]
    assert usage in ctr.ok("task", "metrics", "c")
    ctr.ok("task", "kill", "-s", "SIGKILL", "c")
    ctr("task", "delete", "c")  # tells of the exit code, 137
    ctr.ok("container", "delete", "c")
    assert ctr.containers() == []


def test_exec_passes_output_and_exit_codes(ctr: Containerd) -> None:
    ctr.start("c", "sleep", "1000")
    arguments = ["--exec-id", "e", "c", "sh", "-c", "echo out; echo err >&2; exit 6"]
    done = ctr("task", "exec", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (6, "out\n", "err\n")


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_terminals(ctr: Containerd, verb: str) -> None:
    script = ["sh", "-c", "tty; read x; echo got $x; exit 3"]
    if verb == "run":
        command = ctr.command(*ctr.run("--rm", "-t", IMAGE, "c", *script))
    else:
        ctr.start("c", "sleep", "1000")
        command = ctr.command("task", "exec", "-t", "--exec-id", "e", "c", *script)
    master, slave = os.openpty()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while b"/dev/pts/0" not in shown:
        shown += os.read(master, 4096)
    os.write(master, b"typed\n")
    assert "got typed" in read_all(master)
    assert process.wait(TIMEOUT) == 3


def test_killing_what_has_ended_is_no_such_process(ctr: Containerd) -> None:
    ctr.start("c", "true")
    while ctr.status("c") != "STOPPED":
        pass
    done = ctr("task", "kill", "c")
    assert done.returncode == 1
    assert "process already finished" in done.stderr or "not found" in done.stderr


def test_a_killed_shim_leaves_nothing_of_the_runtime(ctr: Containerd) -> None:
    ctr.start("c", "sleep", "1000")
    pid = int(next(line.split()[1] for line in ctr.ok("task", "ls").splitlines() if "c " in line))
    shim = int(Path(f"/proc/{pid}/status").read_text().split("PPid:\t")[1].split()[0])
    assert "containerd-shim-runc-v2" in Path(f"/proc/{shim}/cmdline").read_text()
    os.kill(shim, signal.SIGKILL)
    while ctr.containers():  # containerd cleans up by `delete --force`
        assert ctr.process.poll() is None
