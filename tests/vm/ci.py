"""What `hack/vm ci` runs: the part of the VM's tests that hack/test, and so CI, has time for."""

from __future__ import annotations

from tests.vm.machine import Limits

# One of each kind: limits by cgroup v2's files, systemd's units over a reload, an OOM kill, devices
# by eBPF, and AppArmor as the kubelet asks for it, through a criserver that is a service.
TESTS = (
    "tests/vm/test_systemd_driver.py::test_a_container_is_a_scope_with_its_limits_that_a_reload_leaves",
    "tests/vm/test_systemd_driver.py::test_devices_beside_the_allowed_are_refused_after_a_reload_too",
    "tests/vm/test_systemd_driver.py::test_an_oom_kill_is_told_though_the_scope_goes_at_once",
    "tests/vm/test_apparmor.py",
)
# It takes 150 s of CPU time. Where it has but half of one core, it boots in 90 s and needs 190 s
# for the tests; a guest that hangs is given up.
LIMITS = Limits(boot=150.0, job=300.0, grace=60.0)
