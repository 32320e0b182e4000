"""What a container notices of the death of its runtime's daemon, or of its own shim."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from api.cri import api_pb2 as cri
from tests.bench.client import SLEEP
from tests.bench.operations import operation
from tests.bench.plan import Bench, column, progress
from tests.bench.runtimes import Runtime
from tests.integration.daemon import wait_for

EXIT_CODE = 7
WAIT_SECONDS = 60.0
BATCHES = 100
# More than a pipe holds, fast enough to be at it all the time, slow enough to outlast the death.
TEXT = "x" * 200


def measure(bench: Bench) -> None:
    """The three faults, once each: it is the outcome that counts."""
    for runtime in bench.one_of_ours():
        progress(f"faults: daemon of {runtime.name}")
        daemon_killed(bench, runtime)
        progress(f"faults: shim of {runtime.name}")
        shim_killed(bench, runtime)
        for pod in runtime.client.pods():
            runtime.client.take_away(pod.id)


def daemon_killed(bench: Bench, runtime: Runtime) -> None:
    """SIGKILL the daemon while one container prints and another one ends."""
    client, image, plan = runtime.client, bench.shelf.small, bench.plan
    batch, pause = plan.lines // BATCHES, 2 * plan.dead_seconds / BATCHES
    script = (
        f"i=0; while [ $i -lt {BATCHES} ]; do yes {TEXT} | head -n {batch};"
        f" sleep {pause}; i=$((i+1)); done"
    )
    _, printing = client.run(image, "sh", "-c", script)
    _, ending = client.run(image, "sh", "-c", f"sleep {plan.dead_seconds / 2}; exit {EXIT_CODE}")
    log = Path(client.status(printing).status.log_path)
    runtime.kill9()
    before = _lines(log)
    time.sleep(plan.dead_seconds)
    meanwhile = _lines(log) - before
    runtime.start()
    ended = [_exited(runtime, container) for container in (printing, ending)]
    for title, value in {
        "lines written while the daemon is dead": str(meanwhile),
        "lines in the log at the end": f"{_lines(log)} of {BATCHES * batch}",
        "exit while the daemon is dead": _outcome(ended[1]),
    }.items():
        bench.results.say(operation("faults", title), column(runtime), value)


def shim_killed(bench: Bench, runtime: Runtime) -> None:
    """SIGKILL what looks after a container."""
    client = runtime.client
    pod, container = client.run(bench.shelf.small, *SLEEP)
    os.kill(runtime.shim_pid(pod, container), signal.SIGKILL)
    time.sleep(1.0)
    text = _outcome(client.status(container).status)
    bench.results.say(operation("faults", "shim killed"), column(runtime), text)


def _outcome(status: cri.ContainerStatus) -> str:
    state = cri.ContainerState.Name(status.state).removeprefix("CONTAINER_").lower()
    return f"{state}, {status.exit_code}, {status.reason}" if state == "exited" else state


def _exited(runtime: Runtime, container: str) -> cri.ContainerStatus:
    def status() -> cri.ContainerStatus:
        return runtime.client.status(container).status

    wait_for(lambda: status().state == cri.CONTAINER_EXITED, "the container's end", WAIT_SECONDS)
    return status()


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n")
