"""C2PA content credentials: a signed statement in a picture's file of what made it. Source: C2PA technical specification 2.

The library is an extra, `quad[c2pa]`. Nothing goes out: no time is asked of a time stamp authority.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from quad import __version__
from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.storage.reading import is_file, reading_from
from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.provenance.png import plain_png
from quad.runtime.provenance.xmp import source_type

_PNG = "image/png"
_KEY_SUFFIX = ".key"
# The library's default is a second picture in the file, of tens of kB.
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}
_KEY_WANTED = "a private key in PEM without a passphrase: EC P-256, P-384 or P-521, Ed25519, or RSA"


@dataclass(frozen=True, kw_only=True)
class ContentSigner:
    """A certificate and its key.

    Args:
        place: where they were read, for messages.
        chain: the signer's certificate first, then those that lead to its root, PEM.
        key: PKCS #8, PEM.
        algorithm: as C2PA calls it.
    """

    place: str
    chain: bytes
    key: bytes
    algorithm: str

    @classmethod
    def open(cls, path: Path) -> ContentSigner:
        """Read a PEM file of the certificate chain, with the private key in it or in a file of the same name that ends in `.key`.

        Raises:
            UnsupportedError: the extra is not installed.
            InputError: no such file, no certificate, no key, a key with a passphrase or of a kind that C2PA does not know; or they do not
                sign.
        """
        require_c2pa()
        data = _read(path)
        beside = path.with_suffix(_KEY_SUFFIX)
        if b"PRIVATE KEY-----" not in data and is_file(beside):
            data += b"\n" + _read(beside)
        signer = _from_pem(data, str(path))
        signer.sign(_probe(), PictureFacts(sampler="", guidance=1.0, seed=0, size=(1, 1), model=("", "")))
        return signer

    def sign(self, png: bytes, facts: PictureFacts) -> bytes:
        """The same picture with credentials.

        Raises:
            InputError: certificate and key do not belong together, are out of date, or are not for signing.
        """
        import c2pa

        try:
            info = c2pa.C2paSignerInfo(alg=self.algorithm.encode(), sign_cert=self.chain, private_key=self.key, ta_url=None)
            with (
                c2pa.Signer.from_info(info) as signer,
                c2pa.Context(c2pa.Settings.from_dict(_SETTINGS)) as context,
                c2pa.Builder(_manifest(png, facts), context=context) as builder,
            ):
                data = BytesIO()
                builder.sign(signer, _PNG, BytesIO(png), data)
                return data.getvalue()
        except c2pa.C2paError as error:
            reason = " ".join(str(error).split())
            raise InputError(mismatch(self.place, "a certificate and its key that sign pictures", reason, "give another --sign")) from error


def require_c2pa() -> None:
    """Raises:
    UnsupportedError: `quad[c2pa]` is not installed.
    """
    try:
        import c2pa  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(mismatch("--sign", "the c2pa extra", "none", "pip install 'quad[c2pa]'")) from error


def _manifest(png: bytes, facts: PictureFacts) -> dict[str, Any]:
    """One action: a picture of a model alone was created; one that began at another picture is a composite."""
    action = {"action": "c2pa.created", "digitalSourceType": source_type(facts.edited)}
    return {
        "claim_generator_info": [{"name": "quad", "version": __version__}],
        "format": _PNG,
        "title": f"{hashlib.sha256(png).hexdigest()[:12]}.png",
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }


def _read(path: Path) -> bytes:
    if not is_file(path):
        raise InputError(mismatch(f"{path}", "a PEM file of a certificate chain and its key", "none", "check the path"))
    with reading_from(path):
        return path.read_bytes()


def _from_pem(data: bytes, place: str) -> ContentSigner:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        chain = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise InputError(mismatch(place, "a certificate chain in PEM", "none that can be read", "give the signer's chain")) from error
    try:
        key = serialization.load_pem_private_key(_block(data), None)
        algorithm = _algorithm(key)
    except (ValueError, TypeError, LookupError) as error:  # TypeError: it has a passphrase
        found = "one with a passphrase" if isinstance(error, TypeError) else "none that can be used"
        hint = f"put it into that file or beside it, in a file that ends in {_KEY_SUFFIX}"
        raise InputError(mismatch(place, _KEY_WANTED, found, hint)) from error
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return ContentSigner(
        place=place,
        chain=b"".join(certificate.public_bytes(encoding) for certificate in chain),
        key=key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain),
        algorithm=algorithm,
    )


def _block(data: bytes) -> bytes:
    """The private key's lines of a PEM file.

    Raises:
        LookupError: there are none.
    """
    lines = data.splitlines(keepends=True)
    begin = next((at for at, line in enumerate(lines) if b"PRIVATE KEY-----" in line and line.startswith(b"-----BEGIN")), None)
    if begin is None:
        raise LookupError("no private key")
    end = next(at for at, line in enumerate([*lines, b"-----END"]) if at > begin and line.startswith(b"-----END"))
    return b"".join(lines[begin : end + 1])


def _algorithm(key: Any) -> str:
    """Raises:
    LookupError: C2PA has none for this kind of key.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise LookupError(type(key).__name__)


def _probe() -> bytes:
    """A picture of one pixel, to learn that certificate and key sign before minutes are spent on a picture."""
    return plain_png(Image.new("RGB", (1, 1)))
