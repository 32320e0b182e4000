"""A daemon and the shims of another build: after an upgrade, and after a downgrade."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtimeshim import wire
from runtimeshim.client import Exec, Shim, ShimError, Spawner, connect_shim, launch, read_to_end
from tests.integration import harness
from tests.integration.adoption import is_ward, killed, shim_pid

pytestmark = pytest.mark.integration

# What the spawner of another build runs: the operation that one build has and the other has not is
# played by `resize`; what a newer one says more is played by a field and an event of its own.
OTHER_BUILD = """
import sys
from runtimeshim import spawner, wire
from runtimeshim.shim import supervisor

wire.PROTOCOL = {protocol}

class Other(supervisor.Supervisor):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if {older}:
            del self._operations["resize"]

    def _add_client(self, client):
        super()._add_client(client)
        if not {older}:
            wire.send(client, {{"event": "of the future", "kills": []}})

    def _describe(self):
        return super()._describe() | ({{}} if {older} else {{"of the future": [1]}})

    def _kept_state(self):
        return super()._kept_state() | ({{}} if {older} else {{"of the future": [1]}})

supervisor.Supervisor = Other
spawner.main()
"""


@dataclass(frozen=True)
class Met:
    """A container whose shim is of another build, and a daemon of this one."""

    rt: harness.Runtime
    shim: Shim
    protocol: int
    old_spawner: int


@pytest.fixture(params=[wire.PROTOCOL - 1, wire.PROTOCOL + 1], ids=["older", "newer"])
async def met(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Met]:
    protocol = int(request.param)
    (tmp_path / "run/containers").mkdir(parents=True)
    with monkeypatch.context() as patched:
        code = OTHER_BUILD.format(protocol=protocol, older=protocol < wire.PROTOCOL)
        patched.setattr(launch, "ENTRY", ["-I", "-c", code])
        patched.setattr(launch, "build_id", lambda _: "another build")
        other = await Spawner.connect(tmp_path / "run", {})
    rt = harness.Runtime(tmp_path, other)
    try:
        script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"
        shim = await rt.start(rt.spec(["sh", "-c", script]))
        await harness.until(lambda: rt.output() == "up\n")
        await other.close()  # the daemon has gone; the next one is of this build
        rt.spawner = await Spawner.connect(rt.run_dir, {})
        rt.shims.append(await connect_shim(shim.bundle))
        monkeypatch.setattr(wire, "SINCE", {"resize": wire.PROTOCOL})
        yield Met(rt, rt.shims[-1], protocol, other.pid)
    finally:
        for each in reversed(rt.shims):
            await each.delete()
        await rt.spawner.retire()
        await rt.spawner.close()
        await harness.until(lambda: not harness.alive(rt.spawner.pid))
        await harness.until(lambda: not harness.alive(other.pid))
        harness.remove_cgroups(rt.cgroup)
    harness.assert_no_crash(rt.run_dir)


async def exec_echo(shim: Shim, rt: harness.Runtime) -> bytes:
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        process = rt.spec(["echo", "still here"])["process"]
        started: Exec = await shim.exec(process, (null, write, null))
    finally:
        os.close(write)
        os.close(null)
    output = bytearray()
    await read_to_end(read, output, 1 << 16)
    assert await started.wait() == 0
    return bytes(output)


async def test_it_is_told_apart(met: Met) -> None:
    assert met.shim.protocol == met.protocol
    assert met.rt.spawner.pid != met.old_spawner


async def test_exec_works(met: Met) -> None:
    assert await exec_echo(met.shim, met.rt) == b"still here\n"


async def test_its_log_is_rotated(met: Met) -> None:
    log = met.rt.log("c")
    log.rename(log.with_suffix(".1"))
    await met.shim.reopen_log()
    assert log.read_text() == ""


async def test_attach_works(met: Met) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        await met.shim.attach(stdout=write)
    finally:
        os.close(write)


async def test_a_stop_works_and_the_exit_code_is_kept(met: Met) -> None:
    await met.shim.kill(signal.SIGTERM)
    record = await met.shim.wait()
    assert record.exit_code == 9


async def test_what_an_older_shim_cannot_do_is_said(met: Met) -> None:
    if met.protocol > wire.PROTOCOL:
        with pytest.raises(ShimError, match="has no terminal"):  # it is asked, and knows it
            await met.shim.resize(80, 24)
        return
    with pytest.raises(
        ShimError, match=r"of another build of criserver .* 'resize' came"
    ) as caught:
        await met.shim.resize(80, 24)
    assert caught.value.kind == "version"


async def test_an_operation_that_nobody_declared_as_new_is_refused_as_clearly(
    met: Met, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SINCE", {})
    with pytest.raises(ShimError, match=r"protocol .* and it does not know 'levitate'") as caught:
        await met.shim.call("levitate")
    assert caught.value.kind == "version"
    assert await exec_echo(met.shim, met.rt) == b"still here\n"


async def test_a_shim_of_this_build_takes_up_what_one_of_the_other_has_left(met: Met) -> None:
    os.kill(met.old_spawner, signal.SIGKILL)
    # It entrusts its container to this build's spawner, which it finds by its socket.
    old = shim_pid(met.shim)
    await harness.until(lambda: is_ward(met.rt, old))
    adopted = await killed(met.rt, met.shim)
    assert adopted.protocol == wire.PROTOCOL
    assert adopted.pid == met.shim.pid
    assert await exec_echo(adopted, met.rt) == b"still here\n"
    await adopted.kill(signal.SIGTERM)
    assert (await adopted.wait()).exit_code == 9
