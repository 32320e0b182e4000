"""The signal module as C has it: Python's own imports enum, and makes enums of the numbers."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

__all__ = ["signal"]
