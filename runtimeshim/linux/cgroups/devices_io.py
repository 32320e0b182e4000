"""OCI linux.resources.blockIO, network and rdma: what concerns devices, on both versions."""

from __future__ import annotations

import errno
import os

from runtimeshim.linux.cgroups.files import CgroupError, write
from runtimeshim.linux.cgroups.resources import entries, integer, positive, section, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtimeshim.linux.cgroups.resources import Section

THROTTLES = (
    # field of blockIO, file of v1, key in io.max of v2
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)
BLOCK_IO = ("weight", "leafWeight", "weightDevice", *(field for field, _, _ in THROTTLES))

# blkio.weight of v1 and of BFQ: 10 to 1000; io.weight of v2: 1 to 10000.
MIN_V1, MAX_V1 = 10, 1000
MIN_V2, MAX_V2 = 1, 10000


def block_io_v1(directory: str, resources: Section) -> None:
    """Write weights, where an I/O scheduler of the kernel takes them, and throttles."""
    values = section(resources, "blockIO")
    for field, file in (("weight", "weight"), ("leafWeight", "leaf_weight")):
        value = positive(values, field)
        if value is not None:
            write(_weight_file(directory, f"blkio.{file}", f"blkio.bfq.{file}"), str(value))
    for device, entry in _devices(values, "weightDevice"):
        for field, file in (("weight", "weight_device"), ("leafWeight", "leaf_weight_device")):
            value = positive(entry, field)
            if value is not None:
                path = _weight_file(directory, f"blkio.{file}", f"blkio.bfq.{file}")
                write(path, f"{device} {value}")
    for field, file, _ in THROTTLES:
        for device, entry in _devices(values, field):
            write(f"{directory}/{file}", f"{device} {integer(entry, 'rate') or 0}")


def block_io_v2(directory: str, resources: Section) -> None:
    """Write io.weight or BFQ's, and io.max."""
    values = section(resources, "blockIO")
    if positive(values, "leafWeight") is not None:
        raise CgroupError(errno.EOPNOTSUPP, "linux.resources.blockIO.leafWeight is of cgroup v1")
    bfq = f"{directory}/io.bfq.weight"
    file, scale = (bfq, _same) if os.path.exists(bfq) else (f"{directory}/io.weight", weight)
    value = positive(values, "weight")
    if value is not None:
        write(file, str(scale(value)))
    for device, entry in _devices(values, "weightDevice"):
        value = positive(entry, "weight")
        if value is not None:
            write(file, f"{device} {scale(value)}")
    for field, _, key in THROTTLES:
        for device, entry in _devices(values, field):
            write(f"{directory}/io.max", f"{device} {key}={integer(entry, 'rate') or 'max'}")


def weight(value: int) -> int:
    """Convert a weight of v1 to v2, linearly from range to range, as crun and runc do."""
    return MIN_V2 + (value - MIN_V1) * (MAX_V2 - MIN_V2) // (MAX_V1 - MIN_V1)


def _same(value: int) -> int:
    return value


def _weight_file(directory: str, *names: str) -> str:
    """Return the file that this kernel has. Raises CgroupError where it has none."""
    for name in names:
        if os.path.exists(f"{directory}/{name}"):
            return f"{directory}/{name}"
    raise CgroupError(
        errno.EOPNOTSUPP,
        f"linux.resources.blockIO: this kernel has no {names[0]}: no I/O scheduler takes weights",
    )


def _devices(values: Section, field: str) -> Iterator[tuple[str, Section]]:
    for entry in entries(values, field):
        yield f"{integer(entry, 'major') or 0}:{integer(entry, 'minor') or 0}", entry


def net_cls(directory: str, resources: Section) -> None:
    """Write the class that the cgroup's packets are tagged with."""
    class_id = integer(section(resources, "network"), "classID")
    if class_id is not None:
        write(f"{directory}/net_cls.classid", str(class_id))


def net_prio(directory: str, resources: Section) -> None:
    """Write the priority of the cgroup's traffic on each interface."""
    for entry in entries(section(resources, "network"), "priorities"):
        value = f"{text(entry, 'name')} {integer(entry, 'priority') or 0}"
        write(f"{directory}/net_prio.ifpriomap", value)


def rdma(directory: str, resources: Section) -> None:
    """Write rdma.max, alike on both versions."""
    devices = section(resources, "rdma")
    for name in devices:
        limits = section(devices, name)
        written = [
            f"{key}={value}"
            for key, value in (
                ("hca_handle", integer(limits, "hcaHandles")),
                ("hca_object", integer(limits, "hcaObjects")),
            )
            if value is not None
        ]
        if not written:
            raise CgroupError(
                errno.EINVAL, f"linux.resources.rdma[{name!r}]: neither hcaHandles nor hcaObjects"
            )
        write(f"{directory}/rdma.max", " ".join([name, *written]))
