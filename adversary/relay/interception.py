"""TLS that ends at the relay: a certificate that the client believes, and a connection of the relay's own behind it.

Either the certificate is given, a server's own that was stolen say, or it is made for each name that a client asks for, by an
authority that the client believes (RFC 6066, server name indication). One that asks for no name, because it dials an address,
gets one for the names and addresses that the relay was told.
"""

from __future__ import annotations

import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from splitcore.errors import SecurityError
from splitcore.wire.certificates import Authority
from splitcore.wire.tls import ALPN, ServerTls, server_tls

MAX_NAMES = 256
"""for which certificates are kept; the one asked for longest ago goes first"""


class Interception:
    """What the relay shows its clients."""

    def __init__(self, shown: ServerTls | Authority, hosts: Sequence[str]) -> None:
        """`hosts`: of the certificate for clients that ask for no name, where certificates are made here."""
        self._authority = shown if isinstance(shown, Authority) else None
        self._made: OrderedDict[str, ssl.SSLContext] = OrderedDict()
        self.context = shown.context([ALPN]) if isinstance(shown, ServerTls) else self._for(hosts)
        """for the listening socket"""
        if self._authority is not None:
            self.context.sni_callback = self._named

    def name_of(self, connection: ssl.SSLObject | None) -> str | None:
        """Which server the client asked for."""
        context = None if connection is None else connection.context
        return next((name for name, made in self._made.items() if made is context), None)

    def _named(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        if name is None:
            return None
        try:
            if name not in self._made:
                self._made[name] = self._for([name])
                if len(self._made) > MAX_NAMES:
                    self._made.popitem(last=False)
        except ValueError:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        self._made.move_to_end(name)
        connection.context = self._made[name]
        return None

    def _for(self, hosts: Sequence[str]) -> ssl.SSLContext:
        assert self._authority is not None
        pair = self._authority.issue(hosts[0], hosts)
        with tempfile.TemporaryDirectory() as folder:  # ssl takes files alone
            pair.write(Path(folder), "leaf")
            leaf = ServerTls(certificate=Path(folder, "leaf.pem"), key=Path(folder, "leaf.key"))
            return leaf.context([ALPN])


def interception(
    certificate: Path | None, key: Path | None, ca_certificate: Path | None, ca_key: Path | None, hosts: Sequence[str]
) -> Interception | None:
    """What the relay's options say; None: it ends no TLS, and passes it as it is. Raises SecurityError."""
    if ca_certificate is None and ca_key is None:
        shown = server_tls(certificate, key)
        return None if shown is None else Interception(shown, hosts)
    if certificate is not None or key is not None:
        raise SecurityError("expected a certificate to show or an authority to make them, got both: leave out one pair")
    if ca_certificate is None or ca_key is None:
        raise SecurityError("expected an authority's certificate and its key, got no --ca-certificate or no --ca-key")
    return Interception(Authority.read(ca_certificate, ca_key), hosts)
