"""Installer and package on a node: install, upgrade and go back under running pods, and be gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.pods import Pods
from tests.vm import service
from tests.vm.installables import MADE
from tests.vm.service import Service, systemctl
from tests.vm.test_service import COUNT, MEMORY, await_more_lines, lines, state_of

# An emulated machine is slow, and slower yet with this in each of the pods too often.
PRINT = "i=0; while true; do i=$((i+1)); echo $i; sleep 2; done"
PATIENCE = Path("/etc/systemd/system/criserver.service.d/emulated.conf")

OLD, NEW = "criserver 0.1.0", "criserver 0.1.1"
INSTALLED = Path("/opt/criserver/current/share/criserver/install")

# Where an installation could leave something; less what others write there meanwhile.
WATCHED = ("/etc", "/usr", "/opt", "/lib", "/var/lib", "/var/log", "/run", "/root")
OTHERS = (
    "/opt/venv/", "/var/lib/dpkg/", "/var/lib/vm-results", "/var/lib/systemd/timers",
    "/var/log/journal", "/var/log/dpkg.log", "/var/log/apt", "/var/log/pods", "/run/log",
    "/run/systemd/", "/run/udev", "/run/user", "/run/dbus", "/root/.cache", "/etc/apparmor.d/cache",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How criserver comes on the node and goes again, as command lines."""

    install: list[str]
    upgrade: list[str]
    go_back: list[str]
    uninstall: list[str]
    program: str


SCRIPT = Way(
    install=[f"{MADE}/bundle-1/install"],
    upgrade=[f"{MADE}/bundle-2/install"],
    go_back=[str(INSTALLED), "--rollback"],
    uninstall=[str(INSTALLED), "--uninstall", "--purge"],
    program="/usr/local/bin/criserver",
)
PACKAGE = Way(
    install=["dpkg", "--install", f"{MADE}/criserver-1.deb"],
    upgrade=["dpkg", "--install", f"{MADE}/criserver-2.deb"],
    go_back=["dpkg", "--install", f"{MADE}/criserver-1.deb"],
    uninstall=["dpkg", "--purge", "criserver"],
    program="/usr/bin/criserver",
)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(command, done.returncode, done.stdout, done.stderr, sep="\n")
    return done


def do(command: list[str]) -> str:
    done = run(command)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout + done.stderr


def snapshot() -> set[str]:
    """Everything on the node that an installation may have made."""
    found = {
        str(path)
        for top in WATCHED
        for path in Path(top).rglob("*")
        if not str(path).startswith(OTHERS) and "__pycache__" not in path.parts
    }
    for command in (["ip", "-o", "link"], ["nft", "list", "tables"], ["findmnt", "-rno", "TARGET"]):
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= {f"{command[0]}: {line.split('@')[0][:60]}" for line in output.splitlines()}
    cgroups = Path("/sys/fs/cgroup").rglob("*")
    found |= {str(path) for path in cgroups if path.is_dir() and "cri" in path.name}
    for process in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = process.read_text().strip()
        except FileNotFoundError:
            continue
        if name.startswith(("criserver", "shim")):
            found.add(f"process: {name}")
    return found


@pytest.fixture(scope="module", params=[SCRIPT, PACKAGE], ids=["script", "package"])
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    return way


class Node(Service):
    """The service, as the way under test has installed it."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    def change(self, command: list[str]) -> str:
        """Install another version; the socket is another's then."""
        self.close()
        return do(command)

    def import_busybox(self) -> None:
        archive = "/var/tmp/busybox.tar"
        do([sys.executable, str(service.ROOT / "hack/busybox-archive"), archive])
        do([self.way.program, "image", "import", archive])
        Path(archive).unlink()


@pytest.fixture(scope="module")
def before() -> set[str]:
    return snapshot()


@pytest.fixture(scope="module")
def node(way: Way, before: set[str]) -> Iterator[Node]:
    made = Node(way)
    PATIENCE.parent.mkdir(exist_ok=True)
    PATIENCE.write_text("[Service]\nTimeoutStartSec=1200\nWatchdogSec=600\n")
    do(way.install)
    made.import_busybox()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def journal() -> Iterator[None]:
    """What the service and the spawner had to say; shown when the test fails."""
    yield
    run(["journalctl", "--unit", "criserver", "--lines", "60", "--no-pager"])
    spawner = Path("/run/criserver/spawner.log")
    print(spawner.read_text() if spawner.exists() else "no spawner.log")
    run(["ps", "-eo", "pid,ppid,stat,wchan:20,time,comm"])


def version(way: Way) -> str:
    return do([way.program, "--version"]).strip()


def test_it_is_installed_and_says_so(node: Node, way: Way) -> None:
    assert version(way) == OLD
    assert systemctl("is-active", "criserver") == "active"
    assert systemctl("is-enabled", "criserver") == "enabled"
    assert "systemd" in do([way.program, "config", "dump"])  # cgroup v2 under systemd
    unit = systemctl("show", "--value", "--property=FragmentPath", "criserver")
    assert do(["systemd-analyze", "verify", unit]) == ""


def test_it_can_be_installed_again(node: Node, way: Way) -> None:
    daemon = node.main_pid()
    node.change(way.install)
    assert version(way) == OLD
    # dpkg configures a package each time, which restarts the daemon; the script has nothing to do.
    assert (node.main_pid() == daemon) == (way is SCRIPT)
    assert systemctl("is-active", "criserver") == "active"


def test_a_reload_reaches_the_daemon_and_a_mistake_does_not(node: Node) -> None:
    daemon = node.main_pid()
    drop_in = Path("/etc/criserver/config.d/50-test.toml")
    drop_in.write_text('log_level = "debug"\n')
    do(["systemctl", "reload", "criserver"])
    service.wait_for(lambda: "1 settings changed" in status_text(), "the outcome of the reload")
    drop_in.write_text('log_level = "loud"\n')
    assert run(["systemctl", "reload", "criserver"]).returncode != 0
    assert systemctl("is-active", "criserver") == "active"
    drop_in.unlink()
    do(["systemctl", "reload", "criserver"])
    assert node.main_pid() == daemon


def status_text() -> str:
    return systemctl("show", "--value", "--property=StatusText", "criserver")


def test_ten_pods_notice_neither_upgrade_nor_the_way_back(node: Node, way: Way) -> None:
    pods = Pods(node)  # type: ignore[arg-type]
    made = service.run_pods(pods, COUNT, PRINT, MEMORY)
    before = {container: state_of(pods, container) for container in made}
    for command, expected in ((way.upgrade, NEW), (way.go_back, OLD)):
        daemon = node.main_pid()
        node.change(command)
        assert version(way) == expected
        assert node.main_pid() != daemon
        assert {container: state_of(pods, container) for container in made} == before
        await_more_lines(pods, made)
        for container in made:
            found = lines(pods, container)
            assert found == list(range(1, len(found) + 1))
            assert pods.exec(container, "echo", "still").stdout == b"still\n"
    done = run(way.uninstall)
    assert done.returncode != 0
    assert f"{COUNT} pods are on this node" in done.stderr
    assert {container: state_of(pods, container) for container in made} == before
    container, *_ = made
    pods.stop(container, timeout=5)
    assert pods.status(container).exit_code == 137
    do([way.program, "rm", "--all", "--force"])


def test_nothing_is_left_of_it(node: Node, way: Way, before: set[str]) -> None:
    run([way.program, "rm", "--all", "--force"])  # of a test that has failed
    node.change(way.uninstall)
    PATIENCE.unlink()
    PATIENCE.parent.rmdir()
    assert sorted(snapshot() - before) == []
