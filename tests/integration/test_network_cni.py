"""CNI with Debian's plugins, and with plugins that do what plugins should not do."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from api.cri import api_pb2 as cri
from api.errors import InternalError, UnavailableError
from podsandbox.pins import release
from runtimeshim.linux.cgroups import units
from tests.integration.daemon import wait_for
from tests.integration.leaks import snapshot
from tests.integration.sandboxes import (
    HOST,
    World,
    free_port,
    inside,
    links,
    new_world,
    other_machine,
    pod_config,
    run,
    tcp,
    udp,
)

WAIT_SECONDS = 30.0


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


@pytest_asyncio.fixture
async def bridged(world: World) -> AsyncIterator[World]:
    """World on Debian's bridge, host-local and portmap plugins."""
    bridge = {
        "type": "bridge",
        "bridge": f"{world.bridge}c",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": world.cni_subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(world.home / "host-local"),
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    configure(world, [bridge, portmap])
    yield world
    for pod in list(world.made):
        await world.stop(pod)
    run("ip", "link", "delete", f"{world.bridge}c")


def configure(world: World, plugins: list[dict[str, Any]], version: str = "1.0.0") -> Path:
    path = world.cni_dir / "10-test.conflist"
    document = {"cniVersion": version, "name": f"net-{world.bridge}", "plugins": plugins}
    path.write_text(json.dumps(document))
    return path


def plugin(world: World, name: str, script: str) -> dict[str, Any]:
    """Install a plugin that keeps a record of its calls; returns its configuration."""
    path = world.bin_dir / name
    record = world.home / f"{name}.calls"
    path.write_text(
        f'#!/bin/sh\ninput=$(cat)\nprintf \'%s %s %s\\n\' "$CNI_COMMAND" "${{CNI_NETNS:--}}" '
        f'"$input" >> {record}\n{script}\n'
    )
    path.chmod(0o755)
    return {"type": name}


def calls(world: World, name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What a plugin was called with: command, namespace, configuration."""
    path = world.home / f"{name}.calls"
    if not path.exists():
        return []
    lines = [line.split(" ", 2) for line in path.read_text().splitlines()]
    return [(command, netns, json.loads(text)) for command, netns, text in lines]


def stored(world: World) -> list[str]:
    """The sandboxes whose attachment is recorded."""
    rows = world.database.execute("SELECT sandbox_id FROM cni_attachments")
    return [row[0] for row in rows]


async def all_deleted(world: World) -> None:
    """Wait until no DEL is left to do."""
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*(deletion.task for deletion in world.cni._deletions.values()))
    assert stored(world) == []


def answer(*addresses: str, version: str = "1.0.0") -> str:
    """A shell command that answers ADD with these addresses of eth0."""
    result = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": address, "interface": 0} for address in addresses],
    }
    return f"[ $CNI_COMMAND = DEL ] || echo '{json.dumps(result)}'"


async def test_pods_talk_through_the_bridge_plugin(bridged: World) -> None:
    first, second = await bridged.create(), await bridged.create()
    a, b = bridged.netns(first), bridged.netns(second)
    assert bridged.runtime(first).network["provider"] == "cni"
    assert tcp(b, 80, a, (bridged.ip(second), 80)) == bridged.ip(first)
    gateway = inside(a, lambda: run("ip", "route", "show", "default").split()[2])
    assert tcp(a, 80, HOST, (bridged.ip(first), 80)) == gateway
    assert tcp(a, 80, a, ("127.0.0.1", 80)) == "127.0.0.1"
    with other_machine() as far:
        assert tcp(far.netns, 80, a, (far.ip, 80)) == far.host_ip


async def test_a_host_port_leads_to_the_pod_by_the_portmap_plugin(bridged: World) -> None:
    tcp_port, udp_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    mappings = [
        cri.PortMapping(protocol=cri.TCP, container_port=80, host_port=tcp_port),
        cri.PortMapping(protocol=cri.UDP, container_port=53, host_port=udp_port),
        cri.PortMapping(protocol=cri.TCP, container_port=81),  # no host port: not forwarded
    ]
    pod = await bridged.create(pod_config(port_mappings=mappings))
    netns = bridged.netns(pod)
    with other_machine() as far:
        assert tcp(netns, 80, far.netns, (far.host_ip, tcp_port)) == far.ip
        assert udp(netns, 53, far.netns, (far.host_ip, udp_port)) == far.ip
        assert tcp(netns, 80, HOST, ("127.0.0.1", tcp_port))
        assert tcp(netns, 80, HOST, (far.host_ip, tcp_port))


async def test_pods_of_both_providers_live_beside_each_other(bridged: World) -> None:
    config = bridged.cni_dir / "10-test.conflist"
    aside = config.rename(config.with_suffix(".off"))
    builtin = await bridged.create()
    aside.rename(config)
    cni = await bridged.create()
    assert bridged.runtime(builtin).network["provider"] == "builtin"
    assert bridged.runtime(cni).network["provider"] == "cni"
    reached = (bridged.ip(builtin), 80)
    assert tcp(bridged.netns(builtin), 80, bridged.netns(cni), reached)
    await bridged.stop(builtin)
    await bridged.stop(cni)
    assert not bridged.builtin._leases.holders()


async def test_nothing_is_left_after_stop_and_remove(bridged: World) -> None:
    mapping = cri.PortMapping(
        protocol=cri.TCP, container_port=80, host_port=free_port(socket.SOCK_STREAM)
    )
    first = await bridged.create()  # makes the bridge, which stays
    before = snapshot([bridged.home / "host-local", bridged.home / "sandboxes"])
    pod = await bridged.create(pod_config(port_mappings=[mapping]))
    for _ in range(2):
        await bridged.stop(pod)
    await bridged.remove(pod)
    await bridged.sandboxes.remove(pod)
    bridged.assert_nothing_left(before, [bridged.home / "host-local", bridged.home / "sandboxes"])
    await bridged.stop(first)


async def test_del_works_after_the_configuration_has_gone(bridged: World) -> None:
    pod = await bridged.create()
    leases = bridged.home / "host-local" / f"net-{bridged.bridge}"
    assert (leases / bridged.ip(pod)).exists()
    (bridged.cni_dir / "10-test.conflist").unlink()
    await bridged.stop(pod)
    assert not (leases / bridged.ip(pod)).exists()


async def test_a_pod_lost_in_a_crash_is_detached_at_the_next_start(bridged: World) -> None:
    kept, lost = await bridged.create(), await bridged.create()
    leases = bridged.home / "host-local" / f"net-{bridged.bridge}"
    lost_ip = bridged.ip(lost)
    await bridged.restart()
    await bridged.sandboxes.reconcile([kept])
    assert not (leases / lost_ip).exists()
    assert (leases / bridged.ip(kept)).exists()
    assert not (bridged.home / "sandboxes" / lost).exists()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_chained_plugins_pass_their_results_on(world: World, version: str) -> None:
    first = plugin(world, "first", answer("10.1.2.3/24", version=version))
    second = plugin(world, "second", answer("10.1.2.3/24", "fd00::3/64", version=version))
    second["capabilities"] = {"portMappings": True, "cgroupPath": True, "bandwidth": False}
    configure(world, [first, second], version)
    config = pod_config(
        port_mappings=[cri.PortMapping(container_port=80, host_port=8080)],
        annotations={"kubernetes.io/ingress-bandwidth": "10M"},
    )
    pod = await world.create(config)
    assert world.runtime(pod).ips == ["10.1.2.3", "fd00::3"]
    netns = world.netns(pod)
    await world.stop(pod)

    (add_first, del_first), (add_second, del_second) = calls(world, "first"), calls(world, "second")
    assert (add_first[0], add_first[1], del_first[0]) == ("ADD", netns, "DEL")
    assert "prevResult" not in add_first[2]
    assert [ip["address"] for ip in add_second[2]["prevResult"]["ips"]] == ["10.1.2.3/24"]
    assert add_second[2]["runtimeConfig"] == {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
        "cgroupPath": units.directory(world.runtime(pod).cgroup_parent),
    }
    assert ("prevResult" in del_second[2]) == (version != "0.3.1")
    assert del_second[2]["runtimeConfig"] == add_second[2]["runtimeConfig"]
    assert del_second[2]["cniVersion"] == version


async def test_a_failing_plugin_is_named_with_its_words_and_all_are_deleted(world: World) -> None:
    error = {"cniVersion": "1.0.0", "code": 11, "msg": "no luck", "details": "today"}
    good = plugin(world, "good", answer("10.1.2.3/24"))
    bad = plugin(world, "bad", f"echo '{json.dumps(error)}'; [ $CNI_COMMAND = DEL ]")
    configure(world, [good, bad])
    before = snapshot([world.home / "sandboxes"])
    with pytest.raises(InternalError, match=r"plugin bad ADD: no luck: today \(code 11\)"):
        await world.create()
    world.assert_nothing_left(before, [world.home / "sandboxes"])
    assert [call[0] for call in calls(world, "good")] == ["ADD", "DEL"]
    assert [call[0] for call in calls(world, "bad")] == ["ADD", "DEL"]


async def test_a_pod_that_fails_while_plugins_run_is_deleted_with_its_namespace(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(world, [plugin(world, "good", answer("10.1.2.3/24"))])
    before = snapshot([world.home / "sandboxes"])
    monkeypatch.setattr("podsandbox.namespaces._SHM_SIZE", "much")
    with pytest.raises(InternalError, match=r"Invalid argument: .*shm"):
        await world.create()
    assert [(command, netns != "-") for command, netns, _ in calls(world, "good")] == [
        ("ADD", True),
        ("DEL", True),
    ]
    world.assert_nothing_left(before, [world.home / "sandboxes"])


async def test_a_hanging_plugin_is_killed_and_its_stderr_is_told(world: World) -> None:
    world.cni_timeout = 0.5
    await world.restart()
    script = '[ "$CNI_COMMAND" = DEL ] && exit 0; echo waiting for a lease >&2; sleep 1000'
    configure(world, [plugin(world, "slow", script)])
    with pytest.raises(InternalError, match=r"plugin slow ADD: killed after 0.5 s.*for a lease"):
        await world.create()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo rubbish", "answered no JSON"),
        ("echo '[]'", "answered no result"),
        ("true", "answered no JSON"),
        ("echo oops >&2; exit 3", "exit code 3, without a CNI error; stderr: oops"),
        (answer(), "answered no address for eth0"),
        ("kill -9 $$", "exit code 137"),
        ('echo \'{"ips": [{"address": "x"}]}\'', "an address that is none"),
        ('echo \'{"ips": [{"address": "1.2.3.4/8", "interface": 7}]}\'', "which is not listed"),
        ('echo \'{"ips": {"address": "x"}}\'', "ips is no list"),
    ],
)
async def test_an_answer_that_is_none_is_an_error(world: World, script: str, message: str) -> None:
    configure(world, [plugin(world, "odd", f'[ "$CNI_COMMAND" = DEL ] && exit 0\n{script}')])
    with pytest.raises(InternalError, match=message):
        await world.create()
    assert [call[0] for call in calls(world, "odd")] == ["ADD", "DEL"]


async def test_a_pod_may_have_ipv6_only(world: World) -> None:
    configure(world, [plugin(world, "six", answer("fd00::7/64"))])
    pod = await world.create()
    assert world.runtime(pod).ips == ["fd00::7"]


async def test_a_failing_del_holds_nothing_up_and_is_tried_again(world: World) -> None:
    flag = world.home / "works"
    script = f'[ "$CNI_COMMAND" = ADD ] || [ -e {flag} ] || exit 1; {answer("10.1.2.3/24")}'
    configure(world, [plugin(world, "weak", script)])
    pod = await world.create()
    await world.stop(pod)
    await world.remove(pod)
    assert [call[0] for call in calls(world, "weak")] == ["ADD", "DEL"]
    flag.touch()
    async with asyncio.timeout(WAIT_SECONDS):
        await world.cni._deletions[pod].task
    assert stored(world) == []
    last = calls(world, "weak")[-1]
    assert (last[0], last[1]) == ("DEL", "-")  # the namespace has gone meanwhile


async def test_a_failed_del_is_tried_again_after_a_restart(world: World) -> None:
    flag = world.home / "works"
    script = f'[ "$CNI_COMMAND" = ADD ] || [ -e {flag} ] || exit 1; {answer("10.1.2.3/24")}'
    configure(world, [plugin(world, "weak", script)])
    pod = await world.create()
    await world.stop(pod)
    await world.restart()
    flag.touch()
    await world.sandboxes.reconcile([pod])  # it is stopped, and not removed
    await all_deleted(world)


async def test_a_broken_configuration_makes_the_network_not_ready(world: World) -> None:
    assert await world.network.status() == (True, "", "")  # the built-in one
    (world.cni_dir / "10-test.conf").write_text("{")
    ready, reason, message = await world.network.status()
    assert (ready, reason) == (False, "NetworkPluginNotReady")
    assert "10-test.conf: not JSON" in message
    with pytest.raises(UnavailableError, match=r"10-test\.conf"):
        await world.create()
    configure(world, [{"type": "absent"}])
    assert "plugin absent is not in" in (await world.network.status()).message
    configure(world, [plugin(world, "there", answer("10.1.2.3/24"))])
    assert (await world.network.status()).ready
    assert world.runtime(await world.create()).ips == ["10.1.2.3"]


async def test_a_pod_on_the_hosts_network_runs_no_plugin(world: World) -> None:
    configure(world, [plugin(world, "never", "exit 1")])
    config = pod_config()
    config.linux.security_context.namespace_options.network = cri.NODE
    pod = await world.create(config)
    assert world.runtime(pod).ips == []
    await world.stop(pod)
    assert calls(world, "never") == []
    assert world.bridge not in links()


async def test_a_hanging_del_holds_a_stop_no_longer_than_its_timeout_and_the_rest_not_at_all(
    world: World,
) -> None:
    world.cni_timeout = 0.5
    await world.restart()
    script = f'[ "$CNI_COMMAND" = DEL ] && exec sleep 1000; {answer("10.1.2.3/24")}'
    configure(world, [plugin(world, "stuck", script)])
    pod = await world.create()
    await world.stop(pod)
    async with asyncio.timeout(0.4):  # no plugin is waited for
        await world.remove(pod)
    assert stored(world) == [pod]
    (world.bin_dir / "stuck").write_text("#!/bin/sh\n")
    await all_deleted(world)


async def test_while_a_del_runs_its_network_namespace_is_all_that_is_left(world: World) -> None:
    flag = world.home / "go-on"
    script = f"while [ $CNI_COMMAND = DEL ] && [ ! -e {flag} ]; do sleep 0.05; done; "
    configure(world, [plugin(world, "long", script + answer("10.1.2.3/24"))])
    config = pod_config()
    config.linux.security_context.namespace_options.pid = cri.POD
    pod = await world.create(config)
    stopping = asyncio.create_task(world.stop(pod))
    namespaces = world.home / "sandboxes" / pod / "ns"
    await asyncio.to_thread(wait_for, lambda: os.listdir(namespaces) == ["net"], "the rest's end")
    assert not Path(f"/proc/{world.runtime(pod).init_pid}").exists()
    assert not stopping.done()
    flag.touch()
    await stopping
    assert not namespaces.exists()


async def test_each_stop_tries_a_failed_del_again(world: World) -> None:
    flag = world.home / "works"
    script = f'[ "$CNI_COMMAND" = ADD ] || [ -e {flag} ] || exit 1; {answer("10.1.2.3/24")}'
    configure(world, [plugin(world, "weak", script)])
    pod = await world.create()
    await world.stop(pod)
    flag.touch()
    await world.stop(pod)
    assert stored(world) == []


async def test_a_pod_half_made_in_a_crash_is_deleted_while_its_namespace_is_there(
    world: World,
) -> None:
    configure(world, [plugin(world, "one", answer("10.1.2.3/24"))])
    pod = await world.create()
    netns = world.netns(pod)
    await world.restart()
    await world.sandboxes.remove(pod)  # as recovery does with what was half made
    assert calls(world, "one")[-1][:2] == ("DEL", netns)
    assert stored(world) == []


async def test_after_a_reboot_the_dels_are_sent_and_the_pods_stay_to_be_removed(
    world: World,
) -> None:
    """The namespaces are gone; the kubelet stops and removes the sandboxes when it comes to it."""
    configure(world, [plugin(world, "one", answer("10.1.2.3/24"))])
    pod = await world.create()
    release(world.home / "sandboxes" / pod)
    await world.restart()
    await world.sandboxes.reconcile([pod])
    await all_deleted(world)
    assert calls(world, "one")[-1][:2] == ("DEL", "-")
    await world.stop(pod)
    assert len(calls(world, "one")) == 2


async def test_the_first_usable_file_of_all_directories_counts(world: World) -> None:
    world.cni_dir_2.mkdir()
    second = {"cniVersion": "1.0.0", "name": "second", **plugin(world, "b", answer("10.2.0.2/24"))}
    (world.cni_dir_2 / "00-second.conf").write_text(json.dumps(second))
    first = configure(world, [plugin(world, "a", answer("10.1.0.2/24"))])
    assert world.ip(await world.create()) == "10.1.0.2"  # the directory goes before the name
    first.write_text("{")
    assert world.ip(await world.create()) == "10.2.0.2"
    (world.bin_dir / "b").unlink()
    assert "plugin b is not in" in (await world.network.status()).message
    (world.bin_dir / "b").write_text("#!/bin/sh\n")  # without x
    assert "plugin b cannot be executed from" in (await world.network.status()).message


async def test_a_changed_configuration_counts_for_the_next_pod_however_it_came(
    world: World,
) -> None:
    """Written in place, renamed over, and in a directory that was exchanged for another."""

    def write(directory: Path, address: str) -> Path:
        new = directory / "new"
        plugins = [{**plugin(world, "p", f'echo "$input" | {reflect}'), "give": address}]
        document = {"cniVersion": "1.0.0", "name": "n", "plugins": plugins}
        new.write_text(json.dumps(document))
        return new

    reflect = (
        'sed -n \'s|.*"give": "\\([^"]*\\)".*|'
        '{"cniVersion": "1.0.0", "ips": [{"address": "\\1"}]}|p\''
    )
    path = world.cni_dir / "10-n.conflist"
    write(world.cni_dir, "10.1.0.1/24").rename(path)
    assert world.ip(await world.create()) == "10.1.0.1"
    path.write_text(path.read_text().replace("10.1.0.1", "10.1.0.2"))
    assert world.ip(await world.create()) == "10.1.0.2"
    write(world.cni_dir, "10.1.0.3/24").rename(path)
    assert world.ip(await world.create()) == "10.1.0.3"
    world.cni_dir.rename(world.home / "old")
    assert (await world.create()) and world.runtime(world.ids[-1]).network["provider"] == "builtin"
    world.cni_dir.mkdir()
    write(world.cni_dir, "10.1.0.4/24").rename(path)
    assert world.ip(await world.create()) == "10.1.0.4"


async def test_plugins_of_a_network_may_come_from_a_directory_of_its_name(world: World) -> None:
    name = f"net-{world.bridge}"
    configure(world, [plugin(world, "first", answer("10.1.2.3/24"))])
    (world.cni_dir / name).mkdir()
    more = plugin(world, "more", answer("10.1.2.4/24"))
    (world.cni_dir / name / "50-more.conf").write_text(json.dumps(more))
    assert world.ip(await world.create()) == "10.1.2.4"
    assert "prevResult" in calls(world, "more")[0][2]


async def test_status_of_the_plugins_is_the_networks(world: World) -> None:
    error = {"cniVersion": "1.1.0", "code": 50, "msg": "no controller", "details": "yet"}
    flag = world.home / "ready"
    script = (
        f"[ $CNI_COMMAND != STATUS ] || [ -e {flag} ] || {{ echo '{json.dumps(error)}'; exit 1; }}"
    )
    path = configure(world, [plugin(world, "slow", script)], "1.1.0")
    ready, reason, message = await world.network.status()
    assert (ready, reason) == (False, "NetworkPluginNotReady")
    assert "plugin slow STATUS: no controller: yet (code 50)" in message
    flag.touch()
    assert (await world.network.status()).ready
    flag.unlink()
    path.write_text(path.read_text().replace("1.1.0", "1.0.0"))  # which knows no STATUS
    assert (await world.network.status()).ready


async def test_a_status_that_hangs_is_not_ready(world: World) -> None:
    world.cni_timeout = 0.5
    await world.restart()
    script = "echo still starting >&2; exec sleep 1000"
    configure(world, [plugin(world, "slow", script)], "1.1.0")
    assert "killed after 0.5 s; stderr: still starting" in (await world.network.status()).message


async def test_gc_at_start_names_the_pods_that_live(world: World) -> None:
    configure(world, [plugin(world, "one", answer("10.1.2.3/24", version="1.1.0"))], "1.1.0")
    kept, lost = await world.create(), await world.create()
    await world.restart()
    await world.sandboxes.reconcile([kept])
    await looked_after(world)
    collected = [stdin for command, _, stdin in calls(world, "one") if command == "GC"]
    assert len(collected) == 1
    valid = [{"containerID": kept, "ifname": "eth0"}]
    assert collected[0]["cni.dev/valid-attachments"] == valid
    assert collected[0]["cni.dev/attachments"] == valid
    assert [call[0] for call in calls(world, "one")].count("DEL") == 1
    assert stored(world) == [kept]
    del world.made[lost]


@pytest.mark.parametrize("version", ["1.0.0", "disabled"])
async def test_gc_is_not_for_everybody(world: World, version: str) -> None:
    path = configure(world, [plugin(world, "one", answer("10.1.2.3/24"))], "1.0.0")
    if version == "disabled":
        document = json.loads(path.read_text()) | {"cniVersion": "1.1.0", "disableGC": True}
        path.write_text(json.dumps(document))
    await world.sandboxes.reconcile([])
    await looked_after(world)
    assert calls(world, "one") == []


async def looked_after(world: World) -> None:
    """Wait for what a start leaves to the background."""
    task = world.cni._after_start
    assert task is not None
    async with asyncio.timeout(WAIT_SECONDS):
        await task


async def test_a_start_checks_the_pods_that_live_and_remembers_what_is_wrong(world: World) -> None:
    flag = world.home / "cut"
    error = {"cniVersion": "1.0.0", "code": 100, "msg": "no route"}
    script = (
        f"[ $CNI_COMMAND = CHECK ] && {{ [ -e {flag} ] && echo '{json.dumps(error)}' && exit 1;"
        f" exit 0; }}; {answer('10.1.2.3/24')}"
    )
    configure(world, [plugin(world, "one", script)])
    pod = await world.create()
    for wrong in (False, True):
        if wrong:
            flag.touch()
        await world.restart()
        await world.sandboxes.reconcile([pod])
        await looked_after(world)
        assert ("no route" in world.network.problem(pod)) == wrong
    command, netns, stdin = calls(world, "one")[-1]
    assert (command, netns) == ("CHECK", world.netns(pod))
    assert stdin["prevResult"]["ips"][0]["address"] == "10.1.2.3/24"
    await world.stop(pod)
    assert world.network.problem(pod) == ""


async def test_every_capability_reaches_the_plugin_that_declares_it(world: World) -> None:
    declared = ("portMappings", "bandwidth", "dns", "ipRanges", "cgroupPath")
    annotations = "io.kubernetes.cri.pod-annotations"
    one = plugin(world, "one", answer("10.1.2.3/24"))
    one["capabilities"] = dict.fromkeys((*declared, annotations), True)
    configure(world, [one])
    world.network.pod_cidrs.set("10.9.0.0/24,fd09::/64")
    config = pod_config(
        port_mappings=[
            cri.PortMapping(protocol=cri.SCTP, container_port=1, host_port=2, host_ip="2001:db8::1")
        ],
        annotations={"kubernetes.io/egress-bandwidth": "2k", "a": "b"},
        dns_config=cri.DNSConfig(servers=["10.0.0.10"], searches=["x"], options=["y"]),
    )
    pod = await world.create(config)
    assert calls(world, "one")[0][2]["runtimeConfig"] == {
        "portMappings": [
            {"hostPort": 2, "containerPort": 1, "protocol": "sctp", "hostIP": "2001:db8::1"}
        ],
        "bandwidth": {"egressRate": 2000, "egressBurst": 2**32 - 1},
        "dns": {"servers": ["10.0.0.10"], "searches": ["x"], "options": ["y"]},
        "ipRanges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]],
        "cgroupPath": units.directory(world.runtime(pod).cgroup_parent),
        annotations: {"kubernetes.io/egress-bandwidth": "2k", "a": "b"},
    }


# Debian's other plugins, chained.


def bridge_plugin(world: World, **more: Any) -> dict[str, Any]:
    """Debian's bridge with host-local, over both IP families."""
    return {
        "type": "bridge",
        "bridge": f"{world.bridge}c",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": world.cni_subnet}], [{"subnet": world.cni_subnet6}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dataDir": str(world.home / "host-local"),
        },
    } | more


async def stop_all(world: World) -> None:
    for pod in list(world.made):
        await world.stop(pod)
    run("ip", "link", "delete", f"{world.bridge}c")


async def test_dual_stack_with_portmap_firewall_and_tuning(world: World) -> None:
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    firewall = {"type": "firewall", "backend": "iptables"}
    configure(world, [bridge_plugin(world), portmap, firewall, tuning])
    port, udp_port = free_port(), free_port(socket.SOCK_DGRAM)
    mappings = [
        cri.PortMapping(protocol=cri.TCP, container_port=80, host_port=port),
        cri.PortMapping(protocol=cri.UDP, container_port=53, host_port=udp_port),
    ]
    before = snapshot()
    pod = await world.create(pod_config(port_mappings=mappings))
    other = await world.create()
    netns, neighbour = world.netns(pod), world.netns(other)
    assert [":" in ip for ip in world.runtime(pod).ips] == [False, True]
    for ip, peer in zip(world.runtime(pod).ips, world.runtime(other).ips, strict=True):
        assert tcp(netns, 80, neighbour, (ip, 80)) == peer
        assert udp(netns, 53, neighbour, (ip, 53)) == peer
        assert tcp(netns, 80, HOST, (ip, 80))
    with other_machine() as far:
        for here, there in ((far.host_ip, far.ip), (far.host_ip6, far.ip6)):
            assert tcp(netns, 80, far.netns, (here, port)) == there
            assert udp(netns, 53, far.netns, (here, udp_port)) == there
            assert tcp(far.netns, 80, netns, (there, 80)) == here
    assert inside(netns, lambda: Path("/proc/sys/net/core/somaxconn").read_text()) == "500\n"
    assert "mtu 1400" in inside(netns, lambda: run("ip", "link", "show", "eth0"))
    await stop_all(world)
    for one in (pod, other):
        await world.remove(one)
    assert not list((world.home / "host-local").glob("*/1*"))
    world.assert_nothing_left(before)


async def test_the_bandwidth_plugin_shapes_by_the_annotations(world: World) -> None:
    bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    configure(world, [bridge_plugin(world), bandwidth])
    annotations = {"kubernetes.io/ingress-bandwidth": "8M"}
    await world.create(pod_config(annotations=annotations))
    assert "rate 8Mbit" in run("tc", "qdisc", "show")
    await stop_all(world)


async def test_macvlan_pods_reach_each_other(world: World) -> None:
    """Their master is a link of the test's: no pod gets onto the machine's own network."""
    master = f"{world.bridge}m"
    run("ip", "link", "add", master, "type", "veth", "peer", "name", f"{world.bridge}p")
    try:
        for name in (master, f"{world.bridge}p"):
            run("ip", "link", "set", name, "up")
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": world.cni_subnet}]],
            "dataDir": str(world.home / "host-local"),
        }
        configure(world, [{"type": "macvlan", "master": master, "mode": "bridge", "ipam": ipam}])
        first, second = await world.create(), await world.create()
        reached = (world.ip(second), 80)
        assert tcp(world.netns(second), 80, world.netns(first), reached) == world.ip(first)
        for pod in (first, second):
            await world.stop(pod)
        assert not list((world.home / "host-local").glob("*/10.*"))
    finally:
        run("ip", "link", "delete", master)


