"""Content credentials, read back by the library that other programs verify them with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quad.core.errors import InputError, UnsupportedError
from quad.runtime.provenance import credentials
from quad.runtime.provenance.credentials import ContentSigner
from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.provenance.png import PngOptions, encode_png

c2pa = pytest.importorskip("c2pa")
x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402

FACTS = PictureFacts(sampler="lcm:4", guidance=1.0, seed=1, size=(8, 8), model=("m", "0" * 64))
KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
}


@dataclass(frozen=True)
class Issued:
    """A certificate by an authority of its own."""

    chain: bytes
    key: Any

    def key_pem(self, passphrase: bytes | None = None, traditional: bool = False) -> bytes:
        kind = serialization.PrivateFormat.TraditionalOpenSSL if traditional else serialization.PrivateFormat.PKCS8
        lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        data: bytes = self.key.private_bytes(serialization.Encoding.PEM, kind, lock)
        return data


def issue(kind: str = "es256", days: int = 30) -> Issued:
    authority, key = KEYS["es256"](), KEYS[kind]()
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "signer")]
    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)

    def certificate(subject: Any, public: Any, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject).issuer_name(names[0]).public_key(public).serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60)).not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
        )  # fmt: skip
        if not ca:
            builder = builder.add_extension(usage, True)
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        data: bytes = builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return data

    return Issued(certificate(names[1], key.public_key(), False) + certificate(names[0], authority.public_key(), True), key)


@pytest.fixture(scope="module")
def issued() -> Issued:
    return issue()


def manifest_of(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a reader of credentials says of a file, and the active manifest."""
    with c2pa.Reader("image/png", BytesIO(data)) as reader:
        report = json.loads(reader.json())
    return report, report["manifests"][report["active_manifest"]]


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))


@pytest.mark.parametrize("kind", KEYS)
def test_a_signed_picture_is_valid_and_says_what_made_it(kind: str, tmp_path: Path) -> None:
    whole = issue(kind)
    (tmp_path / "signer.pem").write_bytes(whole.chain + whole.key_pem())
    signer = ContentSigner.open(tmp_path / "signer.pem")
    data = encode_png(picture(), FACTS, PngOptions(sign=signer.sign))
    report, manifest = manifest_of(data)
    assert report["validation_state"] == "Valid"
    assert {status["code"] for status in report.get("validation_status", [])} <= {"signingCredential.untrusted"}  # an authority of its own
    assert manifest["claim_generator_info"][0]["name"] == "quad"
    (action,) = manifest["assertions"][0]["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    with Image.open(BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))
        assert "parameters" in image.info
    assert "thumbnail" not in manifest


def test_a_changed_pixel_is_seen(issued: Issued, tmp_path: Path) -> None:
    (tmp_path / "signer.pem").write_bytes(issued.chain + issued.key_pem())
    data = bytearray(encode_png(picture(), FACTS, PngOptions(sign=ContentSigner.open(tmp_path / "signer.pem").sign)))
    at = data.index(b"IDAT") + 20
    data[at] ^= 1
    report, _ = manifest_of(bytes(data))
    assert report["validation_state"] == "Invalid"


def test_the_key_may_lie_beside_and_in_the_old_form(issued: Issued, tmp_path: Path) -> None:
    (tmp_path / "signer.pem").write_bytes(issued.chain)
    (tmp_path / "signer.key").write_bytes(issued.key_pem(traditional=True))
    signer = ContentSigner.open(tmp_path / "signer.pem")
    assert manifest_of(signer.sign(encode_png(picture(), FACTS, PngOptions()), FACTS))[0]["validation_state"] == "Valid"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda issued: None, "a PEM file of a certificate chain and its key, found none"),
        (lambda issued: b"junk", "a certificate chain in PEM"),
        (lambda issued: issued.chain, "found none that can be used; put it into that file or beside it"),
        (lambda issued: issued.chain + issued.key_pem(b"secret"), "found one with a passphrase"),
        (lambda issued: issued.chain + issue().key_pem(), "a certificate and its key that sign pictures, found Signature"),
        (lambda issued: (old := issue(days=-1)).chain + old.key_pem(), "was not valid at time of signing"),
    ],
    ids=["none", "junk", "no key", "passphrase", "another's key", "out of date"],
)
def test_what_does_not_sign_is_told_before_a_picture_is_made(make: Any, says: str, issued: Issued, tmp_path: Path) -> None:
    path = tmp_path / "signer.pem"
    if (data := make(issued)) is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        ContentSigner.open(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'quad\[c2pa\]'"):
        credentials.ContentSigner.open(tmp_path / "signer.pem")
