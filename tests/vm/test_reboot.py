"""A reboot with running pods: what follows it is in after_reboot.py, in another boot of this VM."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.pods import Pods
from tests.vm import service
from tests.vm.service import Service

# Read by tests/vm/guest/run: the arguments of the pytest that runs when the machine is up again.
AFTER_BOOT = Path("/var/lib/vm-results/after-boot")
MADE = Path("/var/lib/vm-results/made")


def test_pods_run_when_the_machine_goes_down() -> None:
    installed = Service()
    installed.install("systemd")
    pods = Pods(installed)  # type: ignore[arg-type]
    made = service.run_pods(pods, 2, "sleep 1000", 48 << 20)
    installed.close()
    MADE.write_text(json.dumps(made))
    AFTER_BOOT.write_bytes(b"tests/vm/after_reboot.py\0-q\0")
