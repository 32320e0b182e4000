"""Stop signals in their three spellings."""

import signal

import pytest

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from criserver import signals


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("sigkill", 9),
        ("15", 15),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("SIGSTKFLT", 16),
        ("SIGCLD", 17),
        ("64", 64),
    ],
)
def test_signals_as_images_write_them(text, number):
    assert signals.parse(text) == number


@pytest.mark.parametrize(
    "text", ["", "SIG", "SIGNOPE", "0", "65", "-1", "999999", "SIGRTMIN+99", "RTMAX+1", "_DFL", "٣"]
)
def test_what_is_no_signal_is_refused(text):
    with pytest.raises(InvalidArgumentError, match="is not a signal"):
        signals.parse(text)


def test_every_signal_of_the_cri_has_a_number():
    for name, value in cri.Signal.items():
        number = signals.number_of(value)
        if value == cri.SIGNAL_RUNTIME_DEFAULT:
            assert number is None
        else:
            assert 1 <= number <= 64, name


def test_the_cri_name_of_a_number_is_the_usual_one():
    assert signals.cri_signal(signal.SIGCHLD) == cri.SIGNAL_SIGCHLD
    assert signals.cri_signal(signal.SIGABRT) == cri.SIGNAL_SIGABRT
    assert signals.cri_signal(37) == cri.SIGNAL_SIGRTMINPLUS3
    assert signals.cri_signal(50) == cri.SIGNAL_SIGRTMAXMINUS14


def test_an_unknown_enum_value_is_refused():
    with pytest.raises(InvalidArgumentError):
        signals.number_of(4711)
