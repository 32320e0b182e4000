"""The signature policy's file, and what makes a signature valid."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from api.errors import ImagePullError
from imageservice import signatures
from imageservice.manifest import Descriptor, digest_of
from imageservice.signature_policy import ANY, Rule, read
from imageservice.signatures import PAYLOAD_TYPE, Signature, load_key, parse_signatures, why_invalid

DIGEST = digest_of(b"manifest")
REPOSITORY = "example.com/team/app"
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


# -- the policy -------------------------------------------------------------------------------


def policy(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_the_longest_rule_wins(tmp_path: Path) -> None:
    found = read(
        policy(
            tmp_path,
            """
default = "reject"
[[rule]]
repository = "example.com"
require = "accept"
[[rule]]
repository = "example.com/team/"
require = "signature"
keys = ["team.pub", "/etc/other.pub"]
[[rule]]
repository = "example.com/team/app/public"
require = "accept"
""",
        )
    )
    required = {
        "example.com/x": "accept",
        "example.com/team": "signature",
        "example.com/team/app": "signature",
        "example.com/teams": "accept",
        "example.com/team/app/public": "accept",
        "example.com/team/app/publicity": "signature",
        "other.com/team": "reject",
        "example.community/x": "reject",
    }
    assert {name: found.rule_for(name).require for name in required} == required
    assert found.rule_for("example.com/team").keys == (
        tmp_path / "team.pub",
        Path("/etc/other.pub"),
    )


def test_without_rules_everything_is_accepted(tmp_path: Path) -> None:
    assert read(policy(tmp_path, "")).rule_for("a.com/b").require == "accept"


@pytest.mark.parametrize(
    "text",
    [
        "default = 1",
        'default = "signature"',
        "defualt = 'reject'",
        "[rule]\nrepository = 'a'",
        "[[rule]]\nrequire = 'accept'",
        "[[rule]]\nrepository = '/'\nrequire = 'accept'",
        "[[rule]]\nrepository = 'a'\nrequire = 'yes'",
        "[[rule]]\nrepository = 'a'\nrequire = 'signature'",
        "[[rule]]\nrepository = 'a'\nrequire = 'signature'\nkeys = []",
        "[[rule]]\nrepository = 'a'\nrequire = 'accept'\nkeys = ['k']",
        "[[rule]]\nrepository = 'a'\nrequire = 'signature'\nkeys = [1]",
        "[[rule]]\nrepository = 'a'\nrequire = 'signature'\nkeys = ['k']\nidentity = 'x'",
        "[[rule]]\nrepository = 'a'\nrequire = 'accept'\nmore = 1",
        "rule = [1]",
        "{",
        "x" * 2_000_000,
    ],
)
def test_a_wrong_policy_lets_nothing_in(tmp_path: Path, text: str) -> None:
    with pytest.raises(ImagePullError, match=r"^SignatureValidationFailed: the policy "):
        read(policy(tmp_path, text))


def test_an_absent_policy_lets_nothing_in(tmp_path: Path) -> None:
    with pytest.raises(ImagePullError, match=r"^SignatureValidationFailed: .* cannot be read"):
        read(tmp_path / "absent")


# -- keys -------------------------------------------------------------------------------------


def test_only_p256_keys_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(pem(KEY))
    assert load_key(path).public_numbers() == KEY.public_key().public_numbers()
    wrong = (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048))
    for data in (b"", b"garbage", *(pem(key) for key in wrong)):
        path.write_bytes(data)
        with pytest.raises(ImagePullError, match=f"^SignatureValidationFailed: the key {path}"):
            load_key(path)
    with pytest.raises(ImagePullError, match="cannot be read"):
        load_key(tmp_path / "absent")


# -- signatures -------------------------------------------------------------------------------


def payload(**changes: Any) -> bytes:
    critical = {
        "identity": {"docker-reference": REPOSITORY},
        "image": {"docker-manifest-digest": DIGEST},
        "type": "cosign container image signature",
        **changes,
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def sign(data: bytes, key: Any = KEY) -> Signature:
    made = key.sign(data, ec.ECDSA(hashes.SHA256()))
    return Signature(Descriptor(PAYLOAD_TYPE, digest_of(data), len(data)), made)


def reason(data: bytes, signature: Signature | None = None, identity: str = "repository") -> str:
    rule = Rule("example.com", "signature", identity=identity)
    keys = [OTHER.public_key(), KEY.public_key()]
    return why_invalid(signature or sign(data), data, DIGEST, REPOSITORY, rule, keys)


@pytest.mark.parametrize("name", [REPOSITORY, f"{REPOSITORY}:v1", f"{REPOSITORY}@{DIGEST}"])
def test_a_signature_by_one_of_the_keys_is_valid(name: str) -> None:
    assert reason(payload(identity={"docker-reference": name})) == ""


INVALID = {
    "another payload": (payload(), sign(b"other"), "another than its digest"),
    "another key": (
        payload(),
        sign(payload(), ec.generate_private_key(ec.SECP256R1())),
        "none of the policy's keys",
    ),
    "no signature at all": (
        payload(),
        Signature(sign(payload()).payload, b""),
        "none of the policy's keys",
    ),
    "not JSON": (b"{", None, "simple signing"),
    "a list": (b"[]", None, "simple signing"),
    "no digest": (payload(image={}), None, "simple signing"),
    "another image": (
        payload(image={"docker-manifest-digest": digest_of(b"x")}),
        None,
        "the signature of sha256:",
    ),
    "another kind": (payload(type="atomic container signature"), None, "is a 'atomic"),
    "another repository": (
        payload(identity={"docker-reference": "example.com/team"}),
        None,
        "signed as 'example.com/team'",
    ),
    "identity that is no text": (payload(identity={"docker-reference": 7}), None, "signed as"),
}


@pytest.mark.parametrize(("data", "signature", "expected"), INVALID.values(), ids=INVALID)
def test_everything_else_is_invalid(
    data: bytes, signature: Signature | None, expected: str
) -> None:
    assert expected in reason(data, signature)


def test_the_identity_may_be_left_out_of_account() -> None:
    other = payload(identity={"docker-reference": "mirror.com/x"})
    assert reason(other, identity=ANY) == ""


def test_layers_that_are_no_signatures_are_passed_over() -> None:
    good = {
        "mediaType": PAYLOAD_TYPE,
        "digest": DIGEST,
        "size": 5,
        "annotations": {signatures.ANNOTATION: base64.b64encode(b"s").decode()},
    }
    bad = [
        {**good, "mediaType": "text/plain"},
        {**good, "annotations": None},
        {**good, "annotations": {signatures.ANNOTATION: "!"}},
        {**good, "digest": "md5:1"},
        {**good, "size": signatures.MAX_PAYLOAD + 1},
        {**good, "size": "5"},
        7,
    ]
    found = parse_signatures({"layers": [*bad, good]})
    assert found == [Signature(Descriptor(PAYLOAD_TYPE, DIGEST, 5), b"s")]
    assert parse_signatures({"layers": {}}) == []
    assert len(parse_signatures({"layers": [good] * 100})) == signatures.MAX_SIGNATURES
