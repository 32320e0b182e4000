"""The files of deploy/: that they are what their readers accept, and that they agree."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from criserver import cli
from criserver.config import Config
from podsandbox.network.cni_config import ConfigDirectories

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SOCKET = f"unix://{Config().listen_path}"
UNIT = (DEPLOY / "criserver.service").read_text()

SHELLS = (b"#!/bin/bash", b"#!/bin/sh\n#")


def scripts_below(directory: Path) -> list[Path]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return [path for path in files if path.read_bytes()[:11] in SHELLS]


BASH = scripts_below(DEPLOY)
HACK = [*scripts_below(ROOT / "hack"), *scripts_below(ROOT / "tests/vm/guest")]
LIBRARIES = sorted((DEPLOY / "lib").glob("*.sh"))


@pytest.mark.parametrize("script", [*BASH, *LIBRARIES], ids=lambda path: path.name)
def test_scripts_can_be_parsed_and_stop_at_errors(script: Path) -> None:
    text = script.read_text()
    shell = "sh" if text.startswith("#!/bin/sh") or script.name == "node.sh" else "bash"
    subprocess.run([shell, "-n", script], check=True)
    if script not in LIBRARIES:
        assert re.search(r"^set -(euo pipefail|e)$", text, re.MULTILINE)
        assert script.stat().st_mode & 0o111


def test_shellcheck_finds_nothing() -> None:
    scripts = [*BASH, *LIBRARIES, *HACK]
    subprocess.run(["shellcheck", "--external-sources", *scripts], cwd=ROOT, check=True)


def test_all_of_the_scripts_are_found() -> None:
    names = {path.relative_to(DEPLOY).as_posix() for path in BASH}
    assert names >= {"install", "bundle", "debian/build", "debian/postinst", "kind/build"}


def test_the_samples_name_the_socket_of_the_defaults() -> None:
    crictl = yaml.safe_load((DEPLOY / "crictl.yaml").read_text())
    assert (crictl["runtime-endpoint"], crictl["image-endpoint"]) == (SOCKET, SOCKET)
    kubelet = yaml.safe_load((DEPLOY / "kubelet/20-criserver.conf").read_text())
    assert kubelet["containerRuntimeEndpoint"] == SOCKET
    assert cli.DEFAULT_ENDPOINT == SOCKET


def test_the_kubeadm_sample_has_the_socket_wherever_a_node_is_registered() -> None:
    documents = {
        each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubeadm.yaml").read_text())
    }
    for kind in ("InitConfiguration", "JoinConfiguration"):
        assert documents[kind]["apiVersion"] == "kubeadm.k8s.io/v1beta4"
        assert documents[kind]["nodeRegistration"]["criSocket"] == SOCKET
    kubelet = yaml.safe_load((DEPLOY / "kubelet/20-criserver.conf").read_text())
    assert documents["KubeletConfiguration"]["cgroupDriver"] == kubelet["cgroupDriver"] == "systemd"


def test_the_cni_sample_is_one_that_the_daemon_uses(tmp_path: Path) -> None:
    sample = (DEPLOY / "cni/10-criserver.conflist").read_text()
    (tmp_path / "10-criserver.conflist").write_text(sample)
    config, reasons = ConfigDirectories([tmp_path]).load()
    assert reasons == []
    assert config is not None
    types = [plugin["type"] for plugin in json.loads(sample)["plugins"]]
    assert [plugin["type"] for plugin in config.plugins] == types


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify", "KillMode=process", "Delegate=yes", "OOMPolicy=continue", "WatchdogSec=60",
        "Restart=always", "StartLimitIntervalSec=0", "TasksMax=infinity", "OOMScoreAdjust=-999",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ],
)  # fmt: skip
def test_the_unit_keeps_containers_alive(line: str) -> None:
    assert line in UNIT.splitlines()


def test_a_reload_checks_the_files_before_the_daemon_hears_of_it() -> None:
    reloads = [line for line in UNIT.splitlines() if line.startswith("ExecReload=")]
    assert [line.split("=", 1)[1].split()[-1] for line in reloads] == ["check", "$MAINPID"]


@pytest.mark.parametrize(
    "directive",
    [
        # Inherited by every process that the daemon starts.
        "NoNewPrivileges", "RestrictNamespaces", "RestrictSUIDSGID", "RestrictRealtime",
        "SystemCallFilter", "SystemCallArchitectures", "MemoryDenyWriteExecute", "LockPersonality",
        "CapabilityBoundingSet", "RestrictAddressFamilies", "RestrictFileSystems", "IPAddressDeny",
        "DevicePolicy", "MemoryMax", "CPUQuota",
        # A mount namespace of its own, from which no container's mount reaches the host's.
        "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectSystem", "ProtectHome",
        "ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups", "ReadOnlyPaths",
        "PrivateNetwork", "MountFlags",
    ],
)  # fmt: skip
def test_the_unit_takes_nothing_from_containers(directive: str) -> None:
    assert not re.search(rf"^{directive}=", UNIT, re.MULTILINE)


def test_the_kind_image_installs_by_the_installer_what_the_bundle_holds() -> None:
    steps = (DEPLOY / "kind/Dockerfile").read_text()
    assert "/tmp/bundle/install" in steps
    script = (DEPLOY / "kind/build").read_text()
    for name in re.findall(r"^COPY ([\w. -]+) /", steps, re.MULTILINE):
        for file in name.split():
            assert file in script
            assert file == "bundle" or list(DEPLOY.rglob(file))


def test_what_ctr_is_called_with_by_kind_is_understood(tmp_path: Path) -> None:
    program = tmp_path / "criserver"
    program.write_text('#!/bin/sh\necho "$1 $2"; cat "$3"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    words = "--namespace=k8s.io images import --all-platforms --digests --snapshotter=overlayfs -"
    done = subprocess.run(
        [DEPLOY / "kind/ctr", *words.split()],
        env=environment, input="an archive", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "image import\nan archive"
    refused = subprocess.run([DEPLOY / "kind/ctr", "tasks", "ls"], env=environment, check=False)
    assert refused.returncode == 1
