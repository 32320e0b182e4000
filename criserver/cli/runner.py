"""What `run` does: image, pod, container, streams, exit code, and what is taken away after."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import grpc

from api.cri import api_pb2 as cri
from api.extension import extension_pb2 as pb
from criserver.cli import relay, terminal
from criserver.cli.client import Client
from criserver.cli.containers import container_status, remove_log, remove_pod
from criserver.cli.errors import RUNTIME_FAILURE, CommandError, start_exit_code
from criserver.cli.image_names import find_image
from criserver.cli.pod_config import RunOptions, container_config, pod_config
from criserver.cli.pulling import pull_image

LOG_ROOT = "/var/log/criserver"
LOG_ROOT_VARIABLE = "CRISERVER_LOG_DIR"

SIGKILLED = 137


class Runner:
    """One invocation of `run`."""

    def __init__(self, client: Client, options: argparse.Namespace) -> None:
        self._client = client
        self._options = options
        uid = secrets.token_hex(16)
        self._plan = RunOptions(
            name=options.name or _name_for(options.image),
            uid=uid,
            log_directory=Path(os.environ.get(LOG_ROOT_VARIABLE) or LOG_ROOT) / uid,
            command=options.command,
            entrypoint=options.entrypoint,
            interactive=options.interactive,
            detach=options.detach,
            terminal=options.tty,
            env=options.env,
            volumes=options.volume,
            ports=options.publish,
            memory=options.memory,
            cpus=options.cpus,
            workdir=options.workdir or "",
            user=options.user,
            hostname=options.hostname,
            host_network=options.network == "host",
        )

    def run(self) -> int:
        """Run the container and return the exit code. Raises CommandError."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end_by_signal)  # so that what was made is taken away
        self._check()
        pod = pod_config(self._plan)
        container_config(self._plan, cri.ImageSpec(), os.environ)  # mistakes show before a pull
        container = container_config(self._plan, self._image(), os.environ)
        with contextlib.ExitStack() as cleanup:
            pod_id = self._make_pod(pod, cleanup)
            container_id = self._create(pod_id, pod, container)
            if self._options.detach:
                self._start(container_id)
                cleanup.pop_all()
                print(container_id)
                return 0
            return self._foreground(container_id, cleanup)

    def _check(self) -> None:
        if self._options.detach and self._options.rm:
            raise CommandError(
                "--rm needs this program to wait for the end: leave out -d, and use"
                " `criserver rm` later",
                RUNTIME_FAILURE,
            )
        if self._raw:
            terminal.require_terminal()
        if self._options.name:
            self._check_name(self._options.name)

    @property
    def _raw(self) -> bool:
        return self._options.tty and self._options.interactive and not self._options.detach

    def _check_name(self, name: str) -> None:
        with self._doing("list containers"):
            request = cri.ListContainersRequest()
            containers = self._client.runtime.ListContainers(request).containers
        for container in containers:
            if container.metadata.name == name:
                raise CommandError(
                    f"the name {name!r} is in use by container {container.id}: choose another,"
                    f" or `criserver rm {name}`",
                    RUNTIME_FAILURE,
                )

    def _image(self) -> cri.ImageSpec:
        name = self._options.image
        image = find_image(self._client, name, RUNTIME_FAILURE)
        policy = self._options.pull
        if image is None and policy == "never":
            raise CommandError(
                f"image {name!r} is not here, and --pull=never: `criserver pull {name}`",
                RUNTIME_FAILURE,
            )
        if image is not None and policy != "always":
            return cri.ImageSpec(image=image.id, user_specified_image=name)
        sys.stderr.write(f"criserver run: pulling {name}\n")
        image_id = pull_image(self._client, name, RUNTIME_FAILURE)
        return cri.ImageSpec(image=image_id, user_specified_image=name)

    def _make_pod(self, config: cri.PodSandboxConfig, cleanup: contextlib.ExitStack) -> str:
        """Make the pod; cleanup removes it, the containers in it and their log."""
        log = self._plan.log_directory
        try:
            log.mkdir(parents=True)
        except OSError as err:
            message = f"cannot make the log directory {log}: {err.strerror}"
            raise CommandError(message, RUNTIME_FAILURE) from err
        undo = cleanup.enter_context(contextlib.ExitStack())
        undo.callback(remove_log, log)
        with self._doing("make a pod"):
            request = cri.RunPodSandboxRequest(config=config)
            pod_id = self._client.runtime.RunPodSandbox(request).pod_sandbox_id
        undo.pop_all()
        cleanup.callback(remove_pod, self._client, pod_id, str(log))
        return pod_id

    def _create(
        self, pod_id: str, pod: cri.PodSandboxConfig, container: cri.ContainerConfig
    ) -> str:
        request = cri.CreateContainerRequest(
            pod_sandbox_id=pod_id, config=container, sandbox_config=pod
        )
        with self._start_errors("create the container"):
            return self._client.runtime.CreateContainer(request).container_id

    def _start(self, container_id: str) -> None:
        with self._start_errors("start the container"):
            request = cri.StartContainerRequest(container_id=container_id)
            self._client.runtime.StartContainer(request)

    def _foreground(self, container_id: str, cleanup: contextlib.ExitStack) -> int:
        """Attach, start, relay until the end; what has run once stays unless --rm is given."""
        started = False

        def start() -> None:
            nonlocal started
            self._start(container_id)
            started = True
            if not self._options.rm:
                cleanup.pop_all()

        try:
            exit_code = self._relay(container_id, start)
        except relay.GivenUpError as err:
            raise self._given_up() from err
        except grpc.RpcError as err:
            if started:
                cleanup.pop_all()  # the container may be anywhere by now: it is the user's to judge
            raise self._attach_failure(err, started=started) from err
        self._explain_exit(container_id, exit_code)
        return exit_code

    def _relay(self, container_id: str, started: Callable[[], None]) -> int:
        start = pb.AttachStart(
            container_id=container_id,
            stdin=self._options.interactive,
            size=relay.terminal_size() if self._options.tty else None,
        )
        return relay.relay(
            self._client.extension.Attach,
            pb.AttachInput(start=start),
            stdin=self._options.interactive,
            raw=self._raw,
            started=started,
        )

    def _given_up(self) -> CommandError:
        name = self._plan.name
        fate = "is removed" if self._options.rm else f"runs on: `criserver stop {name}`"
        return CommandError(f"interrupted; container {name} {fate}", RUNTIME_FAILURE)

    def _attach_failure(self, error: grpc.RpcError, *, started: bool) -> CommandError:
        why = self._client.explain(error)
        name = self._plan.name
        if not started:
            return CommandError(f"cannot attach to the container: {why}", RUNTIME_FAILURE)
        hint = f"`criserver logs -f {name}`"
        if self._options.rm:
            hint += f", and `criserver rm -f {name}` since --rm cannot"
        return CommandError(
            f"lost sight of container {name}, which runs on: {why}; then {hint}", RUNTIME_FAILURE
        )

    def _explain_exit(self, container_id: str, exit_code: int) -> None:
        if exit_code != SIGKILLED:
            return
        if container_status(self._client, container_id).reason == "OOMKilled":
            sys.stderr.write("criserver run: the container was out of memory and was killed\n")

    def _doing(self, what: str) -> contextlib.AbstractContextManager[None]:
        return self._client.doing(what, RUNTIME_FAILURE)

    @contextlib.contextmanager
    def _start_errors(self, what: str) -> Iterator[None]:
        """As docker does, tell by the exit code why the command could not be started."""
        try:
            yield
        except grpc.RpcError as err:
            why = self._client.explain(err)
            raise CommandError(f"cannot {what}: {why}", start_exit_code(why)) from err


def _end_by_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _name_for(image: str) -> str:
    """Return a name like "busybox-3fa91c" for a container of docker.io/library/busybox:1.36."""
    repository = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return f"{repository or 'container'}-{secrets.token_hex(3)}"
