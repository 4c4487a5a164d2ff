"""How a shard is guarded, and what a stranger shows: the certificate and the token."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from downpour.launch import certs
from downpour.proto.security.config import PLAIN, Security
from tests.certificates import JOB, TOKEN, security

_OWN, _FOREIGN, _TOKEN_FILE = "certs", "foreign", "token"


@dataclass(frozen=True)
class Guard:
    """What a shard asks of its callers.

    Attributes:
        tls: For a certificate of the job.
        token: For the job's token.
    """

    tls: bool
    token: bool

    def prepare(self, folder: Path) -> None:
        """Writes certificates and token, those of a stranger among them."""
        if self.tls:
            certs.make(JOB, folder / _OWN)
            certs.make(JOB, folder / _FOREIGN)
        if self.token:
            (folder / _TOKEN_FILE).write_text(TOKEN + "\n")

    def flags(self, folder: Path) -> list[str]:
        """Of the shard."""
        tls = [f"--tls={folder / _OWN / 'ps'}"] if self.tls else []
        return [*tls, f"--token_file={folder / _TOKEN_FILE}"] if self.token else tls

    def security(self, folder: Path, role: str) -> Security:
        """Of a process of the job."""
        token_file = folder / _TOKEN_FILE if self.token else None
        if self.tls:
            return security(folder / _OWN, role, token_file)
        return Security(token=TOKEN) if self.token else PLAIN


TOKEN_ALONE, TLS_AND_TOKEN, TLS_ALONE = Guard(False, True), Guard(True, True), Guard(True, False)


@dataclass(frozen=True)
class Way:
    """What a stranger comes with.

    Attributes:
        name: For tables.
        guard: Of the shard it comes to.
        certificate: Whose it shows, `own` for a worker's of the job, `foreign` for one of another CA; empty: none.
        token: That it sends with its calls; empty: none.
    """

    name: str
    guard: Guard
    certificate: str = ""
    token: str = ""

    def context(self, folder: Path) -> ssl.SSLContext | None:
        """For its connections; None for plain text."""
        if not self.guard.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if self.certificate:
            shown = folder / (_OWN if self.certificate == "own" else _FOREIGN) / "worker"
            context.load_cert_chain(shown / "tls.crt", shown / "tls.key")
        return context


NO_TOKEN = Way("plain text, no token", TOKEN_ALONE)
WRONG_TOKEN = Way("plain text, wrong token", TOKEN_ALONE, token="the-token-of-another-job")
NO_CERTIFICATE = Way("mTLS, no certificate", TLS_AND_TOKEN)
OTHER_CA = Way("mTLS, certificate of another CA", TLS_AND_TOKEN, certificate="foreign")
WORKER_NO_TOKEN = Way("mTLS, worker's certificate, no token", TLS_AND_TOKEN, certificate="own")
WORKER = Way("mTLS without token, worker's certificate", TLS_ALONE, certificate="own")
WAYS = {way.name: way for way in (NO_TOKEN, WRONG_TOKEN, NO_CERTIFICATE, OTHER_CA, WORKER_NO_TOKEN, WORKER)}
