"""CreateContainer: image, user, spec, bundle, writable layer, and an init that waits for start.

Everything is undone, last first, when any of it fails.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import posixpath
import signal
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from api.cri import api_pb2 as cri
from api.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from api.stages import RECORDER, stage, waiting_for
from criserver import apparmor, cdi, host_devices, image_volumes, signals, waits
from criserver.bundle import remove_bundle, write_bundle
from criserver.container_spec import (
    ContainerSpecInput,
    anonymous_volumes,
    container_spec,
    localhost_profile,
)
from criserver.container_spec.fields import MAX_PATH
from criserver.made_once import holder_of, join_or_claim
from criserver.runtime import Runtime, new_id
from criserver.store.containers import State, container_name
from criserver.store.sandboxes import Sandbox
from criserver.users import ResolvedUser, resolve_user
from imageservice.objects import Image
from podsandbox.lifecycle import SandboxRuntime
from runtimeshim.client import CreateError, OCIRuntime, Rootfs, Shim, ShimOptions, SpawnerError
from runtimeshim.linux import selinux
from runtimeshim.oci import resolve

log = logging.getLogger(__name__)

OPERATION = "CreateContainer"

# What the peers make of a host path that does not exist.
HOST_PATH_MODE = 0o755


async def create_container(
    runtime: Runtime, request: cri.CreateContainerRequest
) -> cri.CreateContainerResponse:
    """Create a container in a READY sandbox; the same name again joins the operation in flight."""
    sandbox = runtime.sandboxes.mirror.get(request.pod_sandbox_id)
    config = request.config
    log_place = _check(sandbox, request)
    runtime.operations.claim(sandbox.id)  # who creates in it has taken it
    name = container_name(config.metadata, sandbox.message.metadata)
    holder = holder_of(runtime.operations, OPERATION, runtime.containers, name)
    if holder is not None:
        container_id = await join_or_claim(runtime.operations, OPERATION, holder)
    else:
        container = runtime.containers.reserve(new_id(), name, sandbox.id, config)
        creation = Creation(runtime, container.id, sandbox, config, log_place)
        container_id = await runtime.operations.run(container.id, OPERATION, creation.run)
    return cri.CreateContainerResponse(container_id=container_id)


def _check(sandbox: Sandbox, request: cri.CreateContainerRequest) -> LogPlace:
    """Refuse what cannot be created whatever the system says; returns where the log is."""
    config = request.config
    if not config.metadata.name:
        raise InvalidArgumentError("config.metadata needs a name")
    if not config.image.image:
        raise InvalidArgumentError("config.image.image is empty")
    _check_ready(sandbox)
    image_volumes.check(config)
    directory = request.sandbox_config.log_directory or sandbox.message.log_directory
    return LogPlace(directory, _log_path(directory, config.log_path))


def _check_ready(sandbox: Sandbox) -> None:
    if sandbox.state != cri.SANDBOX_READY:
        raise FailedPreconditionError(f"the pod sandbox {sandbox.id} is not ready")


class LogPlace(NamedTuple):
    """Where a container's log is: its absolute path, "" for none, below the pod's directory."""

    directory: str
    path: str


def _log_path(directory: str, path: str) -> str:
    """Return the log's absolute path, empty for none; it cannot leave the log directory."""
    if not directory or not path:
        return ""
    if len(os.fsencode(directory)) + len(os.fsencode(path)) >= MAX_PATH:
        raise InvalidArgumentError(f"log_path {path[:256]!r} is too long")
    normal = posixpath.normpath(path)
    if path.startswith("/") or normal in (".", "..") or normal.startswith("../") or "\0" in path:
        raise InvalidArgumentError(f"log_path {path[:256]!r} leaves the pod's log directory")
    if not directory.startswith("/") or "\0" in directory:
        raise InvalidArgumentError(f"log_directory {directory[:256]!r} is not an absolute path")
    return posixpath.join(directory, normal)


