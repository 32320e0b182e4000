"""Debian's Prometheus, run for the tests on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.integration.daemon import PATIENCE

PROGRAM = "prometheus"
LISTENING = re.compile(rb'msg="Listening on" address=(127\.0\.0\.1:\d+)')
START_SECONDS = 30.0 * PATIENCE
STOP_SECONDS = 20.0 * PATIENCE


class Prometheus:
    """A running server that scrapes one target every PATIENCE seconds."""

    def __init__(self, directory: Path, target: str) -> None:
        """Start it with its files in `directory`; `target` is HOST:PORT. AssertionError if not."""
        self.log = directory / "prometheus.log"
        config = directory / "prometheus.yml"
        scrape = {"job_name": "criserver", "static_configs": [{"targets": [target]}]}
        interval = f"{PATIENCE * 1000:.0f}ms"
        intervals = {"scrape_interval": interval, "scrape_timeout": interval}
        config.write_text(json.dumps({"global": intervals, "scrape_configs": [scrape]}))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    PROGRAM,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.address = self._wait_for_address()

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while not (found := LISTENING.search(self.log.read_bytes())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"{PROGRAM} does not listen:\n{self.log.read_text()}")
            time.sleep(0.05)
        return found[1].decode()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that a query answers with now. AssertionError if it is refused."""
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{asked}") as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        result = told["data"]["result"]
        return (
            [{"metric": {}, "value": result}] if told["data"]["resultType"] == "scalar" else result
        )

    def stop(self) -> None:
        """Stop it by its pid."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
