"""What can go wrong between create and execve."""

from __future__ import annotations

from runtimeshim import wire


class SpecError(ValueError):
    """A field of config.json cannot be honoured; the message names it."""


class StageError(Exception):
    """A step of create or start failed: `stage` says which, `kind` how the caller may react."""

    def __init__(self, stage: str, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.stage = stage
        self.message = wire.brief(message)
        self.kind = kind
