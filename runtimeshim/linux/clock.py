"""Whether somebody keeps the clock right (man 2 adjtimex)."""

from __future__ import annotations

import ctypes
import os

# struct timex has 208 bytes on 64-bit machines; `modes`, its first field, is 0: nothing is set.
_TIMEX_BYTES = 256
_TIME_ERROR = 5  # the clock is not synchronised

_libc = ctypes.CDLL(None, use_errno=True)
_libc.adjtimex.argtypes = [ctypes.c_char_p]
_libc.adjtimex.restype = ctypes.c_int


def is_synchronised() -> bool:
    """Tell whether an NTP client disciplines the clock. Raises OSError."""
    state = int(_libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    if state < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "adjtimex")
    return state != _TIME_ERROR
