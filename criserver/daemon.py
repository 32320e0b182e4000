"""`criserver serve`: put the parts together, recover, serve, and end without disturbing anything.

The order matters: the spawner is started before grpc is imported, because gRPC's threads must not
be there when a process is made; the socket answers (UNAVAILABLE) while the daemon recovers, so that
clients wait and do not fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.errors import CRIError
from api.stages import observe
from criserver import apparmor, logs, oci_features, storage_labels
from criserver import config as configuration
from criserver.config import Config, ConfigError
from criserver.diagnosis import Diagnosis
from criserver.events import Events, publish_changes
from criserver.explain.history import History
from criserver.explain.subjects import Subjects
from criserver.host_facts import host_facts
from criserver.observability import Observability
from criserver.readiness import RuntimeReadiness
from criserver.recovery import recover
from criserver.reload import reload_forever
from criserver.rpcs import RPCObserver
from criserver.runtime import Runtime
from criserver.sandbox_watch import SandboxWatch
from criserver.service import Service
from criserver.shims import Shims
from criserver.stats.collector import Collector
from criserver.status import VERSION
from criserver.store.containers import ContainerStore
from criserver.store.database import DatabaseError, checkpoint_forever, open_database
from criserver.store.lock import Lock, LockedError
from criserver.store.sandboxes import SandboxStore
from criserver.streaming.server import StreamingServer
from criserver.streaming.tls import certificate
from imageservice import service
from imageservice.hosts import RegistryConfig
from imageservice.settings import ImageSettings
from podsandbox import lifecycle, namespaces, sockets
from podsandbox.network import SelectedNetwork
from podsandbox.network.builtin import BuiltinConfig, BuiltinNetwork
from podsandbox.network.cni import CNINetwork
from podsandbox.network.cni_plugins import PluginObserver
from podsandbox.network.pod_cidrs import PodCIDRs
from podsandbox.plan import SandboxHost
from runtimeshim.client import Spawner, SpawnerError
from runtimeshim.linux import allocator, cgroups

if TYPE_CHECKING:
    import grpc.aio

log = logging.getLogger(__name__)

# What the spawner imports at its start and runs in forks of itself.
WORKERS = {
    namespaces.WORKER: "podsandbox.namespaces_worker:main",
    sockets.WORKER: "podsandbox.sockets_worker:main",
    **service.WORKERS,
}

# What RPCs under way get on SIGTERM before they are cut off, and after that what operations get.
GRACE_SECONDS = 5.0
DRAIN_SECONDS = 10.0


def main(args: Sequence[str]) -> int:
    """Run `criserver serve`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="criserver serve", description="Serve the CRI.")
    configuration.add_flags(parser)
    options = parser.parse_args(args)
    try:
        config = configuration.load_flags(options)
        logs.set_up(config.log_level, config.log_format)
        os.umask(0o022)  # modes in this project are those that are written
        allocator.use_one_arena()  # docs/performance.md, memory
        lock = _lock(config)
        try:
            asyncio.run(serve(config, lambda: configuration.load_flags(options)))
        finally:
            lock.release()
    except (ConfigError, LockedError, DatabaseError, SpawnerError, CRIError, OSError) as err:
        sys.stderr.write(f"criserver: {err}\n")
        return 1
    return 0


def _lock(config: Config) -> Lock:
    for directory in (config.root, config.run_dir, config.run_dir / "containers"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Lock([config.root, config.run_dir])


async def serve(config: Config, read_again: Callable[[], Config]) -> None:
    """Serve until SIGTERM or SIGINT; containers go on. SIGHUP reloads what `read_again` returns."""
    service = Service()
    stopping, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    async with AsyncExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(open_database(config.root)))
        spawner = await Spawner.connect(config.run_dir, WORKERS)
        stack.push_async_callback(spawner.close)
        builtin = BuiltinConfig(
            bridge=config.network.bridge or None, subnets=config.network.subnets
        )
        cidrs = PodCIDRs(connection)
        observability = Observability(config)
        network = SelectedNetwork(
            _make_cni(config, connection, spawner, cidrs, observability.cni),
            BuiltinNetwork(builtin, connection, cidrs),
            cidrs,
        )
        stack.push_async_callback(network.close)
        profile = await apparmor.load_default(spawner)
        runtime = _make_runtime(config, connection, spawner, network, profile)
        if runtime.host.selinux:
            await storage_labels.apply(config.root)
        binaries = {name: external.path for name, external in config.runtimes.items()}
        runtime.recursive_read_only = await oci_features.recursive_read_only(spawner, binaries)
        stack.callback(runtime.history.close)
        stack.callback(observe(runtime.history))
        stack.push_async_callback(runtime.shims.close)
        stack.callback(runtime.sandbox_watch.close)
        stack.push_async_callback(runtime.images.close)
        stack.push_async_callback(runtime.collector.close)
        checkpoints = asyncio.create_task(checkpoint_forever(config.root))
        stack.callback(checkpoints.cancel)
        watchdog = asyncio.create_task(service.keep_alive())
        stack.callback(watchdog.cancel)
        observers = await observability.start(runtime, stack)
        reloads = functools.partial(reload_forever, runtime, read_again, hangup, service)
        await _serve(runtime, connection, stopping, service, observers, reloads)


