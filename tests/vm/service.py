"""criserver as a service of this VM: deploy/criserver.service as it is, with the default paths."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from tests.integration.daemon import wait_for
from tests.integration.pods import Pods

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CONFIG = Path("/etc/criserver/config.toml")
UNIT = Path("/etc/systemd/system/criserver.service")
IMAGE = "docker.io/library/busybox:latest"
LOGS = Path("/var/log/pods")
START_SECONDS = 300.0  # the unit's own TimeoutStartSec


class Service:
    """The service, and its CRI; stands in for a test's Daemon."""

    log_directory = LOGS

    def __init__(self) -> None:
        self._channel: grpc.Channel | None = None

    def install(self, driver: str) -> None:
        """Install and start it, with busybox as its image."""
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text(f'cgroup_driver = "{driver}"\n')
        program = Path("/usr/local/bin/criserver")
        program.unlink(missing_ok=True)
        program.symlink_to(BIN / "criserver")
        shutil.copy(ROOT / "deploy/criserver.service", UNIT)
        systemctl("daemon-reload")
        systemctl("enable", "--now", "criserver")
        archive = Path("/var/tmp/busybox.tar")
        subprocess.run([sys.executable, ROOT / "hack/busybox-archive", archive], check=True)
        subprocess.run([BIN / "criserver", "image", "import", archive], check=True)

    def remove(self) -> None:
        """Stop it for good, and take away what it keeps."""
        self.close()
        systemctl("disable", "--now", "criserver")
        spawner = Path("/run/criserver/spawner.pid")
        subprocess.run([BIN / "criserver", "teardown", "--purge"], check=True)
        assert not spawner.exists()
        UNIT.unlink()
        systemctl("daemon-reload")

    @property
    def runtime(self) -> api_pb2_grpc.RuntimeServiceStub:
        """The RuntimeService; one that starts just now is waited for."""
        if self._channel is None:
            self._channel = grpc.insecure_channel("unix:/run/criserver/criserver.sock")
        return api_pb2_grpc.RuntimeServiceStub(self._channel)

    def close(self) -> None:
        """Hang up, as the socket will be another's."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def restart(self) -> None:
        """Restart it by systemd, which comes back when it serves again."""
        self.close()
        systemctl("restart", "criserver")

    def main_pid(self) -> int:
        """The daemon's process."""
        return int(systemctl("show", "--value", "--property=MainPID", "criserver"))

    def wait_ready(self) -> None:
        """Wait until a daemon that systemd starts by itself, at a boot for one, serves."""
        self.close()
        wait_for(
            lambda: systemctl("is-active", "criserver", check=False) == "active",
            "criserver to be active",
            START_SECONDS,
        )


@contextlib.contextmanager
def installed_service(driver: str) -> Iterator[Service]:
    """Install the service with a cgroup driver, and remove it at the end."""
    made = Service()
    made.install(driver)
    yield made
    made.remove()


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run systemctl; returns what it printed."""
    done = subprocess.run(["systemctl", *arguments], stdout=subprocess.PIPE, text=True, check=check)
    return done.stdout.strip()


def run_pods(pods: Pods, count: int, command: str, memory: int) -> dict[str, str]:
    """Run pods of one container each; returns container -> pod."""
    made = {}
    for _ in range(count):
        pod = pods.run_pod()
        linux = cri.LinuxContainerConfig(
            security_context=cri.LinuxContainerSecurityContext(
                namespace_options=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
            ),
            resources=cri.LinuxContainerResources(memory_limit_in_bytes=memory),
        )
        image = cri.ImageSpec(image=IMAGE)
        container = pods.run(pod, "sh", "-c", command, image=image, linux=linux)
        made[container] = pod
    return made
