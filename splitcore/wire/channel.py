"""How our processes open gRPC channels and servers: one place for the options, with their reasons."""

from __future__ import annotations

import ipaddress
from typing import Any

import grpc

from splitcore.wire.tls import ClientTls, ServerTls

MAX_MESSAGE_BYTES = 16 << 20
"""messages above this are refused; 16 MiB holds 64 latents of 256 KiB and bounds what a peer can make us keep"""

PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))

MAX_CALLS = 128
"""calls at once on one connection; further ones wait at the client"""
MAX_SERVER_CALLS = 4096
"""calls at once at one server, an open stream being one: a fleet's; further ones are refused. No client has them all"""
MAX_CONNECTIONS = 16384
"""connections at once at one server; further ones are closed, and descriptors are left for journals and control plane"""

Options = list[tuple[str, Any]]


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a client's channel."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # grpcio's own backoff reaches seconds after a short outage; a phone wants to be back within one
        ("grpc.initial_reconnect_backoff_ms", 100),
        # this one is also the time that one attempt may take, handshakes included: a slow link needs more than its backoff
        ("grpc.min_reconnect_backoff_ms", 5000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # NAT and radio drop idle connections without a word
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # no proxy of the environment: the path between the nodes is what is measured
        ("grpc.enable_http_proxy", 0),
        # two channels to one address are two connections, not one shared below
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a server. A port that was just in use can be taken again, but not shared by two servers."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
        # more calls of one connection wait at the client: what they carry is in memory before any queue can refuse it
        ("grpc.max_concurrent_streams", MAX_CALLS),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        # calls that come faster than they are taken wait: above 1000 gRPC's core would cancel some at random, without a word
        ("grpc.server.max_pending_requests", 2 * MAX_SERVER_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 4 * MAX_SERVER_CALLS),
        # who connects and says nothing has no place here; grpcio gives them two minutes
        ("grpc.server_handshake_timeout_ms", 10_000),
        # a connection without a call goes after a while, and a client with one to make opens another
        ("grpc.max_connection_idle_ms", 600_000),
        # a phone that went away without a word is noticed in a minute, not in grpcio's two hours
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def aio_channel(target: str, max_message_bytes: int = MAX_MESSAGE_BYTES, *, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """A channel of the running event loop, in clear text without `tls`."""
    options = channel_options(max_message_bytes)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, tls.credentials(), options=[*options, *tls.options])


def sync_channel(target: str, max_message_bytes: int = MAX_MESSAGE_BYTES, *, tls: ClientTls | None = None) -> grpc.Channel:
    """A channel for threads, in clear text without `tls`."""
    options = channel_options(max_message_bytes)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, tls.credentials(), options=[*options, *tls.options])


def add_port(server: grpc.aio.Server, address: str, tls: ServerTls | None = None) -> int:
    """Listens on `address`, in clear text without `tls`; the port that was bound. Raises RuntimeError when it is taken."""
    if tls is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, tls.credentials()))


def split_address(address: str) -> tuple[str, int]:
    """('host', port) of 'host:port' or '[v6]:port'. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    well_formed = colon and host and bracketed == (":" in host) and not set(host) & set("[]/@ ")
    if not well_formed or not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"expected an address host:port or [v6]:port, got {address[:120]!r}")
    return host, int(port)


def is_local_or_private(host: str) -> bool:
    """Whether an address (not a name) is loopback, link-local or private (RFC 1918, RFC 4193). Raises ValueError."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        # ::ffff:8.8.8.8 reaches 8.8.8.8, and older Pythons call it private
        address = address.ipv4_mapped or address
    return address.is_loopback or address.is_link_local or any(address in network for network in PRIVATE)
