"""What holds for all tests."""

from __future__ import annotations

import hypothesis

# How long an example takes says more about what else runs on the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
