"""No field of a request is silently ignored.

Each field of each request of an implemented RPC is in exactly one of three places:

    SPEC      changing it changes what the pure functions of CreateContainer make; tried here
    TESTED    the test, elsewhere, that shows its effect; tried here is that the test exists
    docs/cri-fields.md   it has no effect, for the reason that stands there
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from api.cri import api_pb2 as cri
from api.errors import CRIError
from criserver import cdi, signals
from criserver.container_spec import ContainerSpecInput, HostFacts, container_spec
from criserver.handlers import FUNCTIONS, STREAMS
from criserver.host_devices import requested
from criserver.users import resolve_user
from podsandbox.lifecycle import SandboxRuntime
from podsandbox.plan import SandboxHost, plan_sandbox

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "cri-fields.md").read_text()

# They do nothing but say why.
REFUSED = {"CheckpointContainer", "CheckpointPod", "RestorePod"}

HOST = HostFacts(
    machine="x86_64",
    hostname="node",
    capabilities=("CAP_CHOWN", "CAP_SYS_ADMIN"),
    cgroup_version=2,
    swap=True,
    hugetlb=True,
    apparmor_profile="default",
    selinux=True,
)
PINS = {kind: f"/pins/{kind}" for kind in ("network", "ipc", "uts", "pid", "user")}
MAPPING = cri.IDMapping(host_id=100_000, container_id=0, length=65_536)
OTHER = cri.IDMapping(host_id=200_000, container_id=0, length=65_536)
PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/web:/bin/sh\n"
GROUP = b"web:x:34:\nextra:x:35:web\n"


def effect(config: cri.ContainerConfig) -> Any:
    """Everything that the pure functions of CreateContainer make of a config.

    A refusal is an effect, too.
    """
    context = config.linux.security_context
    userns = context.namespace_options.HasField("userns_options")
    pins = {kind: path for kind, path in PINS.items() if userns or kind != "user"}
    pod = cri.PodSandboxConfig()
    pod.linux.security_context.privileged = True
    if userns:
        options = pod.linux.security_context.namespace_options
        options.userns_options.CopyFrom(context.namespace_options.userns_options)
    try:
        given = ContainerSpecInput(
            container_id="c",
            sandbox_id="s",
            config=config,
            sandbox_config=pod,
            sandbox=SandboxRuntime(namespaces=pins, cgroup_parent="/pod", files={}),
            image_name=config.image.user_specified_image or config.image.image,
            image_config={"Cmd": ["cmd"], "User": "web"},
            user=resolve_user(context, "web", PASSWD, GROUP),
            host=HOST,
            devices=tuple(requested(list(config.devices))),
            seccomp_profile={"of": context.seccomp.localhost_ref or context.seccomp_profile_path},
            target_pid_namespace=f"/proc/of/{context.namespace_options.target_id}",
        )
        return (
            container_spec(given),
            cdi.wanted([each.name for each in config.CDI_devices], config.annotations),
            signals.number_of(config.stop_signal),
        )
    except CRIError as err:
        return str(err)


Profile = cri.SecurityProfile


def mount(**fields: Any) -> dict[str, Any]:
    return {"mounts": [cri.Mount(container_path="/v", host_path="/h", **fields)]}


def security(**fields: Any) -> dict[str, Any]:
    context = cri.LinuxContainerSecurityContext(**fields)
    return {"linux": cri.LinuxContainerConfig(security_context=context)}


def limits(**fields: Any) -> dict[str, Any]:
    resources = cri.LinuxContainerResources(**fields)
    return {"linux": cri.LinuxContainerConfig(resources=resources)}


def namespaces(**fields: Any) -> dict[str, Any]:
    return security(namespace_options=cri.NamespaceOption(**fields))


def userns(**fields: Any) -> dict[str, Any]:
    return namespaces(userns_options=cri.UserNamespace(**fields))


def mapped(**fields: int) -> dict[str, Any]:
    return userns(uids=[cri.IDMapping(**fields)], gids=[MAPPING])


def profile(name: str, **fields: Any) -> dict[str, Any]:
    return security(**{name: Profile(**fields)})


def selinux(**fields: str) -> dict[str, Any]:
    return security(selinux_options=cri.SELinuxOption(**fields))


def added(**fields: Any) -> dict[str, Any]:
    return security(capabilities=cri.Capability(**fields))


def device(**fields: str) -> dict[str, Any]:
    values = {"host_path": "/dev/null", "permissions": "r", **fields}
    return {"devices": [cri.Device(**values)]}  # type: ignore[arg-type]


def pages(**fields: Any) -> dict[str, Any]:
    return limits(hugepage_limits=[cri.HugepageLimit(**fields)])


number = cri.Int64Value
NODE_UIDS = {"mode": cri.POD, "uids": [MAPPING], "gids": [MAPPING]}

# field -> (a config, another one that differs in this field alone)
SPEC: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ContainerConfig.metadata": ({}, {"metadata": cri.ContainerMetadata(name="a")}),
    "ContainerMetadata.name": ({}, {"metadata": cri.ContainerMetadata(name="a")}),
    "ContainerConfig.image": ({}, {"image": cri.ImageSpec(image="a")}),
    "ImageSpec.image": ({}, {"image": cri.ImageSpec(image="a")}),
    "ImageSpec.user_specified_image": ({}, {"image": cri.ImageSpec(user_specified_image="a")}),
    "ContainerConfig.command": ({}, {"command": ["a"]}),
    "ContainerConfig.args": ({}, {"args": ["a"]}),
    "ContainerConfig.working_dir": ({}, {"working_dir": "/a"}),
    "ContainerConfig.envs": ({}, {"envs": [cri.KeyValue(key="A", value=b"1")]}),
    "KeyValue.key": (
        {"envs": [cri.KeyValue(key="A")]},
        {"envs": [cri.KeyValue(key="B")]},
    ),
    "KeyValue.value": (
        {"envs": [cri.KeyValue(key="A")]},
        {"envs": [cri.KeyValue(key="A", value=b"1")]},
    ),
    "ContainerConfig.tty": ({}, {"tty": True}),
    "ContainerConfig.stop_signal": ({}, {"stop_signal": cri.SIGNAL_SIGUSR1}),
    "ContainerConfig.CDI_devices": ({}, {"CDI_devices": [cri.CDIDevice(name="a.b/c=d")]}),
    "CDIDevice.name": (
        {"CDI_devices": [cri.CDIDevice(name="a.b/c=e")]},
        {"CDI_devices": [cri.CDIDevice(name="a.b/c=d")]},
    ),
    "ContainerConfig.mounts": ({}, mount()),
    "Mount.container_path": (mount(), {"mounts": [cri.Mount(host_path="/h", container_path="/w")]}),
    "Mount.host_path": (mount(), {"mounts": [cri.Mount(host_path="/i", container_path="/v")]}),
    "Mount.readonly": (mount(), mount(readonly=True)),
    "Mount.recursive_read_only": (
        mount(readonly=True),
        mount(readonly=True, recursive_read_only=True),
    ),
    "Mount.propagation": (mount(), mount(propagation=cri.PROPAGATION_BIDIRECTIONAL)),
    "Mount.uidMappings": (mount(), mount(uidMappings=[MAPPING])),
    "Mount.gidMappings": (mount(), mount(gidMappings=[MAPPING])),
    "Mount.mount_options": (mount(), mount(mount_options=["noexec"])),
    "ContainerConfig.devices": ({}, device()),
    "Device.host_path": (device(), device(host_path="/dev/zero")),
    "Device.container_path": (device(), device(container_path="/dev/x")),
    "Device.permissions": (device(), device(permissions="rw")),
    "ContainerConfig.linux": ({}, security(privileged=True)),
    "LinuxContainerConfig.security_context": ({}, security(privileged=True)),
    "LinuxContainerConfig.resources": ({}, limits(cpu_shares=5)),
    "LinuxContainerSecurityContext.capabilities": ({}, added(drop_capabilities=["ALL"])),
    "Capability.add_capabilities": ({}, added(add_capabilities=["SYS_ADMIN"])),
    "Capability.drop_capabilities": ({}, added(drop_capabilities=["CHOWN"])),
    "Capability.add_ambient_capabilities": ({}, added(add_ambient_capabilities=["CHOWN"])),
    "LinuxContainerSecurityContext.privileged": ({}, security(privileged=True)),
    "LinuxContainerSecurityContext.namespace_options": ({}, namespaces(pid=cri.CONTAINER)),
    "NamespaceOption.network": ({}, namespaces(network=cri.CONTAINER)),
    "NamespaceOption.ipc": ({}, namespaces(ipc=cri.CONTAINER)),
    "NamespaceOption.pid": ({}, namespaces(pid=cri.CONTAINER)),
    "NamespaceOption.target_id": (
        namespaces(pid=cri.TARGET, target_id="a"),
        namespaces(pid=cri.TARGET, target_id="b"),
    ),
    "NamespaceOption.userns_options": ({}, userns(**NODE_UIDS)),
    "UserNamespace.mode": (userns(**NODE_UIDS), userns(mode=cri.NODE)),
    "UserNamespace.uids": (userns(**NODE_UIDS), userns(**{**NODE_UIDS, "uids": [OTHER]})),
    "UserNamespace.gids": (userns(**NODE_UIDS), userns(**{**NODE_UIDS, "gids": [OTHER]})),
    "IDMapping.host_id": (mapped(length=5), mapped(length=5, host_id=7)),
    "IDMapping.container_id": (mapped(length=5), mapped(length=5, container_id=7)),
    "IDMapping.length": (mapped(length=5), mapped(length=6)),
    "LinuxContainerSecurityContext.selinux_options": ({}, selinux(type="a")),
    "SELinuxOption.user": ({}, selinux(user="a")),
    "SELinuxOption.role": ({}, selinux(role="a")),
    "SELinuxOption.type": ({}, selinux(type="a")),
    "SELinuxOption.level": ({}, selinux(level="s1")),
    "LinuxContainerSecurityContext.run_as_user": ({}, security(run_as_user=number(value=5))),
    "Int64Value.value": (
        security(run_as_user=number(value=6)),
        security(run_as_user=number(value=5)),
    ),
    "LinuxContainerSecurityContext.run_as_group": (
        security(run_as_user=number(value=5)),
        security(run_as_user=number(value=5), run_as_group=number(value=6)),
    ),
    "LinuxContainerSecurityContext.run_as_username": ({}, security(run_as_username="root")),
    "LinuxContainerSecurityContext.readonly_rootfs": ({}, security(readonly_rootfs=True)),
    "LinuxContainerSecurityContext.supplemental_groups": ({}, security(supplemental_groups=[5])),
    "LinuxContainerSecurityContext.supplemental_groups_policy": (
        {},
        security(supplemental_groups_policy=cri.Strict),
    ),
    "LinuxContainerSecurityContext.no_new_privs": ({}, security(no_new_privs=True)),
    "LinuxContainerSecurityContext.masked_paths": ({}, security(masked_paths=["/a"])),
    "LinuxContainerSecurityContext.readonly_paths": ({}, security(readonly_paths=["/a"])),
    "LinuxContainerSecurityContext.seccomp": ({}, profile("seccomp")),
    "SecurityProfile.profile_type": (
        profile("apparmor"),
        profile("apparmor", profile_type=Profile.Unconfined),
    ),
    "SecurityProfile.localhost_ref": (
        profile("apparmor", profile_type=Profile.Localhost, localhost_ref="a"),
        profile("apparmor", profile_type=Profile.Localhost, localhost_ref="b"),
    ),
    "LinuxContainerSecurityContext.apparmor": (
        {},
        profile("apparmor", profile_type=Profile.Unconfined),
    ),
    "LinuxContainerSecurityContext.apparmor_profile": (
        {},
        security(apparmor_profile="unconfined"),
    ),
    "LinuxContainerSecurityContext.seccomp_profile_path": (
        {},
        security(seccomp_profile_path="runtime/default"),
    ),
    "LinuxContainerResources.cpu_period": ({}, limits(cpu_period=5)),
    "LinuxContainerResources.cpu_quota": ({}, limits(cpu_quota=5)),
    "LinuxContainerResources.cpu_shares": ({}, limits(cpu_shares=5)),
    "LinuxContainerResources.memory_limit_in_bytes": ({}, limits(memory_limit_in_bytes=5)),
    "LinuxContainerResources.memory_swap_limit_in_bytes": (
        limits(memory_limit_in_bytes=5),
        limits(memory_limit_in_bytes=5, memory_swap_limit_in_bytes=6),
    ),
    "LinuxContainerResources.oom_score_adj": ({}, limits(oom_score_adj=5)),
    "LinuxContainerResources.cpuset_cpus": ({}, limits(cpuset_cpus="0")),
    "LinuxContainerResources.cpuset_mems": ({}, limits(cpuset_mems="0")),
    "LinuxContainerResources.hugepage_limits": ({}, pages(page_size="2MB")),
    "HugepageLimit.page_size": (pages(page_size="2MB"), pages(page_size="1GB")),
    "HugepageLimit.limit": ({}, pages(page_size="2MB", limit=5)),
    "LinuxContainerResources.unified": ({}, limits(unified={"memory.high": "5"})),
}  # fmt: skip


# Of these only one value is possible: the effect is that the others are refused.
REFUSALS = {"NamespaceOption.network", "NamespaceOption.ipc"}


def pod(**fields: Any) -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(**fields))


# field -> (a pod's config, another one that differs in the field)
PLAN: dict[str, tuple[cri.PodSandboxConfig, cri.PodSandboxConfig]] = {
    "PodSandboxConfig.hostname": (pod(), cri.PodSandboxConfig(hostname="a", linux=pod().linux)),
    "PodSandboxConfig.linux": (pod(), pod(cgroup_parent="/a")),
    "LinuxPodSandboxConfig.cgroup_parent": (pod(), pod(cgroup_parent="/a")),
    "LinuxPodSandboxConfig.sysctls": (pod(), pod(sysctls={"net.ipv4.ip_forward": "1"})),
    "LinuxPodSandboxConfig.resources": (
        pod(),
        pod(resources=cri.LinuxContainerResources(cpu_shares=5)),
    ),
    "LinuxPodSandboxConfig.overhead": (
        pod(resources=cri.LinuxContainerResources(memory_limit_in_bytes=5)),
        pod(
            resources=cri.LinuxContainerResources(memory_limit_in_bytes=5),
            overhead=cri.LinuxContainerResources(memory_limit_in_bytes=6),
        ),
    ),
    "LinuxSandboxSecurityContext.selinux_options": (
        pod(),
        pod(
            security_context=cri.LinuxSandboxSecurityContext(
                selinux_options=cri.SELinuxOption(level="s1")
            )
        ),
    ),
    "LinuxPodSandboxConfig.security_context": (
        pod(),
        pod(
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=cri.NamespaceOption(network=cri.NODE)
            )
        ),
    ),
    "LinuxSandboxSecurityContext.namespace_options": (
        pod(),
        pod(
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=cri.NamespaceOption(ipc=cri.NODE)
            )
        ),
    ),
}

LIFECYCLE = "integration/test_cri_lifecycle.py"
BAD_INPUT = "integration/test_cri_bad_input.py"
CONTRACTS = "integration/test_cri_contracts.py"
STATS = "integration/test_cri_stats.py"
UPDATE = "integration/test_cri_update.py"
CONFIG = "integration/test_cri_container_config.py"
STREAMING = "integration/test_cri_streaming.py"
REGISTRIES = "integration/test_image_registries.py"
FILTERS = f"{LIFECYCLE}::test_lists_filter_by_id_state_pod_and_labels"
PIECES = f"{CONTRACTS}::test_a_stream_ends_and_its_items_come_once"
MISSING = f"{BAD_INPUT}::test_unknown_ids"

TESTED = {
    "StatusRequest.verbose": f"{CONFIG}::test_runtime_handlers_and_features_are_told",
    "UpdateRuntimeConfigRequest.runtime_config": f"{UPDATE}::test_the_nodes_pod_cidr",
    "RuntimeConfig.network_config": f"{UPDATE}::test_the_nodes_pod_cidr",
    "NetworkConfig.pod_cidr": f"{UPDATE}::test_the_nodes_pod_cidr",
    "RunPodSandboxRequest.config": f"{BAD_INPUT}::test_sandboxes",
    "RunPodSandboxRequest.runtime_handler": f"{BAD_INPUT}::test_an_unknown_runtime_handler",
    "PodSandboxConfig.metadata": f"{BAD_INPUT}::test_sandboxes",
    "PodSandboxMetadata.name": f"{LIFECYCLE}::test_a_name_is_taken_until_its_object_is_removed",
    "PodSandboxMetadata.uid": f"{BAD_INPUT}::test_sandboxes",
    "PodSandboxMetadata.namespace": f"{BAD_INPUT}::test_sandboxes",
    "PodSandboxMetadata.attempt": f"{CONTRACTS}::test_another_attempt_is_another_object",
    "ContainerMetadata.attempt": f"{CONTRACTS}::test_another_attempt_is_another_object",
    "PodSandboxConfig.log_directory": f"{CONFIG}::test_a_log_path_and_its_absence",
    "PodSandboxConfig.dns_config":
        "integration/test_sandbox_lifecycle.py::test_the_resolver_is_configured_as_asked",
    "DNSConfig.servers": "unit/test_sandbox_etc_files.py::test_resolv_conf_has_the_order",
    "DNSConfig.searches": "unit/test_sandbox_etc_files.py::test_resolv_conf_has_the_order",
    "DNSConfig.options": "unit/test_sandbox_etc_files.py::test_resolv_conf_has_the_order",
    "PodSandboxConfig.port_mappings":
        "integration/test_network_builtin.py::test_a_host_port_leads_to_the_pod_from_everywhere",
    "PortMapping.protocol":
        "integration/test_network_builtin.py::test_a_host_port_leads_to_the_pod_from_everywhere",
    "PortMapping.container_port":
        "integration/test_network_builtin.py::test_a_host_port_leads_to_the_pod_from_everywhere",
    "PortMapping.host_port":
        "integration/test_network_builtin.py::test_a_host_port_leads_to_the_pod_from_everywhere",
    "PortMapping.host_ip":
        "integration/test_network_builtin.py::test_a_host_port_with_a_host_ip_is_open_there_only",
    "PodSandboxConfig.labels":
        f"{CONTRACTS}::test_labels_and_annotations_come_back_unaltered",
    "PodSandboxConfig.annotations":
        f"{CONTRACTS}::test_labels_and_annotations_come_back_unaltered",
    "LinuxSandboxSecurityContext.privileged": f"{CONFIG}::test_privileged",
    "StopPodSandboxRequest.pod_sandbox_id": MISSING,
    "RemovePodSandboxRequest.pod_sandbox_id": MISSING,
    "PodSandboxStatusRequest.pod_sandbox_id": MISSING,
    "PodSandboxStatusRequest.verbose":
        f"{LIFECYCLE}::test_sandbox_status_echoes_its_config_and_has_an_address",
    "ListPodSandboxRequest.filter": FILTERS,
    "PodSandboxFilter.id": FILTERS,
    "PodSandboxFilter.state": FILTERS,
    "PodSandboxFilter.label_selector": FILTERS,
    "PodSandboxStateValue.state": FILTERS,
    "StreamPodSandboxesRequest.filter": PIECES,
    "UpdatePodSandboxResourcesRequest.pod_sandbox_id": f"{UPDATE}::test_bad_requests_for_pods",
    "UpdatePodSandboxResourcesRequest.resources":
        f"{UPDATE}::test_a_pod_with_a_cgroup_of_its_own_is_resized",
    "UpdatePodSandboxResourcesRequest.overhead": f"{UPDATE}::test_the_overhead_is_recorded",
    "CreateContainerRequest.pod_sandbox_id":
        f"{BAD_INPUT}::test_a_container_of_an_unknown_sandbox",
    "CreateContainerRequest.config": f"{BAD_INPUT}::test_containers",
    "CreateContainerRequest.sandbox_config": f"{CONFIG}::test_the_log_directory_of_the_request",
    "ContainerConfig.labels": f"{CONTRACTS}::test_labels_and_annotations_come_back_unaltered",
    "ContainerConfig.annotations":
        f"{CONTRACTS}::test_labels_and_annotations_come_back_unaltered",
    "ContainerConfig.log_path": f"{CONFIG}::test_a_log_path_and_its_absence",
    "ContainerConfig.stdin": "integration/test_streaming.py::",
    "ContainerConfig.stdin_once": "integration/test_shim.py::",
    "Mount.selinux_relabel":
        f"{CONFIG}::test_relabelling_without_selinux_changes_nothing",
    "Mount.image": f"{CONTRACTS}::test_the_mounts_of_the_request_are_in_the_status",
    "Mount.image_sub_path": f"{CONFIG}::test_a_part_of_an_image_as_a_volume",
    "StartContainerRequest.container_id": MISSING,
    "StopContainerRequest.container_id": MISSING,
    "StopContainerRequest.timeout": f"{LIFECYCLE}::test_a_later_shorter_timeout_wins",
    "RemoveContainerRequest.container_id": MISSING,
    "ListContainersRequest.filter": FILTERS,
    "ContainerFilter.id": FILTERS,
    "ContainerFilter.state": FILTERS,
    "ContainerFilter.pod_sandbox_id": FILTERS,
    "ContainerFilter.label_selector": FILTERS,
    "ContainerStateValue.state": FILTERS,
    "StreamContainersRequest.filter": PIECES,
    "ContainerStatusRequest.container_id": MISSING,
    "ContainerStatusRequest.verbose": f"{LIFECYCLE}::test_verbose_status_has_what_crictl_shows",
    "UpdateContainerResourcesRequest.container_id": f"{UPDATE}::test_bad_requests",
    "UpdateContainerResourcesRequest.linux":
        f"{UPDATE}::test_limits_reach_the_kernel_and_the_status",
    "ReopenContainerLogRequest.container_id": MISSING,
    "ExecSyncRequest.container_id": MISSING,
    "ExecSyncRequest.cmd": "integration/test_cri_exec.py::test_output_streams_and_exit_code",
    "ExecSyncRequest.timeout":
        "integration/test_cri_exec.py::test_a_timeout_kills_the_command_and_is_deadline_exceeded",
    "ContainerStatsRequest.container_id": f"{STATS}::test_unknown_ids",
    "ListContainerStatsRequest.filter": f"{STATS}::test_lists_are_filtered",
    "StreamContainerStatsRequest.filter": f"{STATS}::test_lists_are_filtered",
    "ContainerStatsFilter.id": f"{STATS}::test_lists_are_filtered",
    "ContainerStatsFilter.pod_sandbox_id": f"{STATS}::test_lists_are_filtered",
    "ContainerStatsFilter.label_selector": f"{STATS}::test_lists_are_filtered",
    "PodSandboxStatsRequest.pod_sandbox_id": f"{STATS}::test_unknown_ids",
    "ListPodSandboxStatsRequest.filter": f"{STATS}::test_pods_that_are_stopped_are_not_listed",
    "StreamPodSandboxStatsRequest.filter": f"{STATS}::test_pods_that_are_stopped_are_not_listed",
    "PodSandboxStatsFilter.id": f"{STATS}::test_pods_that_are_stopped_are_not_listed",
    "PodSandboxStatsFilter.label_selector":
        f"{STATS}::test_pods_that_are_stopped_are_not_listed",
    "ListImagesRequest.filter": "integration/test_image_pull.py::test_several_tags_are_one_image",
    "ImageFilter.image": "integration/test_image_pull.py::test_several_tags_are_one_image",
    "StreamImagesRequest.filter": PIECES,
    "ImageStatusRequest.image":
        "integration/test_image_pull.py::test_image_status_shows_the_image_or_nothing",
    "ImageStatusRequest.verbose":
        "integration/test_image_pull.py::test_image_status_shows_the_image_or_nothing",
    "PullImageRequest.image": "integration/test_image_pull.py::test_an_image_is_pulled_by_its_tag",
    "PullImageRequest.auth": f"{REGISTRIES}::test_basic_authentication",
    "AuthConfig.username": f"{REGISTRIES}::test_basic_authentication",
    "AuthConfig.password": f"{REGISTRIES}::test_basic_authentication",
    "AuthConfig.auth": "unit/test_image_auth.py::test_the_auth_field_holds_both",
    "AuthConfig.server_address": f"{REGISTRIES}::test_credentials_for_another_server_stay_here",
    "AuthConfig.identity_token": f"{REGISTRIES}::test_a_token_for_an_identity_token",
    "AuthConfig.registry_token": f"{REGISTRIES}::test_a_registry_token_is_sent_as_it_is",
    "RemoveImageRequest.image":
        "integration/test_image_pull.py::test_removing_an_image_removes_everything",
    "ExecRequest.container_id": f"{STREAMING}::",
    "ExecRequest.cmd": f"{STREAMING}::",
    "ExecRequest.tty": f"{STREAMING}::",
    "ExecRequest.stdin": f"{STREAMING}::",
    "ExecRequest.stdout": f"{STREAMING}::",
    "ExecRequest.stderr": f"{STREAMING}::",
    "AttachRequest.container_id": f"{STREAMING}::",
    "AttachRequest.tty": f"{STREAMING}::",
    "AttachRequest.stdin": f"{STREAMING}::",
    "AttachRequest.stdout": f"{STREAMING}::",
    "AttachRequest.stderr": f"{STREAMING}::",
    "PortForwardRequest.pod_sandbox_id": f"{STREAMING}::",
    "PortForwardRequest.port": f"{STREAMING}::",
}  # fmt: skip


def fields_of(descriptor: Descriptor, seen: set[str]) -> Iterator[str]:
    """Yield "Message.field" of a message and of all that it holds, but for Windows'."""
    if descriptor.name in seen:
        return
    seen.add(descriptor.name)
    for field in descriptor.fields:
        yield f"{descriptor.name}.{field.name}"
        inner = field.message_type
        is_map = inner is not None and inner.GetOptions().map_entry
        if inner is not None and not is_map and not inner.name.startswith("Windows"):
            yield from fields_of(inner, seen)


