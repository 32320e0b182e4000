"""The installer and the Debian package, on this machine's files in private, without a systemd.

What takes a service manager is in tests/vm/test_install.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from tests.integration.daemon import RPC_SECONDS, wait_for
from tests.integration.pods import Pods
from tests.integration.private_root import PrivateRoot
from tests.vm import installables

pytestmark = pytest.mark.integration

OPT = "/opt/criserver"
INSTALLED = f"{OPT}/current/share/criserver/install"
PROGRAM = "/usr/local/bin/criserver"
CONFIG = "/etc/criserver/config.toml"
NODE = "/etc/criserver/config.d/10-node.toml"
IMAGE = "docker.io/library/busybox:latest"
COUNT = 10  # pods under an upgrade


@pytest.fixture(scope="module", autouse=True)
def made() -> Path:
    """Two versions as bundles and packages; made of the sources as they are."""
    installables.provide()
    return installables.MADE


@pytest.fixture
def root(made: Path) -> Iterator[PrivateRoot]:
    private = PrivateRoot()
    private.show(made, "/tmp/made")
    try:
        yield private
    finally:
        private.close()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first version's directory, as the first installation has made it: empty before that."""
    return tmp_path_factory.mktemp("unpacked")


@pytest.fixture
def installed(root: PrivateRoot, unpacked: Path) -> PrivateRoot:
    """A root with the first version, which is made anew only for the first test."""
    for directory in unpacked.iterdir():
        shutil.copytree(directory, root.path(f"{OPT}/{directory.name}"), symlinks=True)
    root.do("/tmp/made/bundle-1/install")
    if not any(unpacked.iterdir()):
        version = current(root)
        shutil.copytree(root.path(f"{OPT}/{version}"), unpacked / version, symlinks=True)
    return root


def current(root: PrivateRoot) -> str:
    return os.readlink(root.path(f"{OPT}/current"))


def versions(root: PrivateRoot) -> list[str]:
    found = [path for path in root.path(OPT).iterdir() if not path.is_symlink()]
    return sorted(path.name.partition("-")[0] for path in found)


def test_an_installation_can_be_used_repeated_and_removed(installed: PrivateRoot) -> None:
    root = installed
    assert re.fullmatch(r"0\.1\.0-[0-9a-f]{8}", current(root))
    assert root.do(PROGRAM, "--version") == "criserver 0.1.0\n"
    assert "runtimeshim version 0.1.0" in root.do("/usr/local/bin/runtimeshim", "--version")
    assert "config.toml" in root.do(PROGRAM, "config", "check")
    enabled = root.path("/etc/systemd/system/multi-user.target.wants/criserver.service")
    if shutil.which("systemctl"):  # the root's programs are this machine's
        assert os.readlink(enabled) == "/usr/local/lib/systemd/system/criserver.service"
    else:
        assert not enabled.is_symlink()
    written = root.written()
    assert "is installed already" in root.do("/tmp/made/bundle-1/install")
    assert root.written() == written
    assert "criserver is removed" in root.do(INSTALLED, "--uninstall", "--purge")
    assert root.written() == []
    assert "not installed" in root.do("/tmp/made/bundle-1/install", "--uninstall")


def test_what_a_person_made_is_kept(installed: PrivateRoot) -> None:
    root = installed
    root.path(CONFIG).write_text('log_level = "debug"\n')
    root.path(NODE).unlink()
    said = root.do("/tmp/made/bundle-2/install")
    assert f"{CONFIG} was edited and is kept" in said
    assert root.path(CONFIG).read_text() == 'log_level = "debug"\n'
    assert not root.path(NODE).exists()
    said = root.do(INSTALLED, "--uninstall")  # no terminal to ask at: all is kept
    assert "kept: /etc/criserver" in said
    assert root.written() == [CONFIG]


