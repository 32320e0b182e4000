"""The user namespace that a pod asks for (hostUsers: false), with the peers' errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError

Mappings = tuple[dict[str, int], ...]

# Ids are 32 bits, and the last one means "none" (man 2 setresuid).
_MAX_IDS = (1 << 32) - 1


@dataclass(frozen=True)
class UserNamespace:
    """Id mappings as the OCI writes them: of each kind one line, that begins with root."""

    uids: Mappings
    gids: Mappings

    def as_json(self) -> dict[str, list[dict[str, int]]]:
        """Return the form that namespaces_worker takes."""
        return {"uids": list(self.uids), "gids": list(self.gids)}

    def root(self) -> tuple[int, int]:
        """Return the uid and gid on the host of the root inside."""
        return self.uids[0]["hostID"], self.gids[0]["hostID"]


def user_namespace_of(options: cri.NamespaceOption) -> UserNamespace | None:
    """Return what a sandbox asks for; None is the host's. Raises InvalidArgumentError."""
    if not options.HasField("userns_options"):
        return None
    asked = options.userns_options
    uids, gids = _mappings("UID", asked.uids), _mappings("GID", asked.gids)
    if asked.mode == cri.NODE:
        if uids or gids:
            raise _invalid(
                f'can\'t use user namespace mode "NODE" with mappings. Got {len(uids)} UID mappings'
                f" and {len(gids)} GID mappings"
            )
        return None
    if asked.mode != cri.POD:
        mode = cri.NamespaceMode.Name(asked.mode) if asked.mode in _MODES else str(asked.mode)
        raise _invalid(f'unsupported user namespace mode: "{mode}"')
    if not uids or not gids:
        raise _invalid('can\'t use user namespace mode "POD" without UID and GID mappings')
    for name in ("pid", "ipc"):
        if getattr(options, name) == cri.NODE:
            # Its /proc and /dev/mqueue belong to the host's user namespace: no mount of them.
            raise _invalid(f"a pod with a user namespace cannot have the host's {name} namespace")
    return UserNamespace(uids, gids)


_MODES = cri.NamespaceMode.values()


def _mappings(kind: str, lines: Sequence[cri.IDMapping]) -> Mappings:
    if len(lines) > 1:
        raise _invalid(
            f"{kind} mapping: only one mapping line supported, got {len(lines)} mapping lines"
        )
    for line in lines:
        if line.length < 1:
            raise _invalid(f"{kind} mapping: invalid mapping length: {line.length}")
        if line.container_id != 0:
            raise _invalid(f"{kind} mapping: begins with {line.container_id}, so root has no id")
        if line.host_id + line.length > _MAX_IDS:
            raise _invalid(
                f"{kind} mapping: host ids {line.host_id}+{line.length} are over 32 bits"
            )
    return tuple(
        {"containerID": line.container_id, "hostID": line.host_id, "size": line.length}
        for line in lines
    )


def _invalid(words: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"user namespace configuration: {words}")
