"""The metrics of ListPodSandboxMetrics: names, helps and labels as cAdvisor's.

The kubelet exposes them in cAdvisor's stead, so dashboards and alerts must find what they know.
"""

from __future__ import annotations

from dataclasses import dataclass

from api.cri import api_pb2 as cri

# The labels that every metric has, in this order.
BASE_LABELS = ("id", "image", "namespace", "pod", "container")


@dataclass(frozen=True)
class Family:
    """One metric; its own labels follow the base ones."""

    name: str
    help: str
    type: cri.MetricType
    labels: tuple[str, ...] = ()

    def descriptor(self) -> cri.MetricDescriptor:
        """Return the declaration of the metric."""
        return cri.MetricDescriptor(
            name=self.name, help=self.help, label_keys=[*BASE_LABELS, *self.labels]
        )


FAMILIES: list[Family] = []


def _counter(name: str, help_: str, *labels: str) -> Family:
    return _declare(Family(f"container_{name}", help_, cri.COUNTER, labels))


def _gauge(name: str, help_: str, *labels: str) -> Family:
    return _declare(Family(f"container_{name}", help_, cri.GAUGE, labels))


def _declare(family: Family) -> Family:
    FAMILIES.append(family)
    return family


LAST_SEEN = _gauge("last_seen", "Last time the container was seen, in Unix seconds.")
START_TIME = _gauge("start_time_seconds", "Start time of the container in Unix seconds.")

CPU_USER = _counter("cpu_user_seconds_total", "Cumulative user CPU time in seconds.")
CPU_SYSTEM = _counter("cpu_system_seconds_total", "Cumulative system CPU time in seconds.")
CPU_USAGE = _counter("cpu_usage_seconds_total", "Cumulative CPU time in seconds.", "cpu")
CFS_PERIODS = _counter("cpu_cfs_periods_total", "Number of elapsed enforcement periods.")
CFS_THROTTLED = _counter("cpu_cfs_throttled_periods_total", "Number of throttled periods.")
CFS_SECONDS = _counter("cpu_cfs_throttled_seconds_total", "Time that was taken by throttling.")

MEMORY_CACHE = _gauge("memory_cache", "Page cache in bytes.")
MEMORY_RSS = _gauge("memory_rss", "Anonymous memory in bytes.")
MEMORY_KERNEL = _gauge("memory_kernel_usage", "Kernel memory in bytes.")
MEMORY_MAPPED = _gauge("memory_mapped_file", "Memory of mapped files in bytes.")
MEMORY_SWAP = _gauge("memory_swap", "Swap usage in bytes.")
MEMORY_FAILCNT = _counter("memory_failcnt", "How often the memory usage hit the limit.")
MEMORY_USAGE = _gauge("memory_usage_bytes", "Memory in use in bytes, whenever last accessed.")
MEMORY_MAX = _gauge("memory_max_usage_bytes", "Highest memory usage in bytes.")
MEMORY_WORKING_SET = _gauge("memory_working_set_bytes", "Memory that is not easily freed, bytes.")
MEMORY_ACTIVE_FILE = _gauge("memory_total_active_file_bytes", "Active page cache in bytes.")
MEMORY_INACTIVE_FILE = _gauge("memory_total_inactive_file_bytes", "Inactive page cache in bytes.")
MEMORY_FAILURES = _counter(
    "memory_failures_total", "Cumulative count of page faults.", "failure_type", "scope"
)
OOM_EVENTS = _counter("oom_events_total", "Count of processes that the OOM killer took.")

NETWORK_RX_BYTES = _counter("network_receive_bytes_total", "Bytes received.", "interface")
NETWORK_RX_PACKETS = _counter("network_receive_packets_total", "Packets received.", "interface")
NETWORK_RX_DROPPED = _counter(
    "network_receive_packets_dropped_total", "Packets dropped while receiving.", "interface"
)
NETWORK_RX_ERRORS = _counter("network_receive_errors_total", "Receive errors.", "interface")
NETWORK_TX_BYTES = _counter("network_transmit_bytes_total", "Bytes transmitted.", "interface")
NETWORK_TX_PACKETS = _counter("network_transmit_packets_total", "Packets sent.", "interface")
NETWORK_TX_DROPPED = _counter(
    "network_transmit_packets_dropped_total", "Packets dropped while sending.", "interface"
)
NETWORK_TX_ERRORS = _counter("network_transmit_errors_total", "Transmit errors.", "interface")

FS_INODES_FREE = _gauge("fs_inodes_free", "Free inodes of the file system.", "device")
FS_INODES = _gauge("fs_inodes_total", "Inodes of the file system.", "device")
FS_LIMIT = _gauge("fs_limit_bytes", "Size of the file system in bytes.", "device")
FS_USAGE = _gauge("fs_usage_bytes", "Bytes that the container has written.", "device")

FS_READ_BYTES = _counter("fs_reads_bytes_total", "Bytes read.", "device")
FS_READS = _counter("fs_reads_total", "Reads completed.", "device")
FS_WRITE_BYTES = _counter("fs_writes_bytes_total", "Bytes written.", "device")
FS_WRITES = _counter("fs_writes_total", "Writes completed.", "device")
BLKIO = _counter(
    "blkio_device_usage_total", "Bytes by device.", "device", "major", "minor", "operation"
)

PROCESSES = _gauge("processes", "Processes in the container.")
FILE_DESCRIPTORS = _gauge("file_descriptors", "Open file descriptors of the container.")
SOCKETS = _gauge("sockets", "Open sockets of the container.")
THREADS = _gauge("threads", "Threads in the container.")
THREADS_MAX = _gauge("threads_max", "Most threads in the container; 0 is no limit.")
ULIMITS_SOFT = _gauge("ulimits_soft", "Soft limits of the container's first process.", "ulimit")

HUGETLB_USAGE = _gauge("hugetlb_usage_bytes", "Huge pages in use in bytes.", "pagesize")
HUGETLB_MAX = _gauge("hugetlb_max_usage_bytes", "Highest huge page usage in bytes.", "pagesize")

_STALLED = "Time that no task could make progress for want of"
_WAITING = "Time that at least one task waited for"
CPU_STALLED = _counter("pressure_cpu_stalled_seconds_total", f"{_STALLED} CPU.")
CPU_WAITING = _counter("pressure_cpu_waiting_seconds_total", f"{_WAITING} CPU.")
MEMORY_STALLED = _counter("pressure_memory_stalled_seconds_total", f"{_STALLED} memory.")
MEMORY_WAITING = _counter("pressure_memory_waiting_seconds_total", f"{_WAITING} memory.")
IO_STALLED = _counter("pressure_io_stalled_seconds_total", f"{_STALLED} I/O.")
IO_WAITING = _counter("pressure_io_waiting_seconds_total", f"{_WAITING} I/O.")

SPEC_CPU_PERIOD = _gauge("spec_cpu_period", "CPU period of the container in microseconds.")
SPEC_CPU_QUOTA = _gauge("spec_cpu_quota", "CPU quota of the container in microseconds.")
SPEC_CPU_SHARES = _gauge("spec_cpu_shares", "CPU shares of the container.")
SPEC_MEMORY = _gauge("spec_memory_limit_bytes", "Memory limit; 0 is no limit.")
SPEC_MEMORY_RESERVATION = _gauge(
    "spec_memory_reservation_limit_bytes", "Memory reservation; 0 is none."
)
SPEC_MEMORY_SWAP = _gauge(
    "spec_memory_swap_limit_bytes", "Limit of memory and swap together; 0 is no limit."
)
