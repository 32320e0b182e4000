"""Metrics: what is counted, how it is labelled and bounded, and what it costs when it is off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import stages
from api.errors import ImagePullError, NotFoundError
from criserver.metrics.registries import MAX_REGISTRIES, Registries
from podsandbox.network.cni_config import CNIConfig
from podsandbox.network.cni_plugins import Plugins
from podsandbox.network.cni_protocol import CNIPluginError
from runtimeshim.client import ProgramResult
from runtimeshim.linux import processes
from tests.unit.metrics import Observed, fail_pull, rpc

VERSION = "/runtime.v1.RuntimeService/Version"
LABELS = {"service": "RuntimeService", "method": "Version"}


@pytest.fixture
def observed() -> Iterator[Observed]:
    made = Observed()
    yield made
    made.close()


async def test_rpcs_are_counted_by_their_code_and_timed(observed):
    rpc(observed.metrics, VERSION)
    rpc(observed.metrics, VERSION)
    rpc(observed.metrics, VERSION, "UNAVAILABLE")
    assert await observed.value("criserver_rpcs_total", **LABELS, code="OK") == 2
    assert await observed.value("criserver_rpcs_total", **LABELS, code="UNAVAILABLE") == 1
    assert await observed.value("criserver_rpc_duration_seconds_count", **LABELS) == 3
    assert await observed.value("criserver_rpcs_in_flight", **LABELS) == 0


async def test_operations_and_their_stages_are_counted_also_while_they_run(observed):
    release = asyncio.Event()

    async def run() -> None:
        with stages.operation("RunPodSandbox", "abc"):
            with stages.stage("network"):
                await release.wait()
            recorder = stages.RECORDER.get()
            assert recorder is not None
            recorder.add({"rootfs": 3_000, "total": 3_000}, "create")

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    name = {"operation": "RunPodSandbox"}
    assert await observed.value("criserver_operations_in_flight", **name) == 1
    assert (await observed.value("criserver_oldest_operation_age_seconds") or 0) > 0
    release.set()
    await task
    assert await observed.value("criserver_operations_in_flight", **name) == 0
    assert await observed.value("criserver_oldest_operation_age_seconds") == 0
    assert await observed.value("criserver_operations_total", **name, code="OK") == 1
    seconds = "criserver_stage_duration_seconds"
    assert await observed.value(f"{seconds}_count", **name, stage="network") == 1
    assert await observed.value(f"{seconds}_sum", **name, stage="create.rootfs") == 3e-6


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImagePullError("RegistryUnavailable: no answer"), "registry_unavailable"),
        (ImagePullError("SignatureValidationFailed: none"), "signature"),
        (ImagePullError("a layer is broken"), "other"),
        (NotFoundError("image", "x"), "not_found"),
    ],
)
async def test_failed_pulls_are_counted_by_registry_and_reason(observed, error, reason):
    fail_pull("registry.test:5000/a/b:1", error)
    registry = {"registry": "registry.test:5000"}
    assert await observed.value("criserver_pulls_total", **registry) == 1
    assert await observed.value("criserver_pull_failures_total", **registry, reason=reason) == 1
    failures = {"operation": "PullImage", "stage": "resolve"}
    assert await observed.value("criserver_stage_failures_total", **failures) == 1


async def test_no_number_of_registries_makes_more_series(observed):
    for number in range(MAX_REGISTRIES + 5):
        fail_pull(f"r{number}.test/x:1", NotFoundError("image", "x"))
    assert await observed.value("criserver_pulls_total", registry="other") == 5
    assert Registries().label("any") == "any"


async def test_states_and_ends_of_containers(observed):
    observed.pod()
    assert await observed.value("criserver_sandboxes", state="ready") == 1
    assert await observed.value("criserver_containers", state="running") == 1
    observed.containers.exited("c", 137, 4, oom=True)
    assert await observed.value("criserver_containers", state="running") == 0
    assert await observed.value("criserver_containers", state="exited") == 1
    assert await observed.value("criserver_container_exits_total", reason="OOMKilled") == 1


async def test_events_that_nobody_takes_are_kept_and_then_dropped(observed, monkeypatch):
    monkeypatch.setattr("criserver.events.MAX_PENDING", 1)
    with observed.events.listen():
        observed.pod()  # two changes of the pod, two of its container
        assert await observed.value("criserver_event_listeners") == 1
        assert await observed.value("criserver_event_queue_length") == 1
    assert await observed.value("criserver_events_dropped_total") == 3


async def test_what_the_auditor_reports_is_exposed(observed):
    before = time.time()
    observed.runtime.leaks.report({"mount": 2, "link": 0}, {"link": 1})
    observed.runtime.leaks.report({"mount": 1, "link": 0}, {"link": 2})
    assert await observed.value("criserver_leaks", kind="mount") == 1
    assert await observed.value("criserver_leaks", kind="link") == 0
    assert await observed.value("criserver_leaks_removed_total", kind="link") == 2
    assert (await observed.value("criserver_audit_timestamp_seconds") or 0) >= before


class Runner:
    """Ends each plugin with this exit code."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code

    async def run_program(self, argv, *, env, stdin=b"", timeout, watch=None):
        return ProgramResult(self.exit_code, b"", b"no")