class Creation:
    """One CreateContainer; what it makes is undone when it fails."""

    def __init__(
        self,
        runtime: Runtime,
        container_id: str,
        sandbox: Sandbox,
        config: cri.ContainerConfig,
        log_place: LogPlace,
    ) -> None:
        self._runtime = runtime
        self._id = container_id
        self._sandbox = sandbox
        self._config = config
        self._log = log_place

    async def run(self) -> str:
        """Create the container and return its id."""
        runtime, created_at = self._runtime, time.time_ns()
        async with AsyncExitStack() as undo:
            undo.callback(runtime.containers.remove, self._id)
            image = runtime.images.resolve(self._config.image.image)
            stop_signal = self._stop_signal(image)
            with stage("rootfs"):  # from here on the image's layers stay, whoever removes it
                undo.push_async_callback(runtime.images.remove_rootfs, self._id)
                rootfs = await runtime.images.prepare_rootfs(image, self._id)
                mounted = await image_volumes.prepare(runtime.images, self._id, self._config)
            with stage("volumes"):
                wanted = anonymous_volumes(_image_config(image), self._config)
                volumes = await runtime.images.add_volumes(rootfs, self._id, wanted)
            with stage("user"):
                user = await self._user(image)
            with stage("spec"):
                spec = self._spec(image, user, mounted, volumes)
                await self._add_cdi_devices(spec)
                await asyncio.to_thread(self._make_directories)
            await self._relabel(spec["linux"].get("mountLabel", ""), volumes.values())
            shim = await self._isolate(rootfs, spec, undo)
            # The sandbox may have been stopped meanwhile; it has not seen this container then.
            _check_ready(runtime.sandboxes.mirror.get(self._sandbox.id))
            runtime.containers.created(
                self._id,
                config=self._config.SerializeToString(),  # with the images of its volumes
                image_id=image.id,
                log_path=self._log.path,
                stop_signal=stop_signal,
                user=json.dumps(
                    {"uid": user.uid, "gid": user.gid, "groups": list(user.additional_gids)}
                ),
                pid=shim.pid,
                created_at=created_at,
            )
            undo.pop_all()
        runtime.shims.adopt(self._id, shim)
        return self._id

    async def _isolate(self, rootfs: Rootfs, spec: dict[str, Any], undo: AsyncExitStack) -> Shim:
        """Make the bundle, and have the shim create the container."""
        bundle = self._runtime.bundle(self._id)
        undo.callback(remove_bundle, bundle)
        write_bundle(bundle, spec)
        options = ShimOptions(
            rootfs=rootfs,
            log_path=Path(self._log.path) if self._log.path else None,
            log_directory=Path(self._log.directory) if self._log.path else None,
            stdin=self._config.stdin,
            stdin_once=self._config.stdin_once,
            runtime=self._external(),
        )
        try:
            with stage("create"):
                shim = await self._runtime.spawner.spawn_shim(
                    self._id,
                    bundle,
                    options,
                    watch=lambda pid: waiting_for(lambda: waits.shim(pid)),
                )
                if (recorder := RECORDER.get()) is not None:
                    recorder.add(shim.timings, "create")
        except CreateError as err:
            raise _create_error(err) from err
        except SpawnerError as err:
            raise UnavailableError(f"the container cannot be created now: {err}") from err
        except TimeoutError as err:
            raise InternalError("the container cannot be created: its shim says nothing") from err
        undo.push_async_callback(shim.delete)
        for warning in shim.warnings:
            log.warning("container %s: %s", self._id, warning)
        return shim

    def _external(self) -> OCIRuntime | None:
        """Return the OCI binary that the sandbox's handler stands for; None: the embedded executor.

        Raises FailedPreconditionError when the handler is no longer configured.
        """
        name = self._sandbox.runtime_handler
        config = self._runtime.config
        if name in config.runtimes:
            return OCIRuntime(name, str(config.runtimes[name].path))
        if name in ("", config.default_runtime):
            return None
        raise FailedPreconditionError(
            f"the pod sandbox's runtime handler {name!r} is not configured any more"
        )

    async def _user(self, image: Image) -> ResolvedUser:
        database = await self._runtime.images.user_database(image)
        context = self._config.linux.security_context
        image_user = _image_config(image).get("User") or ""
        return resolve_user(context, image_user, database.passwd, database.group)

    def _stop_signal(self, image: Image) -> int:
        """Return the request's stop signal, else the image's, else SIGTERM."""
        asked = signals.number_of(self._config.stop_signal)
        text = _image_config(image).get("StopSignal") or ""
        if asked is not None or not text:
            return asked or int(signal.SIGTERM)
        try:
            return signals.parse(text)
        except InvalidArgumentError as err:  # the image can be run all the same
            log.warning("container %s: StopSignal of its image: %s", self._id, err)
            return int(signal.SIGTERM)

    def _spec(
        self,
        image: Image,
        user: ResolvedUser,
        image_mounts: dict[int, tuple[str, ...]],
        volumes: dict[str, str],
    ) -> dict[str, Any]:
        runtime, config = self._runtime, self._config
        context = config.linux.security_context
        host = runtime.host
        handler = self._sandbox.runtime_handler
        if handler in runtime.config.runtimes and handler not in runtime.recursive_read_only:
            host = replace(host, recursive_read_only=False)
        if context.privileged:
            host = replace(host, devices=tuple(host_devices.host_devices()))
        made = self._sandbox.runtime_values or {}
        spec = container_spec(
            ContainerSpecInput(
                container_id=self._id,
                sandbox_id=self._sandbox.id,
                config=config,
                sandbox_config=self._sandbox.message,
                sandbox=SandboxRuntime(**made),
                image_name=config.image.user_specified_image or config.image.image,
                image_config=_image_config(image),
                user=user,
                host=host,
                devices=tuple(host_devices.requested(list(config.devices))),
                volumes=volumes,
                image_mounts=image_mounts,
                seccomp_profile=_read_profile(localhost_profile(context)),
                target_pid_namespace=self._target(context.namespace_options),
            )
        )
        if profile := spec["process"].get("apparmorProfile"):
            apparmor.check_loaded(profile)
        if (limit := runtime.config.containers.pids_limit) > 0:
            spec["linux"]["resources"]["pids"] = {"limit": limit}
        return spec

    async def _add_cdi_devices(self, spec: dict[str, Any]) -> None:
        config = self._config
        names = cdi.wanted([each.name for each in config.CDI_devices], config.annotations)
        if names:
            directories = self._runtime.config.containers.cdi_spec_dirs
            cdi.apply(spec, await asyncio.to_thread(cdi.resolve, names, directories))

    def _target(self, options: cri.NamespaceOption) -> str:
        """Return the PID namespace of the container that an ephemeral one is to debug."""
        if options.pid != cri.TARGET:
            return ""
        target = self._runtime.containers.mirror.get(options.target_id)
        if target.sandbox_id != self._sandbox.id or target.state is not State.RUNNING:
            raise FailedPreconditionError(
                f"target_id {target.id}: it is not a RUNNING container of the same pod sandbox"
            )
        return f"/proc/{target.pid}/ns/pid"

    async def _relabel(self, label: str, own: Iterable[str]) -> None:
        """Label the volumes that ask for it, and its own ones; nothing to do without SELinux."""
        volumes = [each.host_path for each in self._config.mounts if each.selinux_relabel]
        volumes += own
        if not (label and volumes):
            return
        with stage("relabel"):
            for path in volumes:
                try:
                    await asyncio.to_thread(selinux.relabel, path, label)
                except OSError as err:
                    raise InternalError(f"{path[:256]!r} cannot be relabelled: {err}") from err

    def _make_directories(self) -> None:
        """Make the host paths that are missing, as the peers do, and the log's directory."""
        self._make_log_directory()
        paths = [mount.host_path for mount in self._config.mounts if mount.host_path]
        for path in paths:
            try:
                if not os.path.exists(path):
                    os.makedirs(path, HOST_PATH_MODE, exist_ok=True)
            except (OSError, ValueError) as err:
                raise InvalidArgumentError(f"{path[:256]!r} cannot be made: {err}") from err

    def _make_log_directory(self) -> None:
        """Make it below the pod's, out of which no link leads: the pod may have mounted that."""
        directory, path = self._log
        if not path:
            return
        below = posixpath.relpath(posixpath.dirname(path), directory)
        try:
            os.makedirs(directory, HOST_PATH_MODE, exist_ok=True)
            base = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.close(resolve.make_directory(base, below))
            finally:
                os.close(base)
        except (OSError, ValueError) as err:
            raise InvalidArgumentError(f"{path[:256]!r}: no directory for the log: {err}") from err


def _create_error(error: CreateError) -> Exception:
    """Tell what the request asked for in vain from the system's own faults."""
    kind = InvalidArgumentError if error.kind in ("spec", "start") else InternalError
    return kind(f"the container cannot be created: {error}")


def _image_config(image: Image) -> dict[str, Any]:
    """Return the `config` object of the OCI image configuration; an image may have none."""
    config: dict[str, Any] = image.config.get("config") or {}
    return config


def _read_profile(path: str) -> dict[str, Any] | None:
    """Read a localhost seccomp profile, an OCI linux.seccomp object."""
    if not path:
        return None
    try:
        profile: dict[str, Any] = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as err:
        raise InvalidArgumentError(f"the seccomp profile {path} cannot be read: {err}") from err
    return profile
