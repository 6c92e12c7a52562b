"""An authority of one's own, and certificates from it: for tests, for scenarios, and for an adversary that plays server.

Keys are P-256, certificates short-lived; private keys are written readable by their owner alone. Nothing here is for the
public internet: an authority made here is believed by whoever is told to, and by nobody else.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitcore.errors import SecurityError
from splitcore.wire.tls import authorities

DAYS = 30
EARLY = timedelta(minutes=5)
"""certificates hold from a little before they were made: clocks differ"""
Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A certificate, the one that issued it behind it where that is wanted, and its key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> None:
        """`name.pem` and `name.key`, the key with mode 0600 from its first byte on."""
        (folder / f"{name}.pem").write_bytes(self.certificate)
        key = folder / f"{name}.key"
        key.unlink(missing_ok=True)
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(self.key)


class Authority:
    """Issues certificates."""

    def __init__(self, certificate: x509.Certificate, key: Key) -> None:
        self.certificate, self._key = certificate, key

    @classmethod
    def made(cls, name: str, days: int = DAYS) -> Authority:
        """A new one, which vouches for itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _begun(subject, subject, key.public_key(), days).add_extension(usage, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Authority:
        """One that was written before. Raises SecurityError."""
        try:
            loaded = load_pem_private_key(key.read_bytes(), None)
        except (OSError, TypeError, ValueError) as error:
            raise SecurityError(f"expected an authority's private key in PEM, not encrypted, in {key}: {error}") from error
        if not isinstance(loaded, Key):
            raise SecurityError(f"expected a key that can sign certificates in {key}, got {type(loaded).__name__}")
        return cls(authorities(certificate)[0], loaded)

    @property
    def pair(self) -> Pair:
        return Pair(self.certificate.public_bytes(Encoding.PEM), _pem(self._key))

    def issue(self, name: str, hosts: Sequence[str] = (), days: int = DAYS, *, now: datetime | None = None) -> Pair:
        """For a server of the names and addresses `hosts`, or without any for a client called `name`.

        `now`: when it begins to hold; None: at this moment.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _begun(_name(name), self.certificate.subject, key.public_key(), days, now)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True
        )
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        alternatives = [_general(host) for host in hosts] or [x509.DNSName(name)]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return Pair(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM), _pem(key))


def write_set(folder: Path, hosts: Sequence[str] = LOCAL_NAMES, client: str = "phone", days: int = DAYS) -> None:
    """An authority, a server and a client of its, and an adversary's authority with a client of its own.

    `phone-trust.pem` believes both authorities: a phone on which somebody has installed one root too many.
    Raises SecurityError where a set lies already: overwriting it would cut off whoever uses it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (folder / "ca.key").exists():
        raise SecurityError(f"expected a folder without certificates, {folder} holds some: remove them, or name another")
    authority, evil = Authority.made("latentbed authority", days), Authority.made("adversary's authority", days)
    evil.pair.write(folder, "adversary-ca")
    evil.issue("adversary", days=days).write(folder, "adversary")
    authority.issue(hosts[0], hosts, days).write(folder, "server")
    authority.issue(client, days=days).write(folder, "client")
    (folder / "phone-trust.pem").write_bytes(authority.pair.certificate + evil.pair.certificate)
    # the last one: where it is, the set is whole
    authority.pair.write(folder, "ca")


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime | None = None
) -> x509.CertificateBuilder:
    now = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def main(
    folder: Annotated[Path, typer.Argument(help="where the set lies, or is made")],
    host: Annotated[list[str], typer.Option(help="name or address of the server; repeatable")],
    client_folder: Annotated[Path, typer.Option(help="gets what the client needs: its pair, and the authority's certificate")],
    public: Annotated[Path, typer.Option(help="gets the authority's certificate, which is no secret")],
) -> None:
    """Makes a set at the first start, and hands out the parts: for containers, none of which shall have another's key."""
    if not (folder / "ca.key").exists():
        write_set(folder, host)
    for name in ("client.key", "client.pem", "ca.pem"):
        copy = client_folder / name
        if not copy.exists():
            shutil.copy(folder / name, copy)  # with its mode
    if not public.exists():
        shutil.copy(folder / "ca.pem", public)


if __name__ == "__main__":
    typer.run(main)
