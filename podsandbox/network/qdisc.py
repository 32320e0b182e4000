"""Bandwidth limits of a pod: a token bucket on each end of its veth pair (man 8 tc-tbf).

What goes to the pod is shaped where it leaves the host's end, what comes from it where it leaves
the pod's own. The CNI plugin needs an ifb device for the latter; this needs none. A pod that has
CAP_NET_ADMIN can take its own limit away, as it can do anything else with its network.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runtimeshim.linux.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Request,
    attribute,
    nested,
)

# linux/rtnetlink.h, linux/pkt_sched.h
RTM_NEWQDISC = 36
_TC_H_ROOT = 0xFFFFFFFF
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TC_LINKLAYER_ETHERNET = 1
_MAX_U32 = (1 << 32) - 1

_TCMSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_RATESPEC = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate
_TBF_QOPT = struct.Struct("=12s12sIII")  # rate, peak rate, limit, buffer, mtu

# What may be sent at once: as much as the rate gives in this time, but room for one packet of the
# largest size that segmentation offload makes.
_BURST_SECONDS = 0.05
_MIN_BURST = 64 << 10

# How long a packet may wait before it is dropped; the bandwidth plugin's value.
_LATENCY_SECONDS = 0.025


@dataclass(frozen=True)
class Bandwidth:
    """Limits in bits per second, as seen from the pod; 0 is none."""

    ingress: int = 0
    egress: int = 0


def limit_rate(index: int, bits_per_second: int) -> Request:
    """Shape what leaves through the link with this index."""
    rate = max(bits_per_second // 8, 1)
    burst = min(max(int(rate * _BURST_SECONDS), _MIN_BURST), _MAX_U32)
    limit = min(burst + int(rate * _LATENCY_SECONDS), _MAX_U32)
    spec = _RATESPEC.pack(0, _TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate, _MAX_U32))
    options = [
        attribute(_TCA_TBF_PARMS, _TBF_QOPT.pack(spec, bytes(12), limit, 0, 0)),
        attribute(_TCA_TBF_BURST, struct.pack("=I", burst)),
    ]
    if rate > _MAX_U32:
        options.append(attribute(_TCA_TBF_RATE64, struct.pack("=Q", rate)))
    body = (
        _TCMSG.pack(0, index, 0, _TC_H_ROOT, 0)
        + attribute(_TCA_KIND, b"tbf\0")
        + nested(_TCA_OPTIONS, *options)
    )
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
    return Request(RTM_NEWQDISC, flags, body, f"limit link {index} to {bits_per_second} bit/s")
