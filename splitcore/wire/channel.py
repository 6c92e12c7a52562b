"""How our processes open gRPC channels and servers: one place for the options, with their reasons."""

from __future__ import annotations

import ipaddress
from typing import Any

import grpc

MAX_MESSAGE_BYTES = 16 << 20
"""messages above this are refused; 16 MiB holds 64 latents of 256 KiB and bounds what a peer can make us keep"""

Options = list[tuple[str, Any]]


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a client's channel."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # grpcio's own backoff reaches seconds after a short outage; a phone wants to be back within one
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
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
    """Options of a server. Restarting on a port that was just in use is allowed; sharing one between two servers is not."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]


def aio_channel(target: str, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A clear-text channel of the running event loop."""
    return grpc.aio.insecure_channel(target, options=channel_options(max_message_bytes))


def sync_channel(target: str, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.Channel:
    """A clear-text channel for threads."""
    return grpc.insecure_channel(target, options=channel_options(max_message_bytes))


def split_address(address: str) -> tuple[str, int]:
    """('host', port) of 'host:port' or '[v6]:port'. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(f"expected an address host:port, got {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_local_or_private(host: str) -> bool:
    """Whether an address (not a name) is loopback, link-local or private."""
    address = ipaddress.ip_address(host)
    return address.is_loopback or address.is_private or address.is_link_local
