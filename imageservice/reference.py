"""Image references: the grammar of distribution/reference, and Docker's short names.

`busybox` is docker.io/library/busybox:latest; a name with tag and digest is pulled by its digest,
as containerd and Docker do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from api.errors import InvalidArgumentError

DEFAULT_DOMAIN = "docker.io"
# Docker's older name for the same registry.
LEGACY_DEFAULT_DOMAIN = "index.docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"

# distribution/reference: bounds domain and path together.
MAX_NAME = 255
# The name, ":", a tag of 128 and "@sha256:" with 64 digits fit well; more is not a reference.
MAX_REFERENCE = 512

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?", re.ASCII
)
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}")
_ID = re.compile(r"(?:sha256:)?([a-f0-9]{1,64})")


@dataclass(frozen=True)
class Reference:
    """A normalised reference: exactly one of `tag` and `digest` is set."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """Domain and path: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    def with_digest(self, digest: str) -> Reference:
        """Return the same repository by digest."""
        return Reference(self.domain, self.path, digest=digest)

    def __str__(self) -> str:
        return (
            f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"
        )


def is_digest(text: str) -> bool:
    """Tell whether `text` is a sha256 digest, the only algorithm that is stored."""
    return _DIGEST.fullmatch(text) is not None


def id_prefix(text: str) -> str | None:
    """Return the hex digits if `text` can be an image id or the beginning of one."""
    match = _ID.fullmatch(text)
    return match.group(1) if match else None


def parse(text: str) -> Reference:
    """Parse and normalise a reference.

    Raises InvalidArgumentError, naming the part that is wrong.
    """
    if not text:
        raise InvalidArgumentError("the image reference is empty")
    if len(text) > MAX_REFERENCE:
        raise InvalidArgumentError(
            f"image reference {text[:40]!r}… is longer than {MAX_REFERENCE} characters"
        )
    remainder, _, digest = text.partition("@")
    if "@" in text and not is_digest(digest):
        raise _invalid(text, f"{digest!r} is not a sha256 digest")
    name, tag = _split_tag(remainder)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _invalid(text, f"{tag!r} is not a tag")
    domain, path = _split_domain(name)
    _check_name(text, domain, path)
    if digest:
        return Reference(domain, path, digest=digest)
    return Reference(domain, path, tag=tag or DEFAULT_TAG)


def _split_tag(text: str) -> tuple[str, str | None]:
    name, colon, tag = text.rpartition(":")
    # A colon before a slash belongs to the port of the domain.
    if not colon or "/" in tag:
        return text, None
    return name, tag


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    looks_like_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not looks_like_host:
        domain, path = DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    return domain, path


def _check_name(text: str, domain: str, path: str) -> None:
    if not _DOMAIN.fullmatch(domain):
        raise _invalid(text, f"{domain!r} is not a registry host")
    for part in path.split("/"):
        if not _PATH_PART.fullmatch(part):
            raise _invalid(text, f"{part!r} is not a repository name (lower case only)")
    if len(domain) + 1 + len(path) > MAX_NAME:
        raise _invalid(text, f"the name is longer than {MAX_NAME} characters")
    bare = path.removeprefix(OFFICIAL_PREFIX)
    if domain == DEFAULT_DOMAIN and re.fullmatch(r"[a-f0-9]{64}", bare):
        raise _invalid(text, "64 hex digits are an image id, not a repository name")


def _invalid(text: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"invalid image reference {text!r}: {reason}")