@pytest.fixture
def _udev_leaves_veths_alone() -> Iterator[None]:
    """As nodes do it (docs/networking.md): CHECK finds it wrong that udev changes addresses."""
    if not Path("/run/udev/control").exists():
        yield
        return
    link = Path("/run/systemd/network/10-criserver-tests.link")
    link.parent.mkdir(exist_ok=True)
    link.write_text("[Match]\nDriver=veth\n[Link]\nMACAddressPolicy=none\n")
    run("udevadm", "control", "--reload")
    yield
    link.unlink()
    run("udevadm", "control", "--reload")


@pytest.mark.usefixtures("_udev_leaves_veths_alone")
async def test_the_plugins_check_finds_a_pod_that_has_lost_its_address(world: World) -> None:
    configure(world, [bridge_plugin(world)])
    pod = await world.create()
    await world.restart()
    await world.sandboxes.reconcile([pod])
    await looked_after(world)
    assert world.network.problem(pod) == ""
    inside(world.netns(pod), lambda: run("ip", "address", "flush", "dev", "eth0"))
    await world.restart()
    await world.sandboxes.reconcile([pod])
    await looked_after(world)
    assert "plugin bridge CHECK" in world.network.problem(pod)
    for ip in world.runtime(pod).ips:  # by them the plugin's DEL finds its masquerading rules
        address = f"{ip}/{64 if ':' in ip else 24}"
        inside(world.netns(pod), lambda a=address: run("ip", "address", "add", a, "dev", "eth0"))
    await stop_all(world)


