"""Whom the adversary may talk to: loopback and private addresses, and names that were allowed by name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from splitcore.errors import TargetRefused
from splitcore.wire.channel import is_local_or_private, split_address


def check_target(address: str, allowed: Collection[str] = ()) -> str:
    """`address` host:port when it may be attacked. Raises TargetRefused, ValueError.

    A name is allowed when all it resolves to is loopback or private, or when it stands in `allowed` itself.
    """
    host, port = split_address(address)
    if host in allowed:
        return address
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise TargetRefused(f"expected an address that resolves, got {host!r}: {error.strerror}") from error
    outside = sorted(ip for ip in found if not is_local_or_private(str(ipaddress.ip_address(ip))))
    if outside:
        raise TargetRefused(
            f"expected a loopback or private address, got {host!r} ({', '.join(outside)}): attack only what is yours; "
            f"if it is, say --allow {host}"
        )
    return address
