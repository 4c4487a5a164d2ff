"""Certificates for tests: good ones as `downpour certs` makes them, and bad ones of the same CA."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import Security, read_token

JOB = "fashion"
TOKEN = "0123456789abcdef-the-token-of-fashion"
_DAY = datetime.timedelta(days=1)


def security(folder: Path, role: str, token_file: Path | None = None) -> Security:
    """Of a process of this role, which has the certificates of `folder / role`."""
    return Security(Certificates(folder / role, role), read_token(token_file) if token_file else "")


def forge(
    authority: Path,
    out: Path,
    names: Sequence[str],
    *,
    begins: datetime.timedelta = -_DAY,
    ends: datetime.timedelta = _DAY,
) -> Path:
    """A folder with a certificate of the CA in another folder, for DNS names or addresses, from `begins` to `ends`."""
    ca = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    ca_key = load_pem_private_key((authority / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (out / "tls.crt").write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (out / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    return out


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
