"""When Ctrl-C ends a benchmark."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.bench import interrupts


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_waits_until_what_is_made_can_be_taken_away(number, error):
    interrupts.heed()
    made = []
    with pytest.raises(error), interrupts.put_off():
        os.kill(os.getpid(), number)
        made.append("a runtime")
    assert made == ["a runtime"]
    with pytest.raises(error):
        os.kill(os.getpid(), number)


def test_an_error_of_what_is_made_goes_before_a_signal():
    interrupts.heed()
    with pytest.raises(OSError, match="no room"), interrupts.put_off():
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("no room")


def test_nothing_stops_the_taking_away():
    interrupts.heed()
    interrupts.ignore()
    for number in interrupts.SIGNALS:
        os.kill(os.getpid(), number)
