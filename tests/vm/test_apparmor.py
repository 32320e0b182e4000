"""AppArmor of containers, on a kernel that has it: the default profile, and what critest asks."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from api.cri import api_pb2 as cri
from criserver import apparmor
from tests.integration.pods import Pods
from tests.vm.service import IMAGE, Service, installed_service

PARSER = "apparmor_parser"


@pytest.fixture(scope="module")
def installed() -> Iterator[Service]:
    with installed_service("cgroupfs") as made:
        yield made


@pytest.fixture
def no_writes() -> Iterator[str]:
    """A profile of this test alone, under which no file can be written."""
    name = f"crtest-{secrets.token_hex(4)}"
    text = f"profile {name} flags=(attach_disconnected) {{\n file,\n deny /** w,\n}}\n"
    subprocess.run([PARSER, "--replace", "--skip-cache"], input=text.encode(), check=True)
    yield name
    subprocess.run([PARSER, "--remove"], input=text.encode(), check=True)


def run(pods: Pods, script: str, **profile: object) -> cri.ExecSyncResponse:
    """Run a container with an AppArmor profile; returns what a script in it says."""
    made = {"apparmor": cri.SecurityProfile(**profile)} if profile else {}
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    context = cri.LinuxContainerSecurityContext(namespace_options=options, **made)
    linux = cri.LinuxContainerConfig(security_context=context)
    image = cri.ImageSpec(image=IMAGE)
    container = pods.run(pods.run_pod(), "sleep", "1000", image=image, linux=linux)
    return pods.exec(container, "sh", "-c", script)


CURRENT = "cat /proc/1/attr/current; "


def test_the_default_profile_is_on_and_forbids_mounts_alone(pods: Pods) -> None:
    answer = run(pods, CURRENT + "echo x > /tmp/x && cat /tmp/x")
    assert answer.stdout.decode() == f"{apparmor.DEFAULT_PROFILE} (enforce)\nx\n"


def test_an_exec_is_confined_too(pods: Pods) -> None:
    answer = run(pods, "cat /proc/self/attr/current")
    assert answer.stdout.decode() == f"{apparmor.DEFAULT_PROFILE} (enforce)\n"


def test_a_container_in_a_user_namespace_is_confined_and_an_exec_too(pods: Pods) -> None:
    mapping = [cri.IDMapping(host_id=1 << 20, container_id=0, length=1 << 16)]
    user = cri.UserNamespace(mode=cri.POD, uids=mapping, gids=mapping)
    options = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, userns_options=user)
    config = pods.config()
    config.linux.security_context.namespace_options.CopyFrom(options)
    context = cri.LinuxContainerSecurityContext(namespace_options=options)
    linux = cri.LinuxContainerConfig(security_context=context)
    image = cri.ImageSpec(image=IMAGE)
    container = pods.run(pods.run_pod(config), "sleep", "1000", image=image, linux=linux)
    answer = pods.exec(container, "sh", "-c", CURRENT + "cat /proc/self/attr/current")
    assert answer.stdout.decode() == 2 * f"{apparmor.DEFAULT_PROFILE} (enforce)\n"


def test_a_localhost_profile_blocks_writes(pods: Pods, no_writes: str) -> None:
    profile = {"profile_type": cri.SecurityProfile.Localhost, "localhost_ref": no_writes}
    answer = run(pods, CURRENT + "touch /tmp/x", **profile)
    assert answer.stdout.decode() == f"{no_writes} (enforce)\n"
    assert answer.exit_code != 0
    assert b"Permission denied" in answer.stderr


def test_unconfined_is_without_a_profile(pods: Pods) -> None:
    answer = run(pods, CURRENT, profile_type=cri.SecurityProfile.Unconfined)
    assert answer.stdout.decode() == "unconfined\n"


def test_a_profile_that_is_not_loaded_is_refused(pods: Pods) -> None:
    localhost = cri.SecurityProfile.Localhost
    with pytest.raises(grpc.RpcError) as caught:
        run(pods, "true", profile_type=localhost, localhost_ref="crtest-none")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "not loaded" in caught.value.details()  # type: ignore[attr-defined]
