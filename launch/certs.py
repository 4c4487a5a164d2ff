"""Makes the certificates of one job: its own CA and one certificate per role.

    downpour certs --job=quickstart --out=certs
    downpour ps --tls=certs/ps --index=0

The first command writes `certs/ca.crt`, `certs/ca.key` and, for every role, `certs/ROLE/tls.crt`, `tls.key` and
`ca.crt`, as Kubernetes names them. A second run for the same job keeps the CA and writes new leaf certificates, which
running roles reload without a restart. Only that needs `ca.key`: keep it off the cluster.

Needs the packages of the extra `tls`.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from absl import flags

from downpour import files
from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax
from downpour.proto.security.certificates import Certificates
from downpour.proto.security.config import PLAIN, Security
from downpour.proto.security.tls import CA, CERTIFICATE, DOMAIN, KEY, ROLES, check_installed

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ModuleNotFoundError:
    pass  # `make` raises

SYNTAX = Syntax("job out days")
_CA_KEY = "ca.key"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CLOCKS_DIFFER = datetime.timedelta(minutes=5)
_LONGEST_DAYS = 3650


def main() -> None:
    """Runs `downpour certs`."""
    define()
    entry.run(_main, role="certs", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("job", None, "Name of the job; a DNS label.")
    flags.DEFINE_string("out", None, "Folder to write to.")
    flags.DEFINE_integer("days", 365, f"Days until the certificates expire, 1 to {_LONGEST_DAYS}.")


def _main() -> None:
    job, out, days = (flags.FLAGS[name].value for name in ("job", "out", "days"))
    if not job or not out:
        raise ValueError("give --job=NAME and --out=FOLDER")
    folder = Path(out)
    make(job, folder, int(days or 0))
    print(f"start each role with --tls={folder}/ROLE, ROLE one of {', '.join(ROLES)}; keep {folder}/{_CA_KEY} secret")


def check_job(name: str) -> None:
    """Raises `ValueError` unless a name is a DNS label, as host names and Kubernetes require."""
    if not _LABEL.fullmatch(name):
        raise ValueError(
            f"job name {name!r} is no DNS label (RFC 1123); give 1 to 63 small letters, digits and -, "
            "of which the first and the last are no -"
        )


def make(job: str, folder: Path, days: int = 365) -> None:
    """Writes a CA, unless the folder has this job's, and a certificate per role.

    Args:
        job: Name of the job.
        folder: Folder to write to.
        days: Validity of the leaf certificates; a new CA is valid for ten years.

    Raises:
        ValueError: The name or the days are not accepted, or the folder is another job's or cannot be written.
    """
    check_job(job)
    if not 1 <= days <= _LONGEST_DAYS:
        raise ValueError(f"--days={days}; give 1 to {_LONGEST_DAYS}")
    check_installed()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority = _Authority.open(job, folder) or _Authority.create(job, folder)
        for role in ROLES:
            (folder / role).mkdir(mode=0o700, exist_ok=True)
            authority.issue(role, folder / role, datetime.timedelta(days=days))
    except OSError as error:
        raise ValueError(f"{error.filename or folder}: {error.strerror}; give another --out") from None


def security_of(role: str, folder: Path | None) -> Security:
    """Returns a role's `Security` with certificates from a folder of `make`; plain text if None."""
    return Security(Certificates(folder / role, role)) if folder else PLAIN


class _Authority:
    """A job's CA: its key and its certificate."""

    def __init__(self, job: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._job, self._key, self._certificate = job, key, certificate

    @classmethod
    def open(cls, job: str, folder: Path) -> _Authority | None:
        """Reads the folder's CA; None if it has neither certificate nor key."""
        certificate, key = folder / CA, folder / _CA_KEY
        if not certificate.exists() and not key.exists():
            return None
        elsewhere = "nothing was written; give another --out"
        try:
            read = x509.load_pem_x509_certificate(certificate.read_bytes())
            private = load_pem_private_key(key.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{folder} has a {CA} or {_CA_KEY} that cannot be read ({error}); {elsewhere}") from None
        name = read.subject.rfc4514_string()
        if name != _name(job, "ca").rfc4514_string():
            raise ValueError(f"{certificate} is the CA {name!r}, not that of job {job!r}; {elsewhere}")
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != read.public_key():
            raise ValueError(f"{key} is not the key of {certificate}; {elsewhere}")
        if read.not_valid_after_utc <= _now():
            raise ValueError(f"the CA {certificate} expired on {read.not_valid_after_utc:%Y-%m-%d}; {elsewhere}")
        return cls(job, private, read)

    @classmethod
    def create(cls, job: str, folder: Path) -> _Authority:
        """Writes a new CA to the folder, the key first, so that no certificate is without its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(job, "ca"), key.public_key(), datetime.timedelta(days=_LONGEST_DAYS))
            .issuer_name(_name(job, "ca"))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        files.write(folder / _CA_KEY, _private_pem(key), mode=0o600)
        files.write(folder / CA, certificate.public_bytes(Encoding.PEM), mode=0o644)
        return cls(job, key, certificate)

    def issue(self, role: str, folder: Path, lasts: datetime.timedelta) -> None:
        """Writes a new key and certificate for a role."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(self._job, role), key.public_key(), lasts)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{role}.{self._job}.{DOMAIN}")]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        # Each is renamed into place. A role that reads between two renames finds a key that does not match the
        # certificate, and keeps the pair it has loaded.
        files.write(folder / KEY, _private_pem(key), mode=0o600)
        files.write(folder / CERTIFICATE, certificate.public_bytes(Encoding.PEM), mode=0o644)
        files.write(folder / CA, self._certificate.public_bytes(Encoding.PEM), mode=0o644)


def _name(job: str, role: str) -> x509.Name:
    """Subject for human readers; roles are identified by the alternative name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, job),
            x509.NameAttribute(NameOID.COMMON_NAME, f"downpour {role}"),
        ]
    )


def _builder(subject: x509.Name, key: ec.EllipticCurvePublicKey, lasts: datetime.timedelta) -> x509.CertificateBuilder:

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _CLOCKS_DIFFER)
        .not_valid_after(_now() + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:

    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
