"""Command lines as Go's flag package reads them, which the callers of OCI runtimes write them for.

`-name`, `--name`, `--name value` and `--name=value` are the same. argparse reads `-bundle` as `-b`
`undle`; and to import it takes as long as everything else that `state` does.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class UsageError(Exception):
    """The command line makes no sense; the message says what."""


class Flag:
    """One flag: its names (the first is its key), what it takes, and the line of its help."""

    __slots__ = ("help", "names", "takes")

    def __init__(self, names: str, takes: str, help: str) -> None:
        self.names = names.split()
        self.takes = takes  # "": nothing; "number"; "list": a text, given any number of times
        self.help = help


class Options:
    """The values of a command line's flags; a flag that was not given has its zero value."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def flag(self, name: str) -> bool:
        """Return whether a flag without a value was given."""
        return bool(self._values.get(name, False))

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        return str(self._values.get(name, default))

    def number(self, name: str) -> int | None:
        """Return a number, or None."""
        value: int | None = self._values.get(name)
        return value

    def texts(self, name: str) -> list[str]:
        """Return all texts of a flag that may be repeated."""
        return list(self._values.get(name, ()))


def parse(
    flags: Sequence[Flag], argv: Sequence[str], *, stop_at: int | None = None
) -> tuple[Options, list[str]]:
    """Return the options and the positional arguments. Raises UsageError.

    Flags may stand between the arguments; from argument number `stop_at` on everything is an
    argument, as it is after "--".
    """
    known = {name: flag for flag in flags for name in flag.names}
    values: dict[str, Any] = {}
    arguments: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return Options(values), arguments + rest
        if word == "-" or not word.startswith("-"):
            arguments.append(word)
            if stop_at is not None and len(arguments) >= stop_at:
                return Options(values), arguments + rest
            continue
        _take(known, values, word, rest)
    return Options(values), arguments


def _take(known: dict[str, Flag], values: dict[str, Any], word: str, rest: list[str]) -> None:
    name, given, value = word.lstrip("-").partition("=")
    flag = known.get(name)
    if flag is None:
        raise UsageError(f"flag provided but not defined: -{name}")
    key = flag.names[0]
    if not flag.takes:
        values[key] = _boolean(name, value) if given else True
        return
    if not given:
        if not rest:
            raise UsageError(f"flag needs an argument: -{name}")
        value = rest.pop(0)
    if flag.takes == "list":
        values.setdefault(key, []).append(value)
    else:
        values[key] = _number(name, value) if flag.takes == "number" else value


def _boolean(name: str, value: str) -> bool:
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise UsageError(f"invalid boolean value {value!r} for -{name}")


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"invalid value {value!r} for flag -{name}: not a number") from None


def exactly(arguments: Sequence[str], *names: str) -> list[str]:
    """Return the arguments, of which there have to be as many as `names`. Raises UsageError."""
    if len(arguments) != len(names):
        raise UsageError(f"exactly these arguments are needed: {' '.join(names) or 'none'}")
    return list(arguments)


def usage(name: str, arguments: str, summary: str, flags: Sequence[Flag]) -> str:
    """Return the help of a verb."""
    lines = [f"usage: {name} {arguments}".rstrip(), "", summary]
    if flags:
        lines += ["", "flags:", *_columns([(_spelled(flag), flag.help) for flag in flags])]
    return "\n".join(lines)


def _spelled(flag: Flag) -> str:
    names = ", ".join(("-" if len(name) == 1 else "--") + name for name in flag.names)
    return f"{names} {flag.takes.upper()}" if flag.takes else names


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {right}" for left, right in rows]
