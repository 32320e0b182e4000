"""Which uid, gid and groups a container runs with: CRI fields, image user, passwd and group files.

Pure: the files come as bytes from the image. Malformed lines in them are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from api.cri import api_pb2
from api.errors import InvalidArgumentError

# runc and containerd take ids up to 2^31-1; greater ones could wrap around to 0 (CVE-2024-40635).
MAX_ID = (1 << 31) - 1

_NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class ResolvedUser:
    """Numeric ids, and the home directory of the user ("/" when passwd has no entry)."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]  # sorted, with the primary one
    home: str = "/"


@dataclass(frozen=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class _Group:
    name: str
    gid: int
    members: frozenset[str]


def resolve_user(
    context: api_pb2.LinuxContainerSecurityContext,
    image_user: str,
    passwd: bytes,
    group: bytes,
) -> ResolvedUser:
    """Resolve a security context against an image's `User` ("user[:group]") and its files.

    run_as_username goes before run_as_user, either before the image's user; without any it is
    root. The group is the one asked for, else the account's, else 0. With the policy Merge the
    groups that list the user as a member are added, with Strict only supplemental_groups.

    Raises InvalidArgumentError for an unknown name, an id out of range, or a group without a user.
    """
    field, user, group_name = _wanted(context, image_user)
    accounts = list(_accounts(passwd))
    groups = list(_groups(group))
    uid, account = _find_account(field, user, accounts)
    gid = _find_gid(field, group_name, groups) if group_name else account.gid if account else 0
    gids = {gid} | set(_supplemental(context))
    if _merges(context):
        gids |= _memberships(account.name if account else user, groups)
    return ResolvedUser(uid, gid, tuple(sorted(gids)), account.home if account else "/")


def _wanted(
    context: api_pb2.LinuxContainerSecurityContext, image_user: str
) -> tuple[str, str, str]:
    """Return (the field that an error names, user, group); an empty group is the account's."""
    group = str(context.run_as_group.value) if context.HasField("run_as_group") else ""
    if context.run_as_username:
        return "run_as_username", context.run_as_username, group
    if context.HasField("run_as_user"):
        return "run_as_user", str(context.run_as_user.value), group
    if group:
        raise InvalidArgumentError(
            "linux.security_context.run_as_group: needs run_as_user or run_as_username"
        )
    user, separator, image_group = image_user.partition(":")
    if separator and (not user or not image_group or ":" in image_group):
        raise InvalidArgumentError(f"image user {image_user!r}: not of the form user[:group]")
    return "image user", user or "0", image_group


def _find_account(
    field: str, user: str, accounts: Collection[_Account]
) -> tuple[int, _Account | None]:
    if _NUMBER.fullmatch(user):
        uid = _checked_id(field, user)
        return uid, next((each for each in accounts if each.uid == uid), None)
    for account in accounts:
        if account.name == user:
            return account.uid, account
    raise InvalidArgumentError(f"{field}: no user {user!r} in the image's /etc/passwd")


def _find_gid(field: str, name: str, groups: Collection[_Group]) -> int:
    if _NUMBER.fullmatch(name):
        return _checked_id(f"{field}'s group", name)
    for group in groups:
        if group.name == name:
            return group.gid
    raise InvalidArgumentError(f"{field}: no group {name!r} in the image's /etc/group")


def _checked_id(field: str, number: str | int) -> int:
    value = int(number)
    if not 0 <= value <= MAX_ID:
        raise InvalidArgumentError(f"{field}: id {value} is not between 0 and {MAX_ID}")
    return value


def _supplemental(context: api_pb2.LinuxContainerSecurityContext) -> Iterator[int]:
    for index, gid in enumerate(context.supplemental_groups):
        yield _checked_id(f"linux.security_context.supplemental_groups[{index}]", gid)


def _merges(context: api_pb2.LinuxContainerSecurityContext) -> bool:
    policy = context.supplemental_groups_policy
    if policy not in (api_pb2.Merge, api_pb2.Strict):
        raise InvalidArgumentError(
            f"linux.security_context.supplemental_groups_policy: unknown value {policy}"
        )
    return policy == api_pb2.Merge


def _memberships(user: str, groups: Collection[_Group]) -> set[int]:
    """Return the groups that list the user, but for a group of the user's own name.

    That one, if it is the primary group, is there anyway.
    """
    return {group.gid for group in groups if user in group.members and group.name != user}


def _accounts(passwd: bytes) -> Iterator[_Account]:
    """Yield name:password:uid:gid:comment:home:shell; what is missing at the end is empty."""
    for name, _, uid, gid, _, home, *_ in _lines(passwd, needed=4, padded=7):
        if _is_id(uid) and _is_id(gid):
            yield _Account(name, int(uid), int(gid), home if home.startswith("/") else "/")


def _groups(group: bytes) -> Iterator[_Group]:
    """Yield name:password:gid:member,member,…"""
    for name, _, gid, members, *_ in _lines(group, needed=3, padded=4):
        if _is_id(gid):
            yield _Group(name, int(gid), frozenset(filter(None, members.split(","))))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= MAX_ID


def _lines(content: bytes, *, needed: int, padded: int) -> Iterator[list[str]]:
    for line in content.split(b"\n"):
        if b"\0" in line or line.startswith(b"#"):
            continue
        parts = line.decode("utf-8", "surrogateescape").strip().split(":")
        if len(parts) >= needed and parts[0]:
            yield parts + [""] * (padded - len(parts))
