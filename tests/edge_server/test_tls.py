"""The edge server over TLS and mTLS: who gets through, and what the others are told."""

from __future__ import annotations

import asyncio
import sys

import grpc
import httpx
import pytest

from splitcore.wire.certificates import write_set
from splitcore.wire.probe import serving
from splitcore.wire.tls import ClientTls, ServerTls
from testbed.nodes import Node, NodeError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls") / "set"
    write_set(folder)
    return folder


@pytest.fixture
def mutual(files):
    return ServerTls(certificate=files / "server.pem", key=files / "server.key", client_trust=files / "ca.pem")


async def refused(edge, served, tls):
    """The status that a client with `tls` gets for a frame."""
    peer = type(edge.peer)(edge.server.address, tls)
    try:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await peer.infer(served.frame("r/phone/0"), timeout=20)
    finally:
        await peer.channel.close()
    return error.value


async def test_frames_go_over_tls_and_over_nothing_else(start_edge, served, files):
    edge = await start_edge(tls=ServerTls(certificate=files / "server.pem", key=files / "server.key"))
    peer = type(edge.peer)(edge.server.address, ClientTls(trust=files / "ca.pem"))
    [reply] = await peer.ask([served.frame("r/phone/0")])
    assert reply.error is None
    assert (await peer.infer(served.frame("r/phone/1"))).label == reply.label
    await peer.channel.close()
    assert (await refused(edge, served, None)).code() is grpc.StatusCode.UNAVAILABLE
    stranger = await refused(edge, served, ClientTls(trust=files / "adversary-ca.pem"))
    assert "CERTIFICATE_VERIFY_FAILED" in stranger.details()
    other_name = await refused(edge, served, ClientTls(trust=files / "ca.pem", name="elsewhere"))
    assert other_name.code() is grpc.StatusCode.UNAVAILABLE


async def test_with_mtls_whoever_has_no_certificate_of_ours_gets_nothing(start_edge, served, files, mutual):
    edge = await start_edge(tls=mutual)
    ours = ClientTls(trust=files / "ca.pem", certificate=files / "client.pem", key=files / "client.key")
    peer = type(edge.peer)(edge.server.address, ours)
    assert (await peer.infer(served.frame("r/phone/0"))).error is None
    assert await asyncio.to_thread(serving, edge.server.address, tls=ours) is None
    await peer.channel.close()
    own = ClientTls(trust=files / "ca.pem", certificate=files / "adversary.pem", key=files / "adversary.key")
    for tls in (None, ClientTls(trust=files / "ca.pem"), own):
        assert (await refused(edge, served, tls)).code() is grpc.StatusCode.UNAVAILABLE
    assert edge.logged() == ["r/phone/0"]


async def test_the_control_plane_speaks_tls_too(start_edge, files, mutual):
    edge = await start_edge(control_tls=mutual)
    ours = ClientTls(trust=files / "ca.pem", certificate=files / "client.pem", key=files / "client.key")
    address = f"https://{edge.server.control}/readyz"
    async with httpx.AsyncClient(verify=ours.context(), trust_env=False) as client:
        assert (await client.get(address)).json() == {"ready": True, "reason": ""}
    async with httpx.AsyncClient(verify=ClientTls(trust=files / "ca.pem").context(), trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(address)


async def test_the_testbed_reaches_a_control_plane_over_tls(start_edge, files):
    edge = await start_edge(control_tls=ServerTls(certificate=files / "server.pem", key=files / "server.key"))
    node = Node("edge", edge.server.control, "none", files / "ca.pem")
    assert (await asyncio.to_thread(node.get, "/healthz"))["status"] == "ok"
    with pytest.raises(NodeError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(Node("edge", edge.server.control, "none", files / "adversary-ca.pem").get, "/healthz")


async def test_a_phone_that_meets_another_certificate_says_so_at_once_and_sends_nothing(
    start_edge, digits_artefact, files, tmp_path
):
    evil = ServerTls(certificate=files / "server.pem", key=files / "server.key")
    edge = await start_edge(tls=evil)
    phone = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mobile_client", "once", "--artefact", str(digits_artefact), "--state", str(tmp_path / "phone"),
        "--target", edge.server.address, "--count", "2", "--tls-trust", str(files / "adversary-ca.pem"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await phone.communicate()
    assert phone.returncode == 1
    text = " ".join(errors.decode().split())
    assert "somebody is between phone and server, or --tls-trust is not the server's" in text
    assert "adversary-ca.pem" in text
    assert edge.logged() == []
