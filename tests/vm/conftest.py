"""Tests that need the VM of hack/vm; on another machine they would change its services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pods import Pods
from tests.vm.service import Service

MODULES = Path("/sys/kernel/security/lsm")
# What only one of the exclusive security modules has is tested in a VM that was booted with it.
OF_ONE_MODULE = {"apparmor": "test_apparmor.py", "selinux": "test_selinux.py"}


def _left_out() -> list[str]:
    booted = MODULES.read_text().split(",") if MODULES.exists() else []
    return [file for module, file in OF_ONE_MODULE.items() if module not in booted]


collect_ignore = _left_out()


def pytest_report_header() -> list[str]:
    """Name what this boot cannot run: nothing is left out in silence."""
    return [f"not collected, for `hack/vm --lsm …`: {', '.join(_left_out())}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The reboot comes last: after it, nothing of this session is left."""
    if "vm.job=" not in Path("/proc/cmdline").read_text():
        pytest.exit("tests/vm runs in a virtual machine: hack/vm test tests/vm", returncode=2)
    items.sort(key=lambda item: item.path.name == "test_reboot.py")


@pytest.fixture
def pods(installed: Service) -> Iterator[Pods]:
    """Pods of the service that the module has installed, removed at the end."""
    made = Pods(installed)  # type: ignore[arg-type]
    yield made
    for pod in made.pods():
        made.stop_pod(pod.id)
        made.remove_pod(pod.id)
