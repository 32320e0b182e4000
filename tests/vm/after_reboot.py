"""After the reboot of test_reboot.py: the daemon is up, and knows that its pods are not."""

from __future__ import annotations

import json
from pathlib import Path

from api.cri import api_pb2 as cri
from tests.integration.pods import Pods
from tests.vm.service import Service
from tests.vm.test_reboot import MADE


def test_old_state_is_reconciled_and_can_be_removed() -> None:
    made = json.loads(MADE.read_text())
    installed = Service()
    installed.wait_ready()
    pods = Pods(installed)  # type: ignore[arg-type]
    assert {pod.id: pod.state for pod in pods.pods()} == dict.fromkeys(
        made.values(), cri.SANDBOX_NOTREADY
    )
    for container in made:
        status = pods.status(container)
        assert (status.state, status.reason, status.exit_code) == (
            cri.CONTAINER_EXITED, "Unknown", 255,
        )  # fmt: skip
    new = pods.run_pod(pods.config("after"))
    for pod in [*made.values(), new]:
        pods.stop_pod(pod)
        pods.remove_pod(pod)
    assert pods.pods() == []
    assert list(Path("/run/criserver/sandboxes").iterdir()) == []
    assert list(Path("/run/criserver/containers").iterdir()) == []
    found = [str(path) for path in Path("/sys/fs/cgroup").rglob("*criserver*") if path.is_dir()]
    assert found == ["/sys/fs/cgroup/system.slice/criserver.service"]
    installed.remove()
