"""The signature policy: which repositories' images must be signed, and by whom.

    default = "accept"                        # or "reject": for repositories that no rule names

    [[rule]]
    repository = "registry.example.com/team"  # it, and all below it; the longest rule wins
    require = "signature"                     # or "accept", or "reject"
    keys = ["team.pub"]                       # PEM, ECDSA P-256; one valid signature suffices
    identity = "repository"                   # or "any": the name that was signed is not looked at

Key files are relative to the policy's directory. What is wrong with the file refuses every pull:
no image comes in because of a typing error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageservice.errors import signature_invalid

ACCEPT, REJECT, SIGNATURE = "accept", "reject", "signature"
REPOSITORY, ANY = "repository", "any"
# A policy of a thousand rules fits many times over.
MAX_POLICY = 1 << 20
_RULE_KEYS = {"repository", "require", "keys", "identity"}


@dataclass(frozen=True)
class Rule:
    """What holds for one repository and all below it; "" is all that no rule names."""

    repository: str
    require: str
    keys: tuple[Path, ...] = ()
    identity: str = REPOSITORY

    def covers(self, repository: str) -> bool:
        """Tell whether the rule is about `repository`, domain included."""
        return repository == self.repository or repository.startswith(f"{self.repository}/")


@dataclass(frozen=True)
class Policy:
    """The rules of one file, the longest repository first."""

    path: Path
    rules: tuple[Rule, ...]
    default: Rule

    def rule_for(self, repository: str) -> Rule:
        """Return the rule for `registry/path`."""
        return next((rule for rule in self.rules if rule.covers(repository)), self.default)


def read(path: Path) -> Policy:
    """Read a policy; raises ImagePullError, of the kind that refuses a pull, for a wrong one."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY + 1)
    except OSError as err:
        raise signature_invalid(f"the policy {path} cannot be read: {err.strerror}") from err
    if len(data) > MAX_POLICY:
        raise signature_invalid(f"the policy {path} has more than {MAX_POLICY} bytes")
    try:
        return parse(tomllib.loads(data.decode()), path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise signature_invalid(f"the policy {path} is not TOML: {err}") from err
    except _WrongError as err:
        raise signature_invalid(f"the policy {path} is wrong: {err}") from err


class _WrongError(Exception):
    """Something in the file has no meaning."""


def parse(document: Mapping[str, Any], path: Path) -> Policy:
    """Make a policy of a TOML document."""
    unknown = document.keys() - {"default", "rule"}
    if unknown:
        raise _WrongError(f"unknown key {min(unknown)!r}; known: default, rule")
    default = document.get("default", ACCEPT)
    if default not in (ACCEPT, REJECT):
        raise _WrongError(f"default must be {ACCEPT!r} or {REJECT!r}, not {default!r}")
    tables = document.get("rule", [])
    if not isinstance(tables, list):
        raise _WrongError("rule must be a list of tables: [[rule]]")
    rules = [_rule(table, f"rule {n}", path) for n, table in enumerate(tables, start=1)]
    rules.sort(key=lambda rule: len(rule.repository), reverse=True)
    return Policy(path, tuple(rules), Rule("", default))


def _rule(table: Any, what: str, path: Path) -> Rule:
    if not isinstance(table, dict) or table.keys() - _RULE_KEYS:
        raise _WrongError(f"{what} has other keys than {', '.join(sorted(_RULE_KEYS))}")
    repository, require = table.get("repository"), table.get("require")
    if not isinstance(repository, str) or not repository.strip("/"):
        raise _WrongError(f"{what} has no repository")
    if require not in (ACCEPT, REJECT, SIGNATURE):
        raise _WrongError(f"require of {what} must be accept, reject or signature")
    keys = table.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise _WrongError(f"keys of {what} must be a list of file names")
    if (require == SIGNATURE) != bool(keys):
        raise _WrongError(f"{what} needs keys where it requires a signature, and only there")
    identity = table.get("identity", REPOSITORY)
    if identity not in (REPOSITORY, ANY):
        raise _WrongError(f"identity of {what} must be {REPOSITORY!r} or {ANY!r}")
    found = tuple(path.parent / key for key in keys)
    return Rule(repository.strip("/"), require, found, identity)
