"""What a node needs for TLS: files, checked before they are used, as gRPC credentials and as ssl contexts.

Every file is PEM. A server shows a certificate, and where it is told whom to believe it wants one of its clients (mTLS). A
client always says whom it believes: there is no way to ask for TLS without a check of who answers.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from splitcore.errors import SecurityError

ALPN = "h2"
NOT_BELIEVED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification", "is not in peer certificate")
"""what gRPC says when whoever answers shows a certificate that the client does not believe"""


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """How a server shows who it is. Raises SecurityError when a file is not what it should be."""

    certificate: Path
    """its certificate, then those of the authorities between it and the root"""
    key: Path
    """the certificate's private key, not encrypted"""
    client_trust: Path | None = None
    """authorities of clients: with it a client must show a certificate of theirs (mTLS)"""

    def __post_init__(self) -> None:
        _check_pair(self.certificate, self.key)
        if self.client_trust is not None:
            authorities(self.client_trust)

    def credentials(self) -> grpc.ServerCredentials:
        trust = None if self.client_trust is None else self.client_trust.read_bytes()
        pairs = [(self.key.read_bytes(), self.certificate.read_bytes())]
        return grpc.ssl_server_credentials(pairs, trust, require_client_auth=trust is not None)

    def context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """For sockets that are not gRPC's; `alpn`: what it speaks, as [ALPN]."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        if self.client_trust is not None:
            context.load_verify_locations(self.client_trust)
            context.verify_mode = ssl.CERT_REQUIRED
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Whom a client believes, and how it shows who it is. Raises SecurityError when a file is not what it should be."""

    trust: Path
    """authorities of servers"""
    certificate: Path | None = None
    """its own, for servers that want one"""
    key: Path | None = None
    name: str | None = None
    """the name that the server's certificate must have; None: the host that is dialled"""

    def __post_init__(self) -> None:
        authorities(self.trust)
        if self.certificate is not None and self.key is not None:
            _check_pair(self.certificate, self.key)
        elif self.certificate is not None or self.key is not None:
            raise SecurityError("expected a certificate and its key together, got one of the two")

    def credentials(self) -> grpc.ChannelCredentials:
        key, certificate = (None if path is None else path.read_bytes() for path in (self.key, self.certificate))
        return grpc.ssl_channel_credentials(self.trust.read_bytes(), key, certificate)

    @property
    def options(self) -> list[tuple[str, str]]:
        """Of a gRPC channel."""
        return [] if self.name is None else [("grpc.ssl_target_name_override", self.name)]

    def named(self, host: str) -> ClientTls:
        """The same for a server that is reached under another name than `host`, its own."""
        return self if self.name is not None else dataclasses.replace(self, name=host)

    def context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """For sockets that are not gRPC's: connect with `server_hostname`, the name that is expected."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.trust)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


def server_tls(certificate: Path | None, key: Path | None, client_trust: Path | None = None) -> ServerTls | None:
    """What a server's options say; None: clear text. Raises SecurityError."""
    if certificate is None and key is None and client_trust is None:
        return None
    if certificate is None or key is None:
        raise SecurityError("expected a certificate and its key for TLS, got no --tls-certificate or no --tls-key")
    return ServerTls(certificate=certificate, key=key, client_trust=client_trust)


def client_tls(
    trust: Path | None, certificate: Path | None = None, key: Path | None = None, name: str | None = None
) -> ClientTls | None:
    """What a client's options say; None: clear text. Raises SecurityError."""
    if trust is None:
        if certificate is not None or key is not None or name is not None:
            raise SecurityError("expected the authorities of the server as well, --tls-trust: TLS without them checks nobody")
        return None
    return ClientTls(trust=trust, certificate=certificate, key=key, name=name)


def authorities(path: Path) -> list[x509.Certificate]:
    """The certificates in a file of those that are believed, none of them out of date. Raises SecurityError."""
    found = _certificates(path, "authorities' certificates")
    for certificate in found:
        _check_time(path, certificate)
    return found


def not_believed(details: str | None) -> bool:
    """Whether a gRPC status tells of a certificate that the client refused: trying again would not help."""
    return any(sign in (details or "") for sign in NOT_BELIEVED)


def _check_pair(certificate: Path, key: Path) -> None:
    first = _certificates(certificate, "a certificate")[0]
    _check_time(certificate, first)
    try:
        private = load_pem_private_key(_read(key, "a private key"), None)
    except (TypeError, ValueError) as error:
        raise SecurityError(f"expected a private key in PEM, not encrypted, in {key}: {error}") from error
    if _spki(private.public_key()) != _spki(first.public_key()):
        raise SecurityError(f"expected the private key of {certificate} in {key}, it belongs to another certificate")


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _certificates(path: Path, what: str) -> list[x509.Certificate]:
    data = _read(path, what)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise SecurityError(f"expected {what} in PEM in {path}: {error}") from error


def _check_time(path: Path, certificate: x509.Certificate) -> None:
    now, first, last = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise SecurityError(
            f"expected a certificate that is valid now in {path}, got one of {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} "
            "UTC: make another, `latentbed certificates` makes a set"
        )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityError(f"expected {what} in {path}: {error.strerror}") from error
