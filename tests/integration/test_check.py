"""`criserver check` on nodes with a fault: each is staged in a mount namespace of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.linux import cgroups
from tests.integration.daemon import PLUGINS, PROGRAM

BRIDGE = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}


class Node:
    """This machine with directories of its own, and what a test breaks of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root, self.run_dir = directory / "root", directory / "run"
        self.cni = directory / "cni"
        for path in (self.root, self.run_dir, self.cni):
            path.mkdir()
        self.config = directory / "config.toml"
        self.config.write_text("")
        self._faults: list[str] = []
        self._prefix: list[str] = []

    def breaks(self, *faults: str) -> None:
        """Shell commands that break something, for the check alone to see."""
        self._faults += faults

    def says(self, path: str, content: str) -> None:
        """Have a file of /proc or /sys say something else."""
        number = len(self._faults)
        (self.directory / f"file{number}").write_text(f"{content}\n")
        self.breaks(f"mount --bind {self.directory}/file{number} {path}")

    def runs_by(self, *prefix: str) -> None:
        """Run the check by another program."""
        self._prefix = list(prefix)

    def check(self, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [
            *self._prefix,
            str(PROGRAM), "check", *flags,
            "--config", str(self.config),
            "--root", str(self.root),
            "--run-dir", str(self.run_dir),
            "--cni-conf-dir", str(self.cni),
            "--cni-bin-dir", str(PLUGINS),
        ]  # fmt: skip
        script = " && ".join([*self._faults, 'exec "$@"'])
        result = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def findings(self) -> dict[str, dict[str, Any]]:
        result = self.check("--json")
        assert result.stderr == ""
        rows = json.loads(result.stdout)
        failed = any(row["level"] == "fail" for row in rows)
        assert result.returncode == (1 if failed else 0)
        assert all(row["advice"] for row in rows if row["level"] != "ok")
        found = {row["name"]: row for row in rows}
        assert len(found) == len(rows), "two lines have one name"
        return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_this_machine_can_run_pods(node: Node) -> None:
    found = node.findings()
    assert [row for row in found.values() if row["level"] == "fail"] == []
    assert found["CNI"]["found"].endswith("pods get the built-in network")
    assert list(node.root.iterdir()) == [], "what was tried is undone"
    text = node.check().stdout
    assert "ok    overlayfs                can be mounted on " in text
    assert len(text.splitlines()) == len(found) + sum(r["level"] != "ok" for r in found.values())


def test_a_wrong_configuration(node: Node) -> None:
    node.config.write_text("[network]\nbrigde = 1\n")
    row = node.findings()["configuration"]
    assert row["level"] == "fail"
    assert "brigde" in row["found"]


def test_somebody_without_capabilities(node: Node) -> None:
    # Still uid 0: another user may not be able to read the checkout.
    node.runs_by("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    found = node.findings()
    assert found["privileges"]["level"] == "fail"
    assert "CAP_SYS_ADMIN" in found["privileges"]["found"]
    assert found["overlayfs"]["level"] == "fail"


def test_a_disk_that_is_full(node: Node) -> None:
    node.breaks(
        f"mount -t tmpfs -o size=4m none {node.root}",
        f"head -c 3m /dev/zero >{node.root}/full",
    )
    row = node.findings()["disk"]
    assert row["level"] == "fail"
    assert str(node.root) in row["found"]
    assert "image gc" in row["advice"]


def test_a_disk_without_inodes(node: Node) -> None:
    node.breaks(
        f"mount -t tmpfs -o nr_inodes=20 none {node.root}",
        f"cd {node.root} && touch 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 && cd /",
    )
    assert node.findings()["disk's inodes"]["level"] == "warn"


def test_a_disk_that_is_read_only(node: Node) -> None:
    node.breaks(f"mount -t tmpfs -o ro none {node.root}")
    found = node.findings()
    assert found["disk"]["level"] == "fail"
    assert "read-only" in found["disk"]["found"]
    assert found["overlayfs"]["level"] == "fail"


def test_a_file_system_that_overlayfs_does_not_take(node: Node) -> None:
    lower = node.directory / "lower"
    lower.mkdir()
    (node.directory / "upper").mkdir()
    (node.directory / "work").mkdir()
    options = f"lowerdir={lower},upperdir={node.directory}/upper,workdir={node.directory}/work"
    node.breaks(f"mount -t overlay -o {options} none {node.root}")
    row = node.findings()["overlayfs"]
    assert row["level"] == "fail"
    assert "ext4" in row["advice"]


def test_a_run_directory_that_outlives_a_reboot(node: Node) -> None:
    node.breaks(f"mount -t tmpfs none {node.run_dir}")
    assert node.findings()["run directory's kind"]["level"] == "ok"
    image, directory = node.directory / "disk", node.directory / "other"
    directory.mkdir()
    other = Node(directory)
    subprocess.run(["truncate", "-s", "16M", str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    other.breaks(f"mount -o loop {image} {other.run_dir}")
    row = other.findings()["run directory's kind"]
    assert (row["level"], "ext4" in row["found"]) == ("warn", True)


def test_cgroups_that_cannot_be_made(node: Node) -> None:
    _, directory = cgroups.manager().directories("/")[0]
    node.breaks(f"mount --bind {directory} {directory}", f"mount -o remount,bind,ro {directory}")
    row = node.findings()["cgroup delegation"]
    assert row["level"] == "fail"
    assert "Delegate=yes" in row["advice"]


def test_the_systemd_driver_without_systemd(node: Node) -> None:
    node.config.write_text('cgroup_driver = "systemd"\n')
    if Path("/run/systemd/system").is_dir():
        node.breaks("mount -t tmpfs none /run/systemd")
    row = node.findings()["cgroup driver"]
    assert row["level"] == "fail"
    assert 'cgroup_driver = "cgroupfs"' in row["advice"]


def test_a_kernel_without_seccomp(node: Node) -> None:
    node.breaks("mount -t tmpfs none /proc/sys/kernel/seccomp")
    assert node.findings()["seccomp"]["level"] == "fail"


@pytest.mark.parametrize(
    ("path", "value", "name", "level"),
    [
        ("/proc/sys/user/max_user_namespaces", "0", "user namespaces", "warn"),
        ("/proc/sys/fs/inotify/max_user_instances", "100", "fs.inotify.max_user_instances", "warn"),
        ("/proc/sys/kernel/pid_max", "1000", "kernel.pid_max", "warn"),
        ("/proc/sys/net/ipv4/ip_forward", "0", "ip_forward", "ok"),
    ],
)
def test_a_sysctl_that_is_too_low(node: Node, path: str, value: str, name: str, level: str) -> None:
    node.says(path, value)
    row = node.findings()[name]
    assert row["level"] == level
    assert level == "ok" or "sysctl -w" in row["advice"]


def test_bridged_traffic_that_passes_netfilter_by(node: Node) -> None:
    node.breaks("mount -t tmpfs none /proc/sys/net/bridge || true")
    row = node.findings()["bridge-nf-call-iptables"]
    assert row["level"] == "warn"
    assert "modprobe br_netfilter" in row["advice"]


def test_cni_without_forwarding(node: Node) -> None:
    (node.cni / "10.conflist").write_text(json.dumps(BRIDGE))
    node.says("/proc/sys/net/ipv4/ip_forward", "0")
    found = node.findings()
    assert found["CNI plugins"]["found"] == "bridge"
    assert found["ip_forward"]["level"] == "fail"
    assert "sysctl -w net.ipv4.ip_forward=1" in found["ip_forward"]["advice"]


def test_a_cni_plugin_that_is_missing(node: Node) -> None:
    plugins = [{"type": "bridge", "ipam": {"type": "no-such-ipam"}}, {"type": "no-such-plugin"}]
    (node.cni / "10.conflist").write_text(json.dumps({**BRIDGE, "plugins": plugins}))
    row = node.findings()["CNI plugins"]
    assert row["level"] == "fail"
    assert f"no-such-plugin, no-such-ipam not in {PLUGINS}" in row["found"]


def test_a_cni_configuration_that_is_broken(node: Node) -> None:
    (node.cni / "10.conflist").write_text("{")
    row = node.findings()["CNI"]
    assert row["level"] == "fail"
    assert "10.conflist" in row["found"]


def test_a_low_limit_of_open_files(node: Node) -> None:
    node.runs_by("prlimit", "--nofile=1024:1024")
    row = node.findings()["open files"]
    assert row["level"] == "warn"
    assert "1024" in row["found"]
