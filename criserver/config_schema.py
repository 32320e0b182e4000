"""TOML files and frozen dataclasses: types, limits, places of mistakes, the documented default.

A settings class is a frozen dataclass. Its fields are scalars, paths, tuples of those, or further
settings classes, which become TOML tables; or a dictionary of those, with keys of the user's. What
a field means and what values it may take stands in its metadata (see `setting`), so that the check,
the documentation and the default are one thing.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

Check = Callable[[Any], bool]

NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
HEADER = re.compile(r"^\s*\[\s*([A-Za-z0-9_.\"-]+)\s*\]")
ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_\"-]+)\s*=")


class ConfigError(Exception):
    """A configuration that cannot be used; the message is one line that a person can act on."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")


def setting(default: Any, doc: str, expected: str = "", check: Check | None = None) -> Any:
    """Declare one setting: default, documentation and, beyond its type, what values are legal.

    The default may be dataclasses.MISSING within `tables`: then each has to give a value.
    """
    return dataclasses.field(
        default=default, metadata={"doc": doc, "expected": expected, "check": check}
    )


def table(settings: type) -> Any:
    """Declare a TOML table whose keys are the fields of `settings`."""
    return dataclasses.field(default_factory=settings)


def tables(doc: str, expected: str, check: Check) -> Any:
    """Declare TOML tables by a name of the user's choice, which `check` accepts."""
    metadata = {"doc": doc, "expected": expected, "check": check}
    return dataclasses.field(default_factory=dict, metadata=metadata)


def read_file(path: Path, schema: type) -> dict[str, Any]:
    """Return the checked values of one TOML file as {dotted key: value}.

    Raises ConfigError with file, line (where it can be had), key and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(str(path), f"cannot be read: {err}") from err
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(str(path), f"is not TOML: {err}") from err

    def where(key: str) -> str:
        line = _line_of(text, key)
        return f"{path}:{line}" if line else str(path)

    return dict(_checked(document, schema, "", where))


def check_value(key: str, value: Any, schema: type, where: str) -> Any:
    """Return `value` as the type of the dotted `key`; raises ConfigError."""
    *tables, name = key.split(".")
    for part in tables:
        schema = get_type_hints(schema)[part]
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    return _convert(value, hints[name], fields[name], key, where)


def build(schema: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Make a settings object of checked dotted `values`; what they lack is the default."""
    arguments: dict[str, Any] = {}
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = build(hints[field.name], values, f"{key}.")
        elif get_origin(hints[field.name]) is dict:
            kind = get_args(hints[field.name])[1]
            names = {other.split(".")[-2] for other in values if other.startswith(f"{key}.")}
            arguments[field.name] = {
                name: build(kind, values, f"{key}.{name}.") for name in sorted(names)
            }
        elif key in values:
            arguments[field.name] = values[key]
    return schema(**arguments)


def to_toml(settings: Any, *, documented: bool = False) -> str:
    """Write a settings object as TOML, with every setting's documentation as a comment if asked."""
    lines = list(_toml_lines(settings, "", documented))
    return "\n".join(lines).strip() + "\n"


def _checked(
    document: Mapping[str, Any], schema: type, prefix: str, where: Callable[[str], str]
) -> Iterator[tuple[str, Any]]:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = get_type_hints(schema)
    for name, value in document.items():
        key = prefix + name
        if name not in fields:
            known = ", ".join(sorted(fields))
            place = f"in [{prefix[:-1]}]" if prefix else "at the top level"
            raise ConfigError(where(key), f"unknown key {key!r}; known {place}: {known}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ConfigError(where(key), f"{key} must be a table, not {_shown(value)}")
            yield from _checked(value, _class(hints[name]), f"{key}.", where)
        elif get_origin(hints[name]) is dict:
            yield from _checked_tables(value, hints[name], fields[name], key, where)
        else:
            yield key, _convert(value, hints[name], fields[name], key, where(key))


def _checked_tables(
    value: Any,
    hint: Any,
    field: dataclasses.Field[Any],
    key: str,
    where: Callable[[str], str],
) -> Iterator[tuple[str, Any]]:
    """Yield the checked values of tables whose names are the user's."""
    if not isinstance(value, dict):
        raise ConfigError(where(key), f"{key} must be tables, not {_shown(value)}")
    for name, content in value.items():
        if not field.metadata["check"](name):
            raise ConfigError(
                where(f"{key}.{name}"),
                f"the name of [{key}.{name}] must be {field.metadata['expected']}",
            )
        if not isinstance(content, dict):
            raise ConfigError(where(key), f"{key}.{name} must be a table, not {_shown(content)}")
        kind = get_args(hint)[1]
        for needed in dataclasses.fields(kind):
            if needed.default is dataclasses.MISSING and needed.name not in content:
                raise ConfigError(where(f"{key}.{name}"), f"[{key}.{name}] needs {needed.name!r}")
        yield from _checked(content, kind, f"{key}.{name}.", where)


def _class(hint: Any) -> type:
    assert isinstance(hint, type)
    return hint


def _convert(value: Any, hint: Any, field: dataclasses.Field[Any], key: str, where: str) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(where, f"{key} must be a list, not {_shown(value)}")
        result: Any = tuple(_scalar(item, get_args(hint)[0], key, where) for item in value)
    else:
        result = _scalar(value, hint, key, where)
    check: Check | None = field.metadata["check"]
    if check is not None and not check(result):
        raise ConfigError(where, f"{key} must be {field.metadata['expected']}, not {_shown(value)}")
    return result


def _scalar(value: Any, kind: Any, key: str, where: str) -> Any:
    if kind is Path:
        if isinstance(value, str | Path) and str(value).startswith("/") and "\0" not in str(value):
            return Path(value)
        raise ConfigError(where, f"{key} must be an absolute path, not {_shown(value)}")
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(where, f"{key} must be {NAMES[kind]}, not {_shown(value)}")
    return float(value) if kind is float else value


def _shown(value: Any) -> str:
    return _toml_value(value) if isinstance(value, str | int | float | Path) else repr(value)


def _line_of(text: str, key: str) -> int:
    """Return the line (from 1) where the dotted `key` is assigned or its table opens, else 0."""
    opened = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := HEADER.match(line):
            opened = header[1].replace('"', "") + "."
            if f"{key}." == opened:
                return number
        elif (assignment := ASSIGNMENT.match(line)) and opened + assignment[1].strip('"') == key:
            return number
    return 0


def _toml_lines(settings: Any, prefix: str, documented: bool) -> Iterator[str]:
    tables = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            tables.append((field.name, value))
            continue
        if isinstance(value, dict):
            tables += [(f"{field.name}.{name}", content) for name, content in value.items()]
            if documented:
                yield ""
                yield from (f"# {line}" for line in field.metadata["doc"].splitlines())
            continue
        if documented:
            yield ""
            yield from (f"# {line}" for line in field.metadata["doc"].splitlines())
        yield f"{field.name} = {_toml_value(value)}"
    for name, value in tables:
        yield from ("", f"[{prefix}{name}]")
        yield from _toml_lines(value, f"{prefix}{name}.", documented)


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case tuple() | list():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
        case _:
            escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
            return '"' + "".join(_escape(char) for char in escaped) + '"'


def _escape(char: str) -> str:
    return char if char.isprintable() else f"\\u{ord(char):04x}"
