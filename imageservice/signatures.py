"""Signatures as cosign stores them, by keys: ECDSA P-256 over a "simple signing" payload.

The signatures of the manifest sha256:HEX are the layers of the image tagged sha256-HEX.sig in the
same repository: each layer is a payload, its annotation the signature
(sigstore/cosign specs/SIGNATURE_SPEC.md).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.errors import NotFoundError
from imageservice import manifest as m
from imageservice import signature_policy as policies
from imageservice.auth import Credentials
from imageservice.errors import BadContentError, signature_invalid
from imageservice.manifest import Descriptor
from imageservice.reference import Reference, is_digest
from imageservice.registry import BrokenTransferError, RegistryClient, Repository
from imageservice.signature_policy import Rule

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
SIGNATURE_OF = "cosign container image signature"
# A payload is some 250 bytes; what signers add to it stays far below.
MAX_PAYLOAD = 1 << 20
# Signatures of one image that are looked at: each costs a request.
MAX_SIGNATURES = 32
MAX_KEY = 1 << 16


@dataclass(frozen=True)
class Signature:
    """A signature (DER) and the descriptor of the payload that it is of."""

    payload: Descriptor
    signature: bytes


class SignatureCheck:
    """Holds pulls to the policy, which is read anew each time."""

    def __init__(self, client: RegistryClient, policy: Path | None) -> None:
        self._client = client
        self._policy = policy

    async def check(
        self, reference: Reference, credentials: Credentials, digests: Sequence[str]
    ) -> None:
        """Let the image in, or raise ImagePullError with the prefix SignatureValidationFailed.

        digests: of the index, where there is one, and of the manifest: signatures of any of them
        count, as `cosign sign` and `cosign sign --recursive` make them.
        """
        if self._policy is None:
            return
        policy = await asyncio.to_thread(policies.read, self._policy)
        rule = policy.rule_for(reference.repository)
        if rule.require == policies.ACCEPT:
            return
        if rule.require == policies.REJECT:
            raise signature_invalid(f"the policy {policy.path} refuses {reference}")
        keys = await asyncio.to_thread(_load_keys, rule)
        reasons = []
        for digest in dict.fromkeys(digests):
            reason = await self._find(reference, credentials, digest, rule, keys)
            if not reason:
                return
            reasons.append(reason)
        raise signature_invalid(
            f"{reference} has no signature that {policy.path} asks for: {'; '.join(reasons)}"
        )

    async def _find(
        self,
        reference: Reference,
        credentials: Credentials,
        digest: str,
        rule: Rule,
        keys: Sequence[EllipticCurvePublicKey],
    ) -> str:
        """Look for a valid signature of `digest`; returns "", or why there is none."""
        tagged = replace(reference, tag=f"{digest.replace(':', '-')}.sig", digest="")
        repository = self._client.repository(tagged, credentials)
        try:
            fetched = await repository.resolve()
            found = parse_signatures(m.parse_document(fetched.body, str(tagged)))
        except NotFoundError:
            return f"there is no {tagged}"
        except BadContentError as err:
            return str(err)
        reason = f"{tagged} holds no signature"
        for signature in found:
            try:
                payload = await _payload(repository, signature.payload)
            except NotFoundError:
                reason = f"a payload of {tagged} is not there"
                continue
            reason = why_invalid(signature, payload, digest, reference.repository, rule, keys)
            if not reason:
                return ""
            reason = f"{tagged}: {reason}"
        return reason


def parse_signatures(document: dict[str, Any]) -> list[Signature]:
    """Return what a signature image holds; layers that are none are passed over."""
    layers = document.get("layers")
    found = []
    for layer in layers[:MAX_SIGNATURES] if isinstance(layers, list) else ():
        if not isinstance(layer, dict) or layer.get("mediaType") != PAYLOAD_TYPE:
            continue
        annotations = layer.get("annotations")
        text = annotations.get(ANNOTATION) if isinstance(annotations, dict) else None
        digest, size = layer.get("digest"), layer.get("size")
        if not (isinstance(text, str) and isinstance(digest, str) and isinstance(size, int)):
            continue
        if not is_digest(digest) or not 0 < size <= MAX_PAYLOAD:
            continue
        try:
            signature = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            continue
        found.append(Signature(Descriptor(PAYLOAD_TYPE, digest, size), signature))
    return found


def why_invalid(
    signature: Signature,
    payload: bytes,
    digest: str,
    repository: str,
    rule: Rule,
    keys: Sequence[EllipticCurvePublicKey],
) -> str:
    """Return why a signature does not vouch for `digest` in `repository`, "" if it does."""
    if m.digest_of(payload) != signature.payload.digest:
        return "the payload is another than its digest says"
    if not any(_is_signed_by(key, signature.signature, payload) for key in keys):
        return "none of the policy's keys has made the signature"
    try:
        critical = json.loads(payload)["critical"]
        kind, signed = critical["type"], critical["image"]["docker-manifest-digest"]
        identity = critical["identity"]["docker-reference"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "the payload is not of the simple signing format"
    if kind != SIGNATURE_OF:
        return f"the payload is a {str(kind)[:80]!r}"
    if signed != digest:
        return f"it is the signature of {str(signed)[:80]}"
    if rule.identity == policies.REPOSITORY and _repository_of(identity) != repository:
        return f"it was signed as {str(identity)[:256]!r}"
    return ""


def _repository_of(name: Any) -> str:
    """Return the repository of a signed name, which may have a tag or a digest."""
    if not isinstance(name, str):
        return ""
    name = name.partition("@")[0]
    head, slash, tail = name.rpartition("/")
    return f"{head}{slash}{tail.partition(':')[0]}" if slash else name


def _is_signed_by(key: EllipticCurvePublicKey, signature: bytes, payload: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _load_keys(rule: Rule) -> list[EllipticCurvePublicKey]:
    """Read the rule's keys; in a thread, for the first import of the library takes its time."""
    return [load_key(path) for path in rule.keys]


def load_key(path: Path) -> EllipticCurvePublicKey:
    """Read a PEM public key; raises ImagePullError for any other than ECDSA P-256."""
    # Imported here: 10 MB that a daemon without a policy has no use for.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        with path.open("rb") as file:
            key = load_pem_public_key(file.read(MAX_KEY))
    except OSError as err:
        raise signature_invalid(f"the key {path} cannot be read: {err.strerror}") from err
    except (ValueError, UnsupportedAlgorithm) as err:
        raise signature_invalid(f"the key {path} is not a PEM public key: {err}") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise signature_invalid(f"the key {path} is not an ECDSA P-256 key")
    return key


async def _payload(repository: Repository, wanted: Descriptor) -> bytes:
    """Return a payload as it comes; whether it is the right one is for the caller to see."""
    try:
        return await repository.small_blob(wanted)
    except BrokenTransferError as err:
        raise signature_invalid(f"a payload breaks off: {err}") from err
