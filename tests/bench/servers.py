"""The runtimes that a benchmark compares: ours and the peers on PATH, in private directories.

All of them are asked through the same CRI client, pull from the same registry, and keep their
images below the same directory, so on the same disk.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc

START_SECONDS = 60.0
STOP_SECONDS = 30.0
RPC_SECONDS = 600.0
CRISERVER = Path(sys.executable).with_name("criserver")

_CONTAINERD = """\
version = 2
root = "{home}/root"
state = "{home}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"""


class Server:
    """A running CRI server."""

    def __init__(self, name: str, command: list[str], home: Path, socket: Path) -> None:
        self.name = name
        self.home = home
        self._log = (home / "log").open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self.images = api_pb2_grpc.ImageServiceStub(self._channel)
        self._wait()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._process.pid

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.images.ListImages(cri.ListImagesRequest(), timeout=5.0)
            except grpc.RpcError as err:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self.home / "log").read_text(errors="replace")
                    raise RuntimeError(f"{self.name} does not serve: {err}\n{log[-4000:]}") from err
                time.sleep(0.1)
            else:
                return

    def pull(self, name: str) -> float:
        """Pull an image; returns the seconds that it took."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        began = time.perf_counter()
        self.images.PullImage(request, timeout=RPC_SECONDS)
        return time.perf_counter() - began

    def remove(self, name: str) -> float:
        """Remove an image; returns the seconds that it took."""
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=name))
        began = time.perf_counter()
        self.images.RemoveImage(request, timeout=RPC_SECONDS)
        return time.perf_counter() - began

    def status(self, name: str) -> float:
        """Ask for an image's status; returns the seconds that it took."""
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
        began = time.perf_counter()
        self.images.ImageStatus(request, timeout=RPC_SECONDS)
        return time.perf_counter() - began

    def close(self) -> None:
        """End it by its pid."""
        self._channel.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class OurServer(Server):
    """criserver, whose spawner outlives the daemon and is ended here."""

    def spawner_pid(self) -> int:
        """The spawner's process id."""
        return int((self.home / "run" / "spawner.pid").read_text())

    def close(self) -> None:
        """End the daemon, then the spawner."""
        spawner = self.spawner_pid()
        super().close()
        subprocess.run(["kill", str(spawner)], check=True)


def criserver(home: Path) -> OurServer:
    """Start ours with the built-in defaults and nothing of the machine's own configuration."""
    home.mkdir(parents=True)
    config, socket = home / "config.toml", home / "run" / "criserver.sock"
    config.write_text("")
    for name in ("certs.d", "cni"):
        (home / name).mkdir()
    command = [
        str(CRISERVER), "serve", "--config", str(config), "--listen", f"unix://{socket}",
        "--root", str(home / "root"), "--run-dir", str(home / "run"),
        "--certs-dir", str(home / "certs.d"), "--cni-conf-dir", str(home / "cni"),
        "--log-level", "warning",
    ]  # fmt: skip
    return OurServer("criserver", command, home, socket)


def containerd(home: Path) -> Server:
    """Start containerd with its CRI plugin."""
    home.mkdir(parents=True)
    config, socket = home / "config.toml", home / "containerd.sock"
    config.write_text(_CONTAINERD.format(home=home, socket=socket))
    version = subprocess.run(
        ["containerd", "--version"], check=True, capture_output=True, text=True
    ).stdout.split()[2]
    return Server(f"containerd {version}", ["containerd", "--config", str(config)], home, socket)


def crio(home: Path) -> Server:
    """Start CRI-O."""
    home.mkdir(parents=True)
    socket = home / "crio.sock"
    registries = home / "registries.conf"
    registries.write_text('[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n')
    policy = home / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    command = [
        "crio", "--config", "/dev/null", "--listen", str(socket), "--root", str(home / "root"),
        "--runroot", str(home / "run"), "--signature-policy", str(policy),
        "--insecure-registry", "127.0.0.0/8", "--log-dir", str(home / "logs"),
    ]  # fmt: skip
    return Server("CRI-O", command, home, socket)


def start_all(directory: Path) -> list[Server]:
    """Start ours, then each peer that is installed."""
    servers: list[Server] = [criserver(directory / "criserver")]
    for program, start in (("containerd", containerd), ("crio", crio)):
        if shutil.which(program):
            servers.append(start(directory / program))
        else:
            print(f"{program} is not on PATH: left out", file=sys.stderr)
    return servers
