"""ExecSync's two streams have to share one message."""

from criserver.container_exec_sync import MAX_OUTPUT, fit
from criserver.server_limits import MAX_MESSAGE


def test_the_longer_stream_is_cut_first():
    assert [len(part) for part in fit(bytearray(90), bytearray(5), 100)] == [90, 5]
    assert [len(part) for part in fit(bytearray(120), bytearray(5), 100)] == [95, 5]
    assert [len(part) for part in fit(bytearray(5), bytearray(120), 100)] == [5, 95]
    assert [len(part) for part in fit(bytearray(120), bytearray(120), 100)] == [50, 50]


def test_the_beginning_of_a_stream_is_kept():
    assert fit(bytearray(b"abcdef"), bytearray(b"uvwxyz"), 4) == (b"ab", b"uv")


def test_the_message_has_room_for_what_is_around_the_streams():
    assert 0 < MAX_MESSAGE - MAX_OUTPUT <= 4096
