"""Debian's podman with `runtimeshim` in runc's place: nothing of podman's own is changed.

Its storage, state and events are private to the test; the one image is made here.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.linux.cgroups import units
from tests.integration import bundles, harness
from tests.integration.oci_cli import RUNTIMESHIM, read_all

IMAGE = "localhost/busybox:test"
TIMEOUT = 120.0

# Podman asks for more than a machine without CAP_SYS_RESOURCE may give.
LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]


class Podman:
    """podman with everything below one directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "oci"
        self.parent = harness.cgroup_parent(f"crtest-podman-{os.getpid()}")
        # Not by --runtime-flag: podman's own cleanup after a container's end forgets that.
        runtime = directory / "runtimeshim"
        runtime.write_text(f'#!/bin/sh\nexec {RUNTIMESHIM} --root {self.root} "$@"\n')
        runtime.chmod(0o755)
        self.runtime = str(runtime)
        self._flags = [
            f"--root={directory}/storage",
            f"--runroot={directory}/run",
            f"--tmpdir={directory}/tmp",
            "--storage-driver=vfs",
            f"--cgroup-manager={harness.CGROUP_DRIVER}",
            "--events-backend=file",
            f"--runtime={runtime}",
        ]

    def command(self, *arguments: str) -> list[str]:
        return ["podman", *self._flags, *arguments]

    def run(self, *arguments: str) -> list[str]:
        """Return the arguments of `podman run` that all containers here have."""
        return [
            "run",
            "--network=none",
            f"--cgroup-parent={self.parent}",
            *LIMITS,
            *arguments,
        ]

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"capture_output": True, "text": True, **options}
        command = self.command(*arguments)
        return subprocess.run(command, check=False, timeout=TIMEOUT, **given)

    def ok(self, *arguments: str, **options: Any) -> str:
        done = self(*arguments, **options)
        assert done.returncode == 0, done
        return str(done.stdout)

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.ok("inspect", name))
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman with an image of busybox, loaded from a local archive."""
    directory = tmp_path_factory.mktemp("podman")
    layer = bundles.make_layer(directory / "layer")
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", layer, "-cf", archive, "."], check=True)
    podman = Podman(directory)
    podman.ok("import", str(archive), IMAGE)
    try:
        yield podman
    finally:
        podman.ok("rm", "--all", "--force", "--time=0")
        podman.ok("rmi", "--all", "--force")
        if harness.CGROUP_DRIVER == "cgroupfs":
            harness.remove_cgroups(f"{podman.parent}/conmon")
        harness.remove_cgroups(podman.parent)
        # Podman's own mount of its storage upon itself stays as long as the machine runs.
        subprocess.run(["umount", "--quiet", directory / "storage/vfs"], check=False)


@pytest.fixture
def podman(installed: Podman) -> Iterator[Podman]:
    yield installed
    installed.ok("rm", "--all", "--force", "--time=0")
    assert [path.name for path in installed.root.glob("[!.]*")] == []


def test_run_passes_output_input_and_exit_codes(podman: Podman) -> None:
    script = "cat; echo err >&2; exit 7"
    done = podman(*podman.run("--rm", "-i", IMAGE, "sh", "-c", script), input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "err\n")


def test_what_cannot_be_run_has_podmans_exit_codes(podman: Podman) -> None:
    assert podman(*podman.run("--rm", IMAGE, "nonesuch")).returncode == 127
    assert podman(*podman.run("--rm", IMAGE, "/etc/passwd")).returncode == 126


def test_our_runtime_it_is(podman: Podman) -> None:
    podman.ok(*podman.run("-d", "--name=c", IMAGE, "sleep", "1000"))
    assert podman.inspect("c")["OCIRuntime"] == podman.runtime
    assert [path.name for path in podman.root.glob("[!.]*")] == [podman.inspect("c")["Id"]]


def test_exec_with_a_terminal(podman: Podman) -> None:
    podman.ok(*podman.run("-d", "--name=c", IMAGE, "sleep", "1000"))
    master, slave = os.openpty()
    command = podman.command("exec", "-it", "c", "sh", "-c", "tty; read x; echo got $x; exit 5")
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while b"/dev/pts/0" not in shown:
        shown += os.read(master, 4096)
    os.write(master, b"typed\n")
    assert "got typed" in read_all(master)
    assert process.wait(TIMEOUT) == 5


def test_run_with_a_terminal(podman: Podman) -> None:
    master, slave = os.openpty()
    command = podman.command(*podman.run("-it", "--rm", IMAGE, "sh", "-c", "tty; exit 9"))
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert "/dev/pts/0" in read_all(master)
    assert process.wait(TIMEOUT) == 9


def test_exec_passes_streams_and_exit_codes(podman: Podman) -> None:
    podman.ok(*podman.run("-d", "--name=c", IMAGE, "sleep", "1000"))
    done = podman("exec", "-i", "c", "sh", "-c", "cat; echo err >&2; exit 4", input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (4, "in\n", "err\n")


def test_stop_start_kill_and_rm(podman: Podman) -> None:
    script = "trap 'echo got; exit 3' TERM; echo up; sleep 1000 & wait"
    podman.ok(*podman.run("-d", "--name=c", IMAGE, "sh", "-c", script))
    while "up" not in podman.ok("logs", "c"):
        assert podman.inspect("c")["State"]["Status"] == "running"
    podman.ok("stop", "c")
    assert "got" in podman.ok("logs", "c")
    state = podman.inspect("c")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
    podman.ok("start", "c")
    podman.ok("kill", "c")
    assert podman.ok("wait", "c").strip() == "137"
    podman.ok("rm", "c")
    assert podman.ok("ps", "-aq") == ""


def test_pause_top_and_stats(podman: Podman) -> None:
    podman.ok(*podman.run("-d", "--name=c", "--memory=64m", IMAGE, "sleep", "1000"))
    podman.ok("pause", "c")
    assert podman.inspect("c")["State"]["Status"] == "paused"
    podman.ok("unpause", "c")
    assert "sleep 1000" in podman.ok("top", "c")
    (stats,) = json.loads(podman.ok("stats", "--no-stream", "--format=json", "c"))
    assert stats["mem_usage"].endswith("/ 67.11MB")
    assert stats["pids"] == "1"


def test_volumes_users_and_read_only_roots(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    tmp_path.chmod(0o755)
    script = "cat /data/file; id -u; touch /x || echo read-only"
    done = podman(
        *podman.run(
            "--rm", f"--volume={tmp_path}:/data:ro", "--read-only", "--user=1000:1000", IMAGE,
            "sh", "-c", script,
        )
    )  # fmt: skip
    assert done.stdout == "of the host\n1000\nread-only\n"


def test_the_cgroup_is_a_directory_or_a_scope_below_the_parent(podman: Podman) -> None:
    identity = podman.ok(*podman.run("-d", "--name=c", IMAGE, "sleep", "1000")).strip()
    pid = podman.inspect("c")["State"]["Pid"]
    name = f"libpod-{identity}" + (".scope" if harness.CGROUP_DRIVER == "systemd" else "")
    expected = f":{units.directory(podman.parent)}/{name}\n"
    assert expected in Path(f"/proc/{pid}/cgroup").read_text()


def test_the_hosts_network(podman: Podman) -> None:
    arguments = podman.run("--rm", IMAGE, "readlink", "/proc/self/ns/net")
    arguments[arguments.index("--network=none")] = "--network=host"
    assert podman.ok(*arguments).strip() == os.readlink("/proc/self/ns/net")
