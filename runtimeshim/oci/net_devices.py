"""linux.netDevices: devices of the host that become the container's (config-linux.md)."""

from __future__ import annotations

from runtimeshim.oci.errors import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtimeshim.linux.rtnetlink import Netlink


def load() -> None:
    """Import what `move_all` needs: few containers have any such device."""
    from runtimeshim.linux import rtnetlink  # noqa: F401 - kept by sys.modules


def move_all(wanted: Mapping[str, Any], pid: int) -> None:
    """Move devices to the network namespace of the init, with their addresses, and bring them up.

    The kernel takes the addresses away at the move. Raises StageError.
    """
    from runtimeshim.linux.rtnetlink import Netlink, open_in

    ours, theirs = Netlink(), open_in(pid)
    try:
        for name, device in wanted.items():
            try:
                _move(ours, theirs, name, (device or {}).get("name") or name, pid)
            except OSError as err:
                raise StageError("network", f"linux.netDevices[{name!r}]: {err.strerror}") from err
    finally:
        ours.close()
        theirs.close()


def _move(ours: Netlink, theirs: Netlink, name: str, new_name: str, pid: int) -> None:
    index = ours.index(name)
    addresses = ours.addresses(index)
    ours.move(index, new_name, pid)
    there = theirs.index(new_name)
    for address in addresses:
        theirs.add_address(there, address)
    theirs.set_up(there)
