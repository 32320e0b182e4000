"""Ctrl-C and SIGTERM: when they end a benchmark, and when they have to wait."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def heed() -> None:
    """End at once, with what the signal stands for; what is open is closed on the way."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def ignore(*_: object) -> None:
    """Until all is taken away another Ctrl-C stops nothing; a callback of contextlib.ExitStack."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Let what is made here get somebody who takes it away, before a signal counts."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        os.kill(os.getpid(), came[0])