@pytest.mark.parametrize(("exit_code", "failures"), [(0, None), (1, 1)])
async def test_runs_of_cni_plugins_are_counted(observed, tmp_path, exit_code, failures):
    plugin = tmp_path / "bridge"
    plugin.write_text("")
    plugin.chmod(0o755)
    config = CNIConfig("net", "1.1.0", ({"type": "bridge"},))
    plugins = Plugins([tmp_path], Runner(exit_code), 1.0, observed.metrics.cni)
    try:
        await plugins.status(config)
    except CNIPluginError:
        assert exit_code
    run = {"plugin": "bridge", "command": "STATUS"}
    assert await observed.value("criserver_cni_duration_seconds_count", **run) == 1
    assert await observed.value("criserver_cni_failures_total", **run) == failures


async def test_no_label_holds_a_name_that_a_user_can_choose_freely(observed):
    observed.everything()
    families = await observed.families()
    names = {
        label
        for name, family in families.items()
        if name.startswith("criserver_")
        for sample in family.samples
        for label in sample.labels
    }
    bounded = {"service", "method", "code", "operation", "stage", "reason", "plugin", "command"}
    assert names == bounded | {"registry", "state", "kind", "le", "version", "python"}


def test_a_process_that_waits_is_not_uninterruptible():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as waiting:
        assert processes.state(waiting.pid) in ("S", "R", "D")
        waiting.kill()
        waiting.wait()
        assert processes.state(waiting.pid) == ""
        assert processes.uninterruptible([waiting.pid]) == 0


def test_a_name_with_parentheses_hides_no_state(tmp_path: Path):
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as sleeping:
        deadline = time.monotonic() + 10
        while processes.state(sleeping.pid) != "S" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes.state(sleeping.pid) == "S"
        sleeping.kill()


def test_what_is_off_is_not_imported():
    """The daemon's modules with everything off: neither metrics nor traces are there."""
    script = """
import sys
import criserver.daemon, criserver.extension, criserver.handlers, criserver.server
from criserver.config import Config
from criserver.observability import Observability
assert Observability(Config()).cni is None
wanted = ("prometheus_client", "opentelemetry", "criserver.metrics", "criserver.tracing")
print([name for name in sys.modules if name.split(".")[0] in wanted or name.startswith(wanted)])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


async def test_events_that_no_listener_comes_for_are_dropped(observed, monkeypatch):
    monkeypatch.setattr("criserver.events.MAX_HELD", 4)
    observed.events._held = deque(maxlen=4)
    observed.pod()
    assert await observed.value("criserver_events_dropped_total") == 0
    assert await observed.value("criserver_event_queue_length") == 4
    observed.containers.exited("c", 0, 4, oom=False)
    assert await observed.value("criserver_events_dropped_total") == 1
