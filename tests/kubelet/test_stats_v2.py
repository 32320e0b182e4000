"""What only cgroup v2 counts, as the kubelet shows it: pressure stall information (PSI)."""

from __future__ import annotations

import pytest

from tests.integration.daemon import wait_for
from tests.kubelet.kubelet import Kubelet, is_running
from tests.kubelet.test_stats import busy_pod, main_of, metrics, summary
from tests.kubelet.test_stats import by_cri as by_cri


@pytest.mark.parametrize("source", ["kubelet", "by_cri"])
def test_a_container_at_its_cpu_limit_waits(source: str, request: pytest.FixtureRequest) -> None:
    kubelet: Kubelet = request.getfixturevalue(source)
    name = kubelet.put(busy_pod())
    kubelet.until(name, is_running, "its start")

    def waited() -> bool:
        pressure = main_of(summary(kubelet, name)).get("cpu", {}).get("psi", {})
        return bool(pressure.get("some", {}).get("total"))

    wait_for(waited, "pressure", 120.0)
    main = main_of(summary(kubelet, name))
    for resource in ("cpu", "memory", "io"):
        for kind in ("some", "full"):
            assert set(main[resource]["psi"][kind]) == {"total", "avg10", "avg60", "avg300"}


def test_pressure_is_among_the_metrics_by_the_cri(by_cri: Kubelet) -> None:
    name = by_cri.put(busy_pod())
    by_cri.until(name, is_running, "its start")
    waiting = "container_pressure_cpu_waiting_seconds_total"
    wait_for(lambda: float(metrics(by_cri, name)["main"].get(waiting, 0)) > 0, "the metric", 60.0)
    wanted = {
        f"container_pressure_{resource}_{state}_seconds_total"
        for resource in ("cpu", "memory", "io")
        for state in ("waiting", "stalled")
    }
    assert wanted <= set(metrics(by_cri, name)["main"])