def test_a_version_that_cannot_read_the_configuration_changes_nothing(
    installed: PrivateRoot,
) -> None:
    root = installed
    root.path("/etc/criserver/config.d/50-x.toml").write_text("colour = 1\n")
    written = root.written()
    done = root.run("/tmp/made/bundle-2/install")
    assert done.returncode == 1
    assert "/etc/criserver/config.d/50-x.toml:1: unknown key 'colour'" in done.stderr
    assert "nothing was changed" in done.stderr
    assert root.written() == written


def test_what_an_interrupted_installation_left_is_cleared(installed: PrivateRoot) -> None:
    root = installed
    left = root.path(f"{OPT}/.new-abcdef/lib")
    left.mkdir(parents=True)
    root.do("/tmp/made/bundle-1/install")
    assert not left.parent.exists()


def test_a_damaged_bundle_is_refused(root: PrivateRoot, made: Path) -> None:
    shutil.copytree(made / "bundle-1", root.path("/tmp/bad"), symlinks=True)
    with root.path("/tmp/bad/share/config.toml").open("a") as file:
        file.write("#\n")
    done = root.run("/tmp/bad/install")
    assert done.returncode == 1
    assert "the bundle /tmp/bad is damaged: copy it again" in done.stderr
    assert root.written() == []


def test_a_bundle_for_another_python_is_refused(root: PrivateRoot, made: Path) -> None:
    shutil.copytree(made / "bundle-1", root.path("/tmp/other"), symlinks=True)
    root.path("/tmp/other/bundle.env").write_text("PYTHON=3.99-riscv64\n")
    done = root.run("/tmp/other/install")
    assert done.returncode == 1
    assert "is for Python 3.99-riscv64" in done.stderr


def test_programs_that_are_not_ours_are_not_replaced(root: PrivateRoot) -> None:
    root.path(PROGRAM).write_text("#!/bin/sh\n")
    done = root.run("/tmp/made/bundle-1/install")
    assert done.returncode == 1
    assert f"{PROGRAM} is not ours" in done.stderr
    assert root.written() == [PROGRAM]


class Served:
    """A daemon inside; stands in for a test's Daemon. Its pods are on this machine's network."""

    log_directory = Path("/var/log/pods")

    def __init__(self, root: PrivateRoot) -> None:
        self.root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def start(self) -> None:
        """Start the version that is current."""
        with self.root.path("/tmp/daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.root.command(PROGRAM, "serve"), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        log_text = self.root.path("/tmp/daemon.log").read_text()
        assert "serving CRI v1" in line, log_text
        socket = self.root.path("/run/criserver/criserver.sock")
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def stop(self) -> None:
        """End the daemon; its containers go on. Repeatable."""
        if self._process is not None and self._channel is not None:
            self._channel.close()
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(60) == 0
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    @property
    def runtime(self) -> api_pb2_grpc.RuntimeServiceStub:
        """The RuntimeService of the daemon that runs now."""
        return api_pb2_grpc.RuntimeServiceStub(self._channel)


@pytest.fixture
def served(installed: PrivateRoot) -> Iterator[Served]:
    # An overlay can have no layer in one that is on another itself, as / is inside.
    installed.path("/etc/criserver/config.d/50-root.toml").write_text('root = "/run/state"\n')
    daemon = Served(installed)
    daemon.start()
    try:
        archive = installed.path("/tmp/busybox.tar")
        subprocess.run(
            [sys.executable, installables.ROOT / "hack/busybox-archive", archive], check=True
        )
        installed.do(PROGRAM, "image", "import", "/tmp/busybox.tar")
        yield daemon
    finally:
        if installed.path(PROGRAM).exists():
            installed.run(PROGRAM, "rm", "--all", "--force")
            daemon.stop()
            installed.run(PROGRAM, "teardown", "--purge")
        daemon.stop()


def test_ten_pods_outlive_the_version_that_started_them(served: Served) -> None:
    root = served.root
    pods = Pods(served)  # type: ignore[arg-type]
    image = cri.ImageSpec(image=IMAGE)
    script = "trap 'exit 9' TERM; i=0; while :; do echo $((i+=1)); sleep 0.2; done"
    made = [pods.run(pods.run_pod(), "sh", "-c", script, image=image) for _ in range(COUNT)]
    before = [pods.status(container) for container in made]
    first = current(root)

    root.do("/tmp/made/bundle-2/install")
    assert versions(root) == ["0.1.0", "0.1.1"]
    served.stop()
    served.start()
    version = served.runtime.Version(cri.VersionRequest(), timeout=RPC_SECONDS)
    assert version.runtime_version == "0.1.1"
    # Nothing of the version that their shims are of is needed on disk any more.
    root.do("rm", "-r", f"{OPT}/{first}", f"{OPT}/previous")
    assert [pods.status(container) for container in made] == before
    for container in made:
        assert pods.exec(container, "echo", "still").stdout == b"still\n"
        log = root.path(pods.status(container).log_path)
        numbers = [int(line.split(" ", 3)[3]) for line in log.read_text().splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))
        request = cri.ReopenContainerLogRequest(container_id=container)
        served.runtime.ReopenContainerLog(request, timeout=RPC_SECONDS)
    done = root.run(INSTALLED, "--uninstall", "--purge")
    assert done.returncode == 1
    assert f"{COUNT} pods are on this node" in done.stderr
    pods.stop(made[0], 60)
    assert pods.status(made[0]).exit_code == 9

    root.do(INSTALLED, "--uninstall", "--purge", "--remove-pods")
    wait_for(lambda: served._process is None or served._process.poll() is not None, "its end")
    assert root.written() == []


