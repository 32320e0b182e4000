"""What two processes say to each other arrives whole, whatever has become of the other."""

from __future__ import annotations

import pytest

from runtimeshim import wire


def test_what_was_sent_before_a_reset_arrives() -> None:
    ours, theirs = wire.pair()
    wire.send(ours, {"never": "read"})
    wire.send(theirs, {"op": "release"})
    theirs.close()  # with a message unread: a reset, unix_release_sock of the kernel
    with ours:
        assert wire.receive(ours) == ({"op": "release"}, [])
        assert wire.receive(ours) is None


def test_a_reset_without_a_word_is_an_end() -> None:
    ours, theirs = wire.pair()
    wire.send(ours, {"never": "read"})
    theirs.close()
    with ours:
        assert wire.receive(ours) is None


def test_nothing_yet_is_no_end() -> None:
    ours, theirs = wire.pair()
    ours.setblocking(False)
    with ours, theirs, pytest.raises(BlockingIOError):
        wire.receive(ours)
