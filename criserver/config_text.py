"""The settings as text: the documented default file, the values in effect, the reference's list."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from criserver.config_schema import Given, Setting, flatten, settings, toml_value

RELOADED = "[reload]"

HEAD = f"""\
# The configuration of criserver. Every setting is here, with its default as a comment: remove the
# '#' to change it. Files in config.d/*.toml beside this one are read after it, in the order of
# their names; a later value replaces an earlier one.
#
#   criserver config check     what is wrong, with file and line
#   criserver config dump      the values in effect, and where each comes from
#
# {RELOADED}: `systemctl reload criserver` (SIGHUP) puts a new value into effect. The others need
# `systemctl restart criserver`, which disturbs no container.
"""


def default_toml(schema: type) -> str:
    """Return a file that changes nothing and documents every setting."""
    return "\n".join([HEAD.rstrip(), *_default_lines(schema, "")]) + "\n"


def _default_lines(schema: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(schema)
    tables = []
    for field in dataclasses.fields(schema):
        hint, metadata = hints[field.name], field.metadata
        if dataclasses.is_dataclass(hint) or get_origin(hint) is dict:
            tables.append((field.name, hint, metadata))
            continue
        yield ""
        yield from _comment(metadata["doc"], metadata["reloaded"])
        yield f"#{field.name} = {toml_value(field.default)}"
    for name, hint, metadata in tables:
        yield ""
        if get_origin(hint) is dict:
            reloaded = all(found.reloaded for found in settings(get_args(hint)[1]))
            yield from _comment(metadata["doc"], reloaded)
            yield from (f"#{line}" for line in metadata["example"].splitlines())
        else:
            yield f"[{prefix}{name}]"
            yield from _default_lines(hint, f"{prefix}{name}.")


def _comment(doc: str, reloaded: bool) -> Iterator[str]:
    lines = doc.splitlines()
    if reloaded:
        lines[-1] += f" {RELOADED}"
    return (f"# {line}" for line in lines)


def dump_toml(values: Any, given: Mapping[str, Given]) -> str:
    """Return a settings object as TOML, each value with a comment that says where it is from."""
    lines: list[str] = []
    opened = ""
    for key, value in sorted(flatten(values).items(), key=lambda item: item[0].rpartition(".")[0]):
        table, _, name = key.rpartition(".")
        if table != opened:
            lines += ["", f"[{table}]"]
            opened = table
        where = given[key].where if key in given else "default"
        lines.append(f"{name} = {toml_value(value)}  # {where}")
    return "\n".join(lines) + "\n"


def reference(schema: type) -> str:
    """Return the list of all settings for docs/configuration.md."""
    return "\n".join(line for setting in settings(schema) for line in _entry(setting)) + "\n"


def _entry(setting: Setting) -> list[str]:
    needed = setting.default is dataclasses.MISSING
    default = "has to be given" if needed else f"default `{toml_value(setting.default)}`"
    expected = f"; {setting.expected}" if setting.expected else ""
    reloaded = ", reload" if setting.reloaded else ""
    lines = [f"- **`{setting.key}`**: {setting.kind}{expected}; {default}{reloaded}."]
    return lines + [f"  {line}" for line in setting.doc.splitlines()]
