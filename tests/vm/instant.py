"""A pytest plugin that prints a failure when it happens: in the VM, the end is minutes away.

pytest's own report at the end is switched off by `--tb=no`, and lost to a time-out anyway.
"""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n--- {report.nodeid} ({report.when})\n{report.longreprtext}", flush=True)
        for name, text in report.sections:
            print(f"--- {name}\n{text}", flush=True)
