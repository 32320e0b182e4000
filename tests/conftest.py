"""What holds for all tests."""

from __future__ import annotations

import signal

import hypothesis

# How long an example takes says more about what else runs on the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# What a shell starts in the background ignores SIGINT, and so would all that tests start and
# interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
