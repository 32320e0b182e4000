"""TOML files and frozen dataclasses: types, limits, places of mistakes, the documented default.

A settings class is a frozen dataclass. Its fields are scalars, paths, tuples of those, or further
settings classes, which become TOML tables; or a dictionary of those, with keys of the user's. What
a field means and what values it may take stands in its metadata (see `setting`), so that the check,
the documentation and the default are one thing. How they are written is in config_text.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

Check = Callable[[Any], bool]

NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    Path: "an absolute path",
}
HEADER = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_.\"-]+)\s*\]")
ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_.\"-]+)\s*=")


class Given(NamedTuple):
    """A value that a file or a flag has given, and where: "FILE:LINE" or the flag."""

    value: Any
    where: str


class Setting(NamedTuple):
    """One setting of a schema, as the documentation tells of it."""

    key: str  # dotted; a table with names of the user's is in it as NAME
    kind: str
    default: Any  # dataclasses.MISSING where one has to be given
    doc: str
    expected: str
    reloaded: bool


class ConfigError(Exception):
    """A configuration that cannot be used; the message is one line that a person can act on."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")


def setting(
    default: Any,
    doc: str,
    expected: str = "",
    check: Check | None = None,
    *,
    reloaded: bool = False,
) -> Any:
    """Declare one setting: default, documentation and, beyond its type, what values are legal.

    The default may be dataclasses.MISSING within `tables`: then each has to give a value. With
    `reloaded`, a SIGHUP puts a new value into effect (criserver.reload).
    """
    metadata = {"doc": doc, "expected": expected, "check": check, "reloaded": reloaded}
    return dataclasses.field(default=default, metadata=metadata)


def table(settings: type) -> Any:
    """Declare a TOML table whose keys are the fields of `settings`."""
    return dataclasses.field(default_factory=settings)


def tables(doc: str, example: str, expected: str, check: Check) -> Any:
    """Declare TOML tables by a name of the user's choice, which `check` accepts."""
    metadata = {"doc": doc, "example": example, "expected": expected, "check": check}
    return dataclasses.field(default_factory=dict, metadata=metadata)


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a schema, in the order of their declaration, tables last."""
    hints = get_type_hints(schema)
    tables = []
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            tables.append((_class(hint), f"{key}."))
        elif get_origin(hint) is dict:
            tables.append((get_args(hint)[1], f"{key}.NAME."))
        else:
            known = field.metadata
            yield Setting(
                key, _kind(hint), field.default, known["doc"], known["expected"], known["reloaded"]
            )
    for table_schema, table_prefix in tables:
        yield from settings(table_schema, table_prefix)


def _kind(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list, each {NAMES[get_args(hint)[0]]}"
    return NAMES[hint]


def is_reloaded(schema: type, key: str) -> bool:
    """Tell whether a SIGHUP puts a new value of the dotted `key` into effect."""
    *tables, name = key.split(".")
    hint: Any = schema
    for part in tables:
        hint = get_args(hint)[1] if get_origin(hint) is dict else get_type_hints(hint)[part]
    return bool(
        {field.name: field for field in dataclasses.fields(hint)}[name].metadata["reloaded"]
    )


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of a settings object: what `build` makes it of."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(values):
        value, key = getattr(values, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, dict):
            for name, content in value.items():
                flat |= flatten(content, f"{key}.{name}.")
        else:
            flat[key] = value
    return flat


def read_file(path: Path, schema: type) -> dict[str, Given]:
    """Return the checked values of one TOML file by their dotted keys.

    Raises ConfigError with file, line (where it can be had), key and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise ConfigError(str(path), f"cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(str(path), f"is not UTF-8: {err}") from err
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(_place_of(err, path), f"is not TOML: {err}") from err

    def where(key: str) -> str:
        line = _line_of(text, key)
        return f"{path}:{line}" if line else str(path)

    return {key: Given(value, where(key)) for key, value in _checked(document, schema, "", where)}


def _place_of(err: tomllib.TOMLDecodeError, path: Path) -> str:
    """Return FILE:LINE of a syntax error; its message names the line, or the end of the file."""
    line = re.search(r"\(at line (\d+)", str(err))
    return f"{path}:{line[1]}" if line else str(path)


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


def _checked(
    document: Mapping[str, Any], schema: type, prefix: str, where: Callable[[str], str]
) -> Iterator[tuple[str, Any]]:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = get_type_hints(schema)
    for name, value in document.items():
        key = prefix + name
        if name not in fields:
            raise ConfigError(where(key), _unknown(name, prefix, sorted(fields)))
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ConfigError(where(key), f"{key} must be a table, not {_shown(value)}")
            yield from _checked(value, _class(hints[name]), f"{key}.", where)
        elif get_origin(hints[name]) is dict:
            yield from _checked_tables(value, hints[name], fields[name], key, where)
        else:
            yield key, _convert(value, hints[name], fields[name], key, where(key))


def _unknown(name: str, prefix: str, known: list[str]) -> str:
    similar = difflib.get_close_matches(name, known, 1)
    meant = f" (did you mean {prefix + similar[0]!r}?)" if similar else ""
    place = f"in [{prefix[:-1]}]" if prefix else "at the top level"
    return f"unknown key {prefix + name!r}{meant}; known {place}: {', '.join(known)}"


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
    return toml_value(value) if isinstance(value, str | int | float | Path) else repr(value)


def _line_of(text: str, key: str) -> int:
    """Return the line (from 1) where the dotted `key` is assigned or its table opens, else 0.

    For a key within an inline table, the line where that begins.
    """
    lines: dict[str, int] = {}
    opened = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := HEADER.match(line):
            opened = header[1].replace('"', "") + "."
            lines.setdefault(opened[:-1], number)
        elif assignment := ASSIGNMENT.match(line):
            lines.setdefault(opened + assignment[1].replace('"', ""), number)
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key, 0)


def toml_value(value: Any) -> str:
    """Return a scalar, a path or a list as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case tuple() | list():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case _:
            escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
            return '"' + "".join(_escape(char) for char in escaped) + '"'


def _escape(char: str) -> str:
    return char if char.isprintable() else f"\\U{ord(char):08x}"