def _make_runtime(
    config: Config,
    connection: sqlite3.Connection,
    spawner: Spawner,
    network: SelectedNetwork,
    apparmor_profile: str,
) -> Runtime:
    manager = cgroups.manager()
    host = host_facts(manager, apparmor_profile)
    sandbox_host = SandboxHost(
        cgroup_driver=config.cgroup_driver, selinux=host.selinux, hugetlb=host.hugetlb
    )
    sandboxes = SandboxStore(connection)
    containers = ContainerStore(connection)
    registries = RegistryConfig(
        certs_dir=config.registries.certs_dir,
        max_parallel_layers=config.registries.max_parallel_layers,
        stall_timeout=config.registries.stall_timeout_seconds,
    )
    events = Events()
    publish_changes(events, sandboxes, containers)
    history = History(connection, Subjects(sandboxes, containers))
    events.observers.append(history.changed)
    images = service.ImageService(
        config.root, connection, spawner, registries, _image_settings(config)
    )
    return Runtime(
        config=config,
        sandboxes=sandboxes,
        containers=containers,
        shims=Shims(containers),
        sandbox_watch=SandboxWatch(sandboxes),
        spawner=spawner,
        images=images,
        pods=lifecycle.Sandboxes(config.run_dir, spawner, network, manager, sandbox_host),
        network=network,
        host=host,
        events=events,
        cgroups=manager,
        collector=Collector(manager, sandboxes, containers, images.writable_usage),
        streams=_make_streams(config),
        readiness=RuntimeReadiness(spawner, connection),
        history=history,
    )


def _image_settings(config: Config) -> ImageSettings:
    policy = config.images.signature_policy
    return ImageSettings(
        pinned_images=config.images.pinned_images,
        signature_policy=Path(policy) if policy else None,
        volatile_rootfs=config.images.volatile_rootfs,
    )


def _make_streams(config: Config) -> StreamingServer:
    settings = config.streaming
    return StreamingServer(settings.address, settings.port, settings.idle_timeout_seconds)


async def _start_streams(runtime: Runtime) -> None:
    """Listen for the clients of exec, attach and port-forward. Raises ConfigError, OSError."""
    settings = runtime.config.streaming
    context = None
    if settings.tls:
        made = await certificate(settings, runtime.config.run_dir, runtime.spawner)
        context = made.context
    await runtime.streams.start(context)


def _make_cni(
    config: Config,
    connection: sqlite3.Connection,
    spawner: Spawner,
    cidrs: PodCIDRs,
    observer: PluginObserver | None,
) -> CNINetwork:
    settings = config.network
    return CNINetwork(
        settings.cni_conf_dirs,
        settings.cni_bin_dirs,
        spawner,
        connection,
        cidrs,
        timeout=settings.cni_timeout_seconds,
        observer=observer,
    )


async def _serve(
    runtime: Runtime,
    connection: sqlite3.Connection,
    stopping: asyncio.Event,
    service: Service,
    observers: Sequence[RPCObserver],
    reloads: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Bind the socket, recover, and answer until `stopping` is set; `reloads` runs meanwhile."""
    # Here, with the spawner running: grpc starts threads when it is imported.
    from criserver.handlers import handlers
    from criserver.interceptors import Readiness
    from criserver.server import bind, make_server

    readiness = Readiness()
    server = make_server(handlers(runtime), readiness, observers)
    diagnosis = Diagnosis(runtime)
    _add_extension(server, runtime, diagnosis)
    socket = runtime.config.listen_path
    bind(server, socket)
    await server.start()
    try:
        await _start_streams(runtime)
        await recover(runtime, connection)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: later collections need not look at it
        readiness.ready()
        _announce(socket)
        service.ready()
        audits = diagnosis.auditor.audit_forever(lambda: runtime.config.audit)
        background = [asyncio.create_task(work) for work in (reloads(), audits)]
        await stopping.wait()
        for task in background:
            task.cancel()
        log.info("stopping")
        service.stopping()
    finally:
        readiness.close("criserver is stopping")
        runtime.events.close()  # or the server would wait for the streams' readers
        await runtime.streams.stop("criserver is stopping")
        await server.stop(GRACE_SECONDS)
        await runtime.operations.drain(DRAIN_SECONDS)


def _add_extension(server: grpc.aio.Server, runtime: Runtime, diagnosis: Diagnosis) -> None:
    from api.extension import extension_pb2_grpc
    from criserver.extension import extension_servicer
    from criserver.sandbox_port_forward import connect_to_pod

    connect = functools.partial(connect_to_pod, runtime)
    servicer = extension_servicer(runtime.find_shim, runtime.images, connect, diagnosis)
    extension_pb2_grpc.add_ExtensionServicer_to_server(servicer, server)


def _announce(socket: Path) -> None:
    """Print the one line that says that clients can come."""
    sys.stdout.write(f"criserver {VERSION} serving CRI v1 on unix://{socket}\n")
    sys.stdout.flush()
