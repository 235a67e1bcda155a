#!/usr/bin/env bash
# c2pa-python 0.38.1 (c2pa-rs 0.91.3): a PNG of 152 bytes has 32 kB when it is signed, because a second picture goes into it unasked.
#
# `Builder.sign` puts a JPEG thumbnail of the picture into the credentials. A manifest that names none gets one all the same; it is switched
# off in the settings of a context, `builder.thumbnail.enabled`. The thumbnail of a picture of one colour, 64x64, takes 29 kB: it is not made
# smaller for a small picture. A reader's `validation_state` is "Valid" for both, and for a certificate that nobody trusts: trust is a code
# of its own in `validation_status`, `signingCredential.untrusted`.
#
# Seen:
#   unsigned 152 bytes, signed 32,230 by default, 2,730 without a thumbnail; both "Valid" with signingCredential.untrusted
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet c2pa-python==0.38.1 pillow==13.0.0 cryptography==50.0.2
cat > "$work/try.py" <<'PY'
import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from io import BytesIO

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

key, authority = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "signer")]
now = datetime.now(UTC)
certificate = (
    x509.CertificateBuilder().subject_name(names[1]).issuer_name(names[0]).public_key(key.public_key()).serial_number(7)
    .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=9))
    .add_extension(x509.BasicConstraints(False, None), True)
    .add_extension(x509.KeyUsage(True, *[False] * 8), True)
    .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
    .sign(authority, hashes.SHA256())
)
pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=certificate.public_bytes(pem),
                           private_key=key.private_bytes(pem, pkcs8, serialization.NoEncryption()), ta_url=None)
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCreation"
manifest = {"claim_generator_info": [{"name": "try", "version": "1"}], "format": "image/png", "assertions": [
    {"label": "c2pa.actions", "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE}]}}]}
plain = BytesIO()
Image.new("RGB", (64, 64), "red").save(plain, "PNG")


def signed(enabled):
    settings = c2pa.Settings.from_dict({} if enabled else {"builder": {"thumbnail": {"enabled": False}}})
    with c2pa.Signer.from_info(info) as signer, c2pa.Context(settings) as context, c2pa.Builder(manifest, context=context) as builder:
        data = BytesIO()
        builder.sign(signer, "image/png", BytesIO(plain.getvalue()), data)
    with c2pa.Reader("image/png", BytesIO(data.getvalue())) as reader:
        report = json.loads(reader.json())
    codes = [status["code"] for status in report["validation_status"]]
    return len(data.getvalue()), "thumbnail" in report["manifests"][report["active_manifest"]], report["validation_state"], codes


print(f"c2pa-python {version('c2pa-python')}, unsigned {len(plain.getvalue())} bytes")
default, without = signed(True), signed(False)
print(f"by default {default}", f"without a thumbnail {without}", sep="\n")
assert default[0] > 8 * without[0] and default[1] and not without[1], "the behaviour has changed"
assert default[2:] == without[2:] == ("Valid", ["signingCredential.untrusted"]), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py"
echo "as described"
