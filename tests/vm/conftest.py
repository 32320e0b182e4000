"""Tests that need the VM of hack/vm; on another machine they would change its services."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The reboot comes last: after it, nothing of this session is left."""
    if "vm.job=" not in Path("/proc/cmdline").read_text():
        pytest.exit("tests/vm runs in a virtual machine: hack/vm test tests/vm", returncode=2)
    items.sort(key=lambda item: item.path.name == "test_reboot.py")
