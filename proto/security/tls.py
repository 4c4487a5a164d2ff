"""A role's certificate: its files, whether they can be used, and the role and job that it names.

A folder holds `tls.crt`, `tls.key` and `ca.crt` (PEM), as Kubernetes TLS secrets and cert-manager do. A certificate
names a role and a job instead of a host, as the DNS name `ROLE.JOB.downpour` in its subject alternative name. A server
takes the caller's role from it, a client checks that it has reached the intended role; so addresses may change.

No gRPC here; cryptography is imported when a certificate is read.
"""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from downpour import how_to_install

if TYPE_CHECKING:
    from cryptography import x509

CERTIFICATE, KEY, CA = "tls.crt", "tls.key", "ca.crt"
DOMAIN = "downpour"
ROLES = ("ps", "worker", "chief", "evaluator")


class TlsError(OSError):
    """TLS cannot be established, or bytes were changed on the way; the text has OpenSSL's error names."""


class WrongPeer(TlsError):
    """The peer is not the intended one of this job.

    Args:
        reason: Text for the log.
        meaning: What is wrong with the peer, for a message that names it.
    """

    def __init__(self, reason: str, meaning: str) -> None:
        super().__init__(reason)
        self.meaning = meaning


class PeerAlert(TlsError):
    """The peer has ended the handshake; perhaps it does not accept this process's certificate."""


@dataclass(frozen=True)
class Files:
    """The contents of a certificate folder, as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    ca: bytes


@dataclass(frozen=True)
class Identity:
    """The role and job that a certificate names, and when it expires."""

    role: str
    job: str
    ends: datetime.datetime


def server_name(role: str, job: str) -> str:
    """Returns the DNS name in the certificate of a role of a job."""
    return f"{role}.{job}.{DOMAIN}"


def role_in(names: Iterable[str], job: str) -> str:
    """Returns the role that a certificate's DNS names give their owner in a job; empty for none or several."""
    given = set(names)
    roles = {role for role in ROLES if server_name(role, job) in given}
    return roles.pop() if len(roles) == 1 else ""


def check_installed() -> None:
    """Raises `ValueError` if cryptography or pyOpenSSL is not installed."""
    for package, module in (("cryptography", "cryptography"), ("pyOpenSSL", "OpenSSL")):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"TLS needs the package {package}; install it with {how_to_install('tls')}")


def read(folder: Path) -> Files:
    """Reads a certificate folder.

    Raises:
        ValueError: A file is missing or unreadable.
    """
    found = []
    for name in (CERTIFICATE, KEY, CA):
        try:
            found.append((folder / name).read_bytes())
        except OSError as error:
            raise ValueError(
                f"--tls={folder}: {name} cannot be read: {error.strerror}; the folder must hold {CERTIFICATE}, {KEY} "
                f"and {CA} (downpour certs makes them)"
            ) from None
    return Files(*found)


def check(folder: Path, files: Files, role: str) -> Identity:
    """Checks the certificate of a folder; returns the role and job that it names.

    Args:
        folder: The folder, for messages.
        files: Its files.
        role: Role of this process; "" if the certificate of any will do.

    Raises:
        ValueError: It cannot be used by a process of this role now: unreadable, not signed by this CA, expired or not
            yet valid, not fitting the key, or naming another role.
    """
    check_installed()
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        part = CERTIFICATE
        chain = x509.load_pem_x509_certificates(files.certificate)
        part = CA
        authorities = x509.load_pem_x509_certificates(files.ca)
        part = KEY
        key = load_pem_private_key(files.key, None)
    except (ValueError, TypeError) as error:  # TypeError: the key needs a password
        # Not the library's message, which could show the contents of the file.
        raise ValueError(f"--tls={folder}: {part} is no PEM file that can be read ({type(error).__name__})") from None
    leaf = chain[0]
    if key.public_key() != leaf.public_key():
        raise ValueError(f"--tls={folder}: {KEY} is not the key of {CERTIFICATE}; make both anew")
    now = datetime.datetime.now(datetime.UTC)
    if now > leaf.not_valid_after_utc:
        raise ValueError(f"--tls={folder}: {CERTIFICATE} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < leaf.not_valid_before_utc:
        raise ValueError(
            f"--tls={folder}: {CERTIFICATE} is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, and it is "
            f"{now:%Y-%m-%d %H:%M}; check this machine's clock"
        )
    issuers = [one for one in (*chain[1:], *authorities) if one.subject == leaf.issuer]
    for issuer in issuers:
        try:
            leaf.verify_directly_issued_by(issuer)
            break
        except (InvalidSignature, ValueError, TypeError):
            continue
    else:
        raise ValueError(f"--tls={folder}: {CERTIFICATE} is not signed by the CA in {CA}; take both from the same job")
    identity = _identity(folder, dns_names(leaf), leaf.not_valid_after_utc)
    if role and identity.role != role:
        raise ValueError(
            f"--tls={folder}: {CERTIFICATE} is that of role {identity.role!r} of job {identity.job!r}, but this "
            f"process is a {role}; give the folder with the certificate of {server_name(role, identity.job)}"
        )
    return identity


def dns_names(certificate: x509.Certificate) -> list[str]:
    """Returns the DNS names in the subject alternative name."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _identity(folder: Path, names: list[str], ends: datetime.datetime) -> Identity:
    ours = [name for name in names if name.endswith(f".{DOMAIN}")]
    parts = ours[0].split(".") if len(ours) == 1 else []
    if len(parts) != 3 or parts[0] not in ROLES or not parts[1]:
        raise ValueError(
            f"--tls={folder}: {CERTIFICATE} names {', '.join(names) or 'nobody'}; its subject alternative name must "
            f"have one DNS name ROLE.JOB.{DOMAIN} with ROLE one of {', '.join(ROLES)}"
        )
    return Identity(parts[0], parts[1], ends)
