"""TLS at the relay: passed as it is, ended with a stolen certificate, or with one made for the name that is asked for."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from interop import SERVICE, TestService, relayed

from adversary.addons.recorder import Recorder
from adversary.relay.interception import Interception, interception
from splitcore.errors import SecurityError
from splitcore.wire.certificates import LOCAL_NAMES, Authority, write_set
from splitcore.wire.channel import aio_channel
from splitcore.wire.tls import ClientTls, ServerTls


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_set(tmp_path / "tls", [*LOCAL_NAMES, "edge.example"])
    return tmp_path / "tls"


def believing(files: Path, trust: str, name: str | None = None, own: bool = False) -> ClientTls:
    pair = {"certificate": files / "client.pem", "key": files / "client.key"} if own else {}
    return ClientTls(trust=files / trust, name=name, **pair)


def server(files: Path, mutual: bool = False) -> grpc.ServerCredentials:
    trust = files / "ca.pem" if mutual else None
    return ServerTls(certificate=files / "server.pem", key=files / "server.key", client_trust=trust).credentials()


async def ask(target: str, tls: ClientTls | None) -> grpc.StatusCode:
    async with aio_channel(target, tls=tls) as channel:
        call = channel.unary_unary(SERVICE + "UnaryCall")(b"abc", timeout=20)
        try:
            assert await call == b"abc"
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def test_tls_that_is_not_ended_here_passes_as_it_is(files: Path, tmp_path: Path) -> None:
    async with relayed(tmp_path, TestService(), credentials=server(files, mutual=True)) as path:
        assert await ask(path.target, believing(files, "ca.pem", own=True)) is grpc.StatusCode.OK
        assert await ask(path.target, believing(files, "ca.pem")) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", [None, "edge.example"])
async def test_a_client_that_believes_the_adversarys_authority_is_intercepted(
    name: str | None, files: Path, tmp_path: Path
) -> None:
    evil = Authority.read(files / "adversary-ca.pem", files / "adversary-ca.key")
    options = {"credentials": server(files), "tls": believing(files, "ca.pem"), "intercepting": Interception(evil, LOCAL_NAMES)}
    recorder = Recorder(tmp_path / "copy.jsonl")
    async with relayed(tmp_path, TestService(), recorder, **options) as path:
        assert await ask(path.target, believing(files, "phone-trust.pem", name)) is grpc.StatusCode.OK
        assert path.service.metadata  # the server was asked by the relay
        # one that believes the true authority alone notices
        assert await ask(path.target, believing(files, "ca.pem", name)) is grpc.StatusCode.UNAVAILABLE


async def test_a_stolen_certificate_is_shown_to_everybody(files: Path, tmp_path: Path) -> None:
    stolen = interception(files / "server.pem", files / "server.key", None, None, LOCAL_NAMES)
    options = {"credentials": server(files), "tls": believing(files, "ca.pem"), "intercepting": stolen}
    async with relayed(tmp_path, TestService(), **options) as path:
        assert await ask(path.target, believing(files, "ca.pem")) is grpc.StatusCode.OK
        assert await ask(path.target, None) is grpc.StatusCode.UNAVAILABLE  # clear text where TLS is spoken


async def test_a_server_that_wants_a_certificate_refuses_the_relay_until_one_is_stolen(files: Path, tmp_path: Path) -> None:
    evil = Authority.read(files / "adversary-ca.pem", files / "adversary-ca.key")
    for own, wanted in ((False, grpc.StatusCode.UNAVAILABLE), (True, grpc.StatusCode.OK)):
        options = {"tls": believing(files, "ca.pem", own=own), "intercepting": Interception(evil, LOCAL_NAMES)}
        async with relayed(tmp_path, TestService(), credentials=server(files, mutual=True), **options) as path:
            assert await ask(path.target, believing(files, "phone-trust.pem")) is wanted


def test_half_of_an_option_is_refused(files: Path) -> None:
    with pytest.raises(SecurityError, match="--ca-key"):
        interception(None, None, files / "adversary-ca.pem", None, LOCAL_NAMES)
    with pytest.raises(SecurityError, match="got both"):
        interception(files / "server.pem", files / "server.key", files / "ca.pem", files / "ca.key", LOCAL_NAMES)
    assert interception(None, None, None, None, LOCAL_NAMES) is None
