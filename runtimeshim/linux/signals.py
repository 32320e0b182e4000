"""The signal module as C has it: Python's own imports enum, and makes enums of the numbers."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

__all__ = ["IGNORED_SIGNALS", "signal"]

# CPython, or our own processes, ignore these; ignored signals survive execve, handlers do not. A
# program that one of our processes starts gets their default dispositions back.
IGNORED_SIGNALS = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
)