def test_rollback_and_the_removal_of_versions_in_nobodys_use(installed: PrivateRoot) -> None:
    root = installed
    assert root.run(INSTALLED, "--rollback").returncode == 1
    first = current(root)
    root.do("/tmp/made/bundle-2/install")
    second = current(root)
    root.do(INSTALLED, "--rollback")
    assert current(root) == first
    assert root.do(PROGRAM, "--version") == "criserver 0.1.0\n"
    root.do(INSTALLED, "--rollback")
    assert current(root) == second
    root.path(f"{OPT}/0.0.9-00000000").mkdir()
    root.do("/tmp/made/bundle-2/install")
    assert versions(root) == ["0.1.0", "0.1.1"]


def without_dpkg(root: PrivateRoot) -> list[str]:
    """What was written but for the package manager's own records."""
    return [path for path in root.written() if not path.startswith("/var/lib/dpkg/")]


def test_the_package_installs_upgrades_and_purges(root: PrivateRoot) -> None:
    root.do("dpkg", "--install", "/tmp/made/criserver-1.deb")
    assert root.do("/usr/bin/criserver", "--version") == "criserver 0.1.0\n"
    assert "runtimeshim version 0.1.0" in root.do("/usr/bin/runtimeshim", "--version")
    assert NODE in root.do("/usr/bin/criserver", "config", "check")
    assert root.do("dpkg", "--verify", "criserver") == ""
    enabled = root.path("/etc/systemd/system/multi-user.target.wants/criserver.service")
    assert os.readlink(enabled).endswith("/systemd/system/criserver.service")
    done = root.run("/tmp/made/bundle-1/install")
    assert "installed as a Debian package" in done.stderr

    root.path(CONFIG).write_text('log_level = "debug"\n')
    root.do("dpkg", "--force-confold", "--install", "/tmp/made/criserver-2.deb")
    assert root.do("/usr/bin/criserver", "--version") == "criserver 0.1.1\n"
    assert root.path(CONFIG).read_text() == 'log_level = "debug"\n'
    root.do("dpkg", "--remove", "criserver")
    assert root.path(CONFIG).exists()
    assert not root.path("/usr/lib/criserver").exists()
    root.do("dpkg", "--purge", "criserver")
    assert without_dpkg(root) == []


def test_package_and_script_exclude_each_other(installed: PrivateRoot) -> None:
    done = installed.run("dpkg", "--install", "/tmp/made/criserver-1.deb")
    assert done.returncode != 0
    assert "was installed by deploy/install" in done.stderr
    assert installed.do(PROGRAM, "--version") == "criserver 0.1.0\n"
