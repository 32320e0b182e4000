"""From the options of `run` to what the CRI wants: a pod, and one container in it. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from api.cri import api_pb2 as cri
from criserver.cli.containers import LOG_DIRECTORY, MADE_BY_RUN
from criserver.cli.errors import RUNTIME_FAILURE, CommandError

NAMESPACE = "default"
LOG_NAME = "0.log"

CPU_PERIOD = 100_000  # µs, the kernel's default
MEMORY_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
PROTOCOLS = {"tcp": cri.TCP, "udp": cri.UDP, "sctp": cri.SCTP}
MAX_PORT = 65535
MAX_HOSTNAME = 64  # HOST_NAME_MAX (man 7 hostname)
MAX_ID = (1 << 31) - 1  # the highest uid and gid that the runtime accepts

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


@dataclass(frozen=True)
class RunOptions:
    """What the command line of `run` asks for, as it was written."""

    name: str
    uid: str  # of the pod
    log_directory: Path
    command: Sequence[str] = ()
    entrypoint: str | None = None
    interactive: bool = False
    detach: bool = False
    terminal: bool = False
    env: Sequence[str] = ()
    volumes: Sequence[str] = ()
    ports: Sequence[str] = ()
    memory: str | None = None
    cpus: str | None = None
    workdir: str = ""
    user: str | None = None
    hostname: str | None = None
    host_network: bool = False


def pod_config(options: RunOptions) -> cri.PodSandboxConfig:
    """Return the pod for one container. Raises CommandError for an option that makes no sense."""
    if not NAME.fullmatch(options.name):
        raise _bad("--name", options.name, "letters, digits, '_', '.' and '-'")
    network = cri.NODE if options.host_network else cri.POD
    namespaces = cri.NamespaceOption(network=network, pid=cri.CONTAINER, ipc=cri.POD)
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=options.name, uid=options.uid, namespace=NAMESPACE),
        hostname="" if options.host_network else _hostname(options),
        log_directory=str(options.log_directory),
        port_mappings=[_port(text) for text in options.ports],
        labels={MADE_BY_RUN: options.name},
        annotations={LOG_DIRECTORY: str(options.log_directory)},
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(namespace_options=namespaces)
        ),
    )


def container_config(
    options: RunOptions, image: cri.ImageSpec, environment: Mapping[str, str]
) -> cri.ContainerConfig:
    """Return the container; environment is where `-e NAME` takes its value from.

    Raises CommandError for an option that makes no sense.
    """
    namespaces = pod_config(options).linux.security_context.namespace_options
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=options.name),
        image=image,
        command=[options.entrypoint] if options.entrypoint else [],
        args=list(options.command),
        working_dir=options.workdir,
        envs=[_env(text, environment) for text in options.env],
        mounts=[_mount(text) for text in options.volumes],
        labels={MADE_BY_RUN: options.name},
        log_path=LOG_NAME,
        stdin=options.interactive,
        stdin_once=options.interactive and not options.detach,  # else who attaches comes and goes
        tty=options.terminal,
        linux=cri.LinuxContainerConfig(
            resources=_resources(options),
            security_context=_security_context(options.user, namespaces),
        ),
    )


def _bad(option: str, text: str, expected: str) -> CommandError:
    return CommandError(f"{option} {text!r} is not {expected}", RUNTIME_FAILURE)


def _hostname(options: RunOptions) -> str:
    hostname = options.name[:MAX_HOSTNAME] if options.hostname is None else options.hostname
    if len(hostname) > MAX_HOSTNAME:
        raise _bad("--hostname", hostname, f"at most {MAX_HOSTNAME} characters")
    return hostname


def _env(text: str, environment: Mapping[str, str]) -> cri.KeyValue:
    name, equals, value = text.partition("=")
    if not name:
        raise _bad("--env", text, "NAME=VALUE or NAME")
    if not equals:
        value = environment.get(name, "")
    return cri.KeyValue(key=name, value=value.encode("utf-8", "surrogateescape"))


def _mount(text: str) -> cri.Mount:
    host, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not host or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise _bad("--volume", text, "HOST:/CONTAINER[:ro]")
    source = Path(host).absolute()
    if not source.exists():
        raise CommandError(f"--volume {text!r}: {source} does not exist here", RUNTIME_FAILURE)
    return cri.Mount(host_path=str(source), container_path=target, readonly=mode == "ro")


def _port(text: str) -> cri.PortMapping:
    ports, _, protocol = text.partition("/")
    address, _, mapping = ports.rpartition(":")
    host_ip, _, host_port = address.rpartition(":")
    try:
        if host_ip:
            ipaddress.ip_address(host_ip.strip("[]"))
        return cri.PortMapping(
            host_ip=host_ip.strip("[]"),
            host_port=_port_number(host_port),
            container_port=_port_number(mapping),
            protocol=PROTOCOLS[protocol or "tcp"],
        )
    except (ValueError, KeyError) as err:
        raise _bad("--publish", text, "[IP:]HOST:CONTAINER[/tcp|udp|sctp]") from err


def _port_number(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_PORT:
        raise ValueError(text)
    return number


def _resources(options: RunOptions) -> cri.LinuxContainerResources:
    resources = cri.LinuxContainerResources()
    if options.memory is not None:
        resources.memory_limit_in_bytes = _memory(options.memory)
    if options.cpus is not None:
        resources.cpu_period = CPU_PERIOD
        resources.cpu_quota = _cpu_quota(options.cpus)
    return resources


def _memory(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)([bkmg]?)", text.lower())
    if match is None or int(match[1]) == 0:
        raise _bad("--memory", text, "a number of bytes, with a unit b, k, m or g if you like")
    return int(match[1]) * MEMORY_UNITS[match[2]]


def _cpu_quota(text: str) -> int:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text) or float(text) < 0.01:
        raise _bad("--cpus", text, "a number of CPUs, 0.01 at the least")
    return round(float(text) * CPU_PERIOD)


def _security_context(
    user: str | None, namespaces: cri.NamespaceOption
) -> cri.LinuxContainerSecurityContext:
    context = cri.LinuxContainerSecurityContext(
        namespace_options=namespaces,
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
    )
    if user is None:
        return context
    name, colon, group = user.partition(":")
    if not name or (colon and not _is_id(group)):
        raise _bad("--user", user, "UID[:GID] or NAME[:GID]")
    if _is_id(name):
        context.run_as_user.value = int(name)
    elif name.isdecimal():
        raise _bad("--user", user, f"an id up to {MAX_ID}")
    else:
        context.run_as_username = name
    if colon:
        context.run_as_group.value = int(group)
    return context


def _is_id(text: str) -> bool:
    return text.isdecimal() and text.isascii() and int(text) <= MAX_ID