async def test_the_kubelets_pod_cidr_becomes_host_locals_range(world: World) -> None:
    plugin = bridge_plugin(world, capabilities={"ipRanges": True})
    subnet = plugin["ipam"].pop("ranges")[0][0]["subnet"]
    configure(world, [plugin])
    world.network.pod_cidrs.set(subnet)
    pod = await world.create()
    assert world.ip(pod).rpartition(".")[0] == subnet.rpartition(".")[0]
    await stop_all(world)


async def test_gc_waits_for_the_adds_under_way_and_the_next_ones_for_it(world: World) -> None:
    """Else it would take from a pod what it has just been given (CNI spec 1.1, section 3)."""
    gate = world.home / "gate"
    script = (
        f"while [ ! -e {gate}-$CNI_COMMAND ]; do sleep 0.02; done;"
        f" {answer('10.1.2.3/24', version='1.1.0')}"
    )
    configure(world, [plugin(world, "one", script)], "1.1.0")
    first = asyncio.create_task(world.create())
    await asyncio.to_thread(wait_for, lambda: len(calls(world, "one")) == 1, "the first ADD")
    await world.sandboxes.reconcile(world.ids)
    Path(f"{gate}-ADD").touch()
    pod = await first
    await asyncio.to_thread(wait_for, lambda: len(calls(world, "one")) == 2, "the GC")
    command, _, stdin = calls(world, "one")[1]
    assert command == "GC"
    assert [one["containerID"] for one in stdin["cni.dev/valid-attachments"]] == [pod]
    second = asyncio.create_task(world.create())
    await asyncio.sleep(0.3)
    assert len(calls(world, "one")) == 2  # it waits
    Path(f"{gate}-GC").touch()
    Path(f"{gate}-DEL").touch()
    await second
    assert [call[0] for call in calls(world, "one")] == ["ADD", "GC", "ADD"]
    await looked_after(world)
