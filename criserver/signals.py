"""Stop signals: the CRI's enum, the names that images use, the numbers that the kernel takes."""

from __future__ import annotations

import re
import signal

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError

# What the kernel and glibc count from and to (man 7 signal); the CRI names all between.
RTMIN = int(signal.SIGRTMIN)
RTMAX = int(signal.SIGRTMAX)

NAME = re.compile(r"(?:SIG)?(RTMIN|RTMAX)(?:([+-])(\d+))?|(?:SIG)?([A-Z0-9]+)")


def parse(text: str) -> int:
    """Return the number of a signal's name or number, as images and users write them.

    "SIGTERM", "term", "15", "SIGRTMIN+3", "RTMAX-1". Raises InvalidArgumentError.
    """
    number = int(text) if re.fullmatch("[0-9]{1,2}", text) else _named(text.upper())
    if number is None or not 1 <= number <= RTMAX:
        raise InvalidArgumentError(f"{text[:40]!r} is not a signal")
    return number


def _named(text: str) -> int | None:
    match = NAME.fullmatch(text)
    if match is None:
        return None
    base, sign, offset, name = match.groups()
    if base is None:
        return _SPECIAL.get(name) or getattr(signal, f"SIG{name}", None)
    start = RTMIN if base == "RTMIN" else RTMAX
    number = start + int(f"{sign or '+'}{offset or 0}")
    return number if RTMIN <= number <= RTMAX else None


# Known to the CRI and the kernel; CPython 3.11 has no SIGSTKFLT.
_SPECIAL = {"STKFLT": 16}


def number_of(value: cri.Signal) -> int | None:
    """Return the number of a cri.Signal; None for the runtime's default, or an unknown value."""
    if value == cri.SIGNAL_RUNTIME_DEFAULT:
        return None
    try:
        name = cri.Signal.Name(value)
    except ValueError:
        raise InvalidArgumentError(f"stop_signal {value} is not a signal of the CRI") from None
    text = name.removeprefix("SIGNAL_")
    return parse(text.replace("PLUS", "+").replace("MINUS", "-"))


def _numbers() -> dict[int, cri.Signal]:
    """Return {number: cri.Signal}; of two names for one number, the usual one."""
    numbers: dict[int, cri.Signal] = {}
    value: cri.Signal
    aliases = ("SIGNAL_SIGCLD", "SIGNAL_SIGIOT", "SIGNAL_SIGPOLL")
    for name in cri.Signal.keys():  # noqa: SIM118 - it is protobuf's, and no dict
        value = getattr(cri, name)
        number = number_of(value)
        if number is not None and name not in aliases:
            numbers.setdefault(number, value)
    return numbers


_CRI_SIGNALS = _numbers()


def cri_signal(number: int) -> cri.Signal:
    """Return the cri.Signal of a number; the default (0) where the CRI has no name for it."""
    return _CRI_SIGNALS.get(number, cri.SIGNAL_RUNTIME_DEFAULT)
