"""Log lines as containerd, podman and CRI-O read them: those of logrus, as text or JSON."""

from __future__ import annotations

import os
import sys
import time

from runtimeshim import json_text

LEVELS = ("error", "warning", "info", "debug")


class Log:
    """Lines to a file, or to stderr where none is given."""

    def __init__(self, path: str, *, as_json: bool, debug: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644) if path else 2
        self._json = as_json
        self._debug = debug

    def failure(self, message: str) -> None:
        """Say why the command failed; on stderr as well, for a person."""
        self._line("error", message)
        if self._fd != 2:
            print(message, file=sys.stderr)

    def warning(self, message: str) -> None:
        """Say what did not come out as asked for."""
        self._line("warning", message)

    def debug(self, message: str) -> None:
        """Say more than most want to know; nothing without --debug."""
        if self._debug:
            self._line("debug", message)

    def _line(self, level: str, message: str) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = json_text.dumps({"level": level, "msg": message, "time": moment})
        else:
            line = f'time="{moment}" level={level} msg={json_text.quote(message)}'
        os.write(self._fd, line.encode(errors="surrogateescape") + b"\n")
