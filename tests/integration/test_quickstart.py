"""hack/quickstart: from nothing to a container's output and back to nothing, again and again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import images, leaks
from tests.integration.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 180.0
GREETING = r"Hello from a container: process 1 on busybox-[0-9a-f]{6}, address 10\.[0-9.]+\n"
NOWHERE = "http://127.0.0.1:1"  # port 1 is nobody's


class QuickStart:
    """hack/quickstart beside whatever else runs on this machine."""

    def __init__(self) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix=f"{leaks.SESSION}q-", dir="/run"))
        self.home = Path(tempfile.mkdtemp(prefix=f"{leaks.SESSION}q-", dir="/var/lib"))
        self.root = self.home / "root"
        self.logs = self.home / "logs"
        self.bridge = f"crq{os.getpid() % 10**7}"
        self.hosts = self.home / "certs.d/docker.io/hosts.toml"
        self.hosts.parent.mkdir(parents=True)
        self.use_registry(NOWHERE)
        config = self.home / "config.toml"
        config.write_text(
            f'[network]\nbridge = "{self.bridge}"\ncni_conf_dirs = ["{self.home}/cni"]\n'
            f'[registries]\ncerts_dir = "{self.home}/certs.d"\n'
        )
        self.environment = {
            **os.environ,
            "CRISERVER_ROOT": str(self.root),
            "CRISERVER_RUN_DIR": str(self.run_dir),
            "CRISERVER_LOG_FILE": str(self.home / "daemon.log"),
            "CRISERVER_CONFIG": str(config),
            "CRISERVER_LOG_DIR": str(self.logs),
        }

    def use_registry(self, url: str) -> None:
        """Have the daemon ask this registry, and no other, for images of docker.io."""
        self.hosts.write_text(
            f'server = "{NOWHERE}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'
        )

    def __call__(self, *arguments: str) -> tuple[str, str]:
        """Run it; stdout and stderr."""
        # Its daemon goes on and keeps no pipe of ours: it writes to its log alone.
        result = subprocess.run(
            [REPOSITORY / "hack/quickstart", *arguments],
            cwd="/",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        print(result.stdout, result.stderr)
        assert result.returncode == 0
        return result.stdout, result.stderr

    def close(self) -> None:
        """End whatever a failed test has left, by the pids that are on record."""
        try:
            self("stop", "--purge")
        finally:
            shutil.rmtree(self.home)
            shutil.rmtree(self.run_dir, ignore_errors=True)


@pytest.fixture
def quickstart() -> Iterator[QuickStart]:
    made = QuickStart()
    yield made
    made.close()


def test_without_a_registry_it_runs_an_image_made_on_the_spot(quickstart: QuickStart) -> None:
    out, err = quickstart()
    assert re.fullmatch(GREETING, out)
    assert "daemon: started" in err and "made docker.io/library/busybox of Debian's" in err

    out, err = quickstart()
    assert re.fullmatch(GREETING, out)
    assert "daemon: it runs already" in err and "is here already" in err
    assert list(quickstart.logs.iterdir()) == []

    subprocess.run(
        [
            REPOSITORY / ".venv/bin/criserver",
            "run",
            "-d",
            "docker.io/library/busybox",
            "sleep",
            "9999",
        ],
        env={
            **quickstart.environment,
            "CRISERVER_ENDPOINT": f"{quickstart.run_dir}/criserver.sock",
        },
        check=True,
        timeout=SECONDS,
    )
    assert Path("/sys/class/net", quickstart.bridge).exists()
    quickstart("stop")
    assert_nothing_is_left(quickstart)
    assert quickstart.root.exists()
    assert list(quickstart.logs.iterdir()) == []

    out, err = quickstart()
    assert "is here already" in err  # the images were kept
    quickstart("stop", "--purge")
    assert_nothing_is_left(quickstart)
    assert not quickstart.root.exists()
    quickstart("stop")  # and once more does no harm


def test_with_a_registry_it_pulls(quickstart: QuickStart, registry: Registry) -> None:
    images.push(registry.address, "library/busybox", images.busybox())
    quickstart.use_registry(f"http://{registry.address}")
    out, err = quickstart()
    assert re.fullmatch(GREETING, out)
    assert "docker.io/library/busybox, pulled from its registry" in err


def assert_nothing_is_left(quickstart: QuickStart) -> None:
    assert not quickstart.run_dir.exists()
    assert not Path("/sys/class/net", quickstart.bridge).exists()
    private = f"/{leaks.SESSION}q-"
    assert private not in Path("/proc/self/mountinfo").read_text()
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    assert quickstart.bridge not in tables.stdout
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(quickstart.run_dir) not in process.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
