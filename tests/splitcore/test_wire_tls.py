"""TLS files: what a set of certificates is, what is refused, and that gRPC and plain sockets believe the same ones."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from splitcore.errors import SecurityError
from splitcore.wire.certificates import Authority, write_set
from splitcore.wire.tls import ClientTls, ServerTls, client_tls, server_tls
from testbed.cli import app


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "set"
    result = CliRunner().invoke(app, ["certificates", str(folder), "--host", "edge", "--host", "127.0.0.1"])
    assert result.exit_code == 0, result.output
    return folder


def test_keys_are_for_their_owner_alone_and_a_set_is_not_overwritten(files: Path) -> None:
    keys = sorted(files.glob("*.key"))
    assert [key.stem for key in keys] == ["adversary-ca", "adversary", "ca", "client", "server"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    with pytest.raises(SecurityError, match="expected a folder without certificates"):
        write_set(files)


def test_a_server_certificate_has_its_names_and_an_end(files: Path) -> None:
    certificate = x509.load_pem_x509_certificate((files / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left < timedelta(days=31)


def test_what_is_wrong_with_a_file_is_said_with_its_name(files: Path, tmp_path: Path) -> None:
    trust, certificate, key = files / "ca.pem", files / "server.pem", files / "server.key"
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("-----BEGIN NOTHING-----")
    with pytest.raises(SecurityError, match=r"in .*absent\.pem: No such file"):
        ServerTls(certificate=tmp_path / "absent.pem", key=key)
    with pytest.raises(SecurityError, match=r"in PEM in .*nonsense\.pem"):
        ClientTls(trust=nonsense)
    with pytest.raises(SecurityError, match=r"private key in PEM, not encrypted, in .*server\.pem"):
        ServerTls(certificate=certificate, key=certificate)
    with pytest.raises(SecurityError, match=r"private key of .*server\.pem in .*client\.key, it belongs to another"):
        ServerTls(certificate=certificate, key=files / "client.key")
    with pytest.raises(SecurityError, match="together, got one of the two"):
        ClientTls(trust=trust, certificate=certificate)


def test_a_certificate_out_of_date_is_refused_at_the_start(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=3)
    Authority.made("short").issue("old", ["localhost"], days=1, now=long_ago).write(tmp_path, "old")
    with pytest.raises(SecurityError, match=r"valid now in .*old\.pem, got one of .* to .* UTC"):
        ServerTls(certificate=tmp_path / "old.pem", key=tmp_path / "old.key")


def test_options_that_belong_together_are_asked_for_together(files: Path) -> None:
    assert server_tls(None, None) is None
    assert client_tls(None) is None
    with pytest.raises(SecurityError, match="certificate and its key"):
        server_tls(files / "server.pem", None)
    with pytest.raises(SecurityError, match="TLS without them checks nobody"):
        client_tls(None, name="edge")


def _handshake(server: ServerTls, client: ClientTls, name: str) -> tuple[str | None, str]:
    """(the protocol that both speak, the client's name as the server knows it) over a real socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[str] = []

    def serve() -> None:
        connection, _ = listener.accept()
        try:
            with server.context(["h2"]).wrap_socket(connection, server_side=True) as accepted:
                subject = (accepted.getpeercert() or {}).get("subject", ())
                seen.append(dict(pair for part in subject for pair in part).get("commonName", ""))
                accepted.sendall(b"x")
        except ssl.SSLError:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with (
            socket.create_connection(listener.getsockname()) as raw,
            client.context(["h2"]).wrap_socket(raw, server_hostname=name) as connected,
        ):
            connected.recv(1)
            return connected.selected_alpn_protocol(), seen[0]
    finally:
        thread.join()
        listener.close()


def test_plain_sockets_check_the_same_names_and_authorities(files: Path) -> None:
    server = ServerTls(certificate=files / "server.pem", key=files / "server.key", client_trust=files / "ca.pem")
    phone = ClientTls(trust=files / "ca.pem", certificate=files / "client.pem", key=files / "client.key")
    assert _handshake(server, phone, "127.0.0.1") == ("h2", "phone")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"doesn't match|mismatch"):
        _handshake(server, phone, "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(server, ClientTls(trust=files / "adversary-ca.pem"), "edge")
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
        _handshake(server, ClientTls(trust=files / "ca.pem"), "edge")
    evil = ClientTls(trust=files / "ca.pem", certificate=files / "adversary.pem", key=files / "adversary.key")
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
        _handshake(server, evil, "edge")


def test_an_authority_that_was_written_issues_more(files: Path, tmp_path: Path) -> None:
    again = Authority.read(files / "ca.pem", files / "ca.key")
    again.issue("other", ["localhost"]).write(tmp_path, "other")
    server = ServerTls(certificate=tmp_path / "other.pem", key=tmp_path / "other.key")
    assert _handshake(server, ClientTls(trust=files / "ca.pem", name="localhost"), "localhost")[0] == "h2"
    with pytest.raises(SecurityError, match="authority's private key in PEM"):
        Authority.read(files / "ca.pem", files / "ca.pem")
