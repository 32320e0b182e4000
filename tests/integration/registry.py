"""Debian's docker-registry, run for the tests on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.integration.daemon import PATIENCE

PROGRAM = "docker-registry"
LISTENING = re.compile(rb'msg="listening on (127\.0\.0\.1:\d+)')
START_SECONDS = 30.0 * PATIENCE
STOP_SECONDS = 10.0 * PATIENCE


class Registry:
    """A running registry that anyone on the machine may read and write over plain HTTP.

    Of a stopped one `tls` (certificate, key, clientcas) and `auth` (htpasswd, token) may be set, as
    its documentation has them, before it is started again.
    """

    def __init__(self, directory: Path) -> None:
        """Start it with its storage, configuration and log in `directory`, which must exist.

        Raises AssertionError with the registry's log when it does not listen.
        """
        self.directory = directory
        self.log = directory / "registry.log"
        self.address = ""  # HOST:PORT
        self.tls: dict[str, Any] = {}
        self.auth: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it; after a stop, on the address it had before."""
        config = self.directory / "config.yml"
        config.write_text(json.dumps(self._config()))  # which is YAML
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who stop it when all have done
            )
        try:
            self.address = self._wait_for_address()
        except BaseException:  # Ctrl-C too: nobody has it yet who could stop it
            self.stop()
            raise

    def _config(self) -> dict[str, Any]:
        address = self.address or "127.0.0.1:0"
        return {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "storage")},
                "delete": {"enabled": True},
            },
            "http": {
                "addr": address,
                "secret": "tests",
                **({"tls": self.tls} if self.tls else {}),
            },
            **({"auth": self.auth} if self.auth else {}),
        }

    def _wait_for_address(self) -> str:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not (found := LISTENING.search(self.log.read_bytes())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{PROGRAM} does not listen:\n{self.log.read_text()}")
            time.sleep(0.02)
        return found[1].decode()

    def stop(self) -> None:
        """Stop it by its pid; its storage stays. Repeatable."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def requests(self) -> list[str]:
        """The requests served so far, as `METHOD /path`, in order."""
        found = re.findall(r'"([A-Z]+ /\S+) HTTP/1\.1"', self.log.read_text())
        return [str(request) for request in found]
