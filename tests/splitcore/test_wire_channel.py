"""Addresses: what they look like, and which ones are near enough to be attacked."""

from __future__ import annotations

import pytest

from splitcore.wire.channel import is_local_or_private, split_address


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("edge_server:0", ("edge_server", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    ["", ":", "a", "a:", ":1", "::1", "::1:80", "[::1]", "[::1:80", "::1]:80", "[a]:1", "a:65536", "a:-1", "a:١", "a:1x",
     "a:" + "1" * 5000, "http://a:1", "u@a:1", "a b:1", "[]:1"],
)  # fmt: skip
def test_anything_else_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected an address host:port"):
        split_address(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.0.1", "fe80::1",
     "fd00::1", "::ffff:127.0.0.1", "::ffff:10.1.1.1"],
)  # fmt: skip
def test_loopback_link_local_and_private_addresses_are_near(host: str) -> None:
    assert is_local_or_private(host)


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "172.32.0.1", "172.15.0.1", "192.169.0.1", "100.64.0.1", "0.0.0.0", "255.255.255.255", "2001:db8::1",
     "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "::", "2002:808:808::1"],
)  # fmt: skip
def test_everything_else_is_far(host: str) -> None:
    assert not is_local_or_private(host)


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="localhost"):
        is_local_or_private("localhost")