def request_fields() -> list[str]:
    implemented = (FUNCTIONS | STREAMS).keys() - REFUSED
    seen: set[str] = set()
    return [
        field
        for service in cri.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.name in implemented
        for field in fields_of(method.input_type, seen)
    ]


WITHOUT_EFFECT = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", DOCUMENT, re.MULTILINE))
FIELDS = request_fields()


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_has_an_effect_or_a_reason(field: str) -> None:
    places = [each for each in (SPEC, PLAN, TESTED, WITHOUT_EFFECT) if field in each]
    assert places, f"{field} is ignored: give it an effect, or its reason in docs/cri-fields.md"
    assert len(places) == 1, f"{field} is in several places"


def test_the_document_lists_what_there_is_with_a_reason() -> None:
    assert WITHOUT_EFFECT.keys() <= set(FIELDS), "a field that is gone"
    assert all(len(reason) > 20 for reason in WITHOUT_EFFECT.values())


@pytest.mark.parametrize("field", SPEC)
def test_a_change_of_a_containers_config_changes_what_is_made(field: str) -> None:
    before, after = (effect(cri.ContainerConfig(**config)) for config in SPEC[field])
    assert not isinstance(before, str), before
    if field not in REFUSALS:
        assert not isinstance(after, str), after
    assert before != after, f"{field} has no effect"


@pytest.mark.parametrize("field", PLAN)
def test_a_change_of_a_pods_config_changes_its_plan(field: str) -> None:
    before, after = PLAN[field]
    host = SandboxHost(selinux=True)
    plans = [dataclasses.asdict(plan_sandbox("s", each, host)) for each in (before, after)]
    assert plans[0] != plans[1], f"{field} has no effect"


@pytest.mark.parametrize("field", [each for each in TESTED if each in FIELDS])
def test_the_test_of_an_effect_exists(field: str) -> None:
    file, _, name = TESTED[field].partition("::")
    content = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^(async )?def {name or 'test_'}", content, re.MULTILINE), TESTED[field]


def test_a_config_without_changes_has_the_same_effect() -> None:
    assert effect(cri.ContainerConfig()) == effect(cri.ContainerConfig())
    assert not isinstance(effect(cri.ContainerConfig()), str)
