"""`python -m adversary`: the man in the middle."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from adversary.node import run
from adversary.relay.interception import interception
from splitcore.errors import LatentbedError
from splitcore.node import new_event_loop
from splitcore.wire.certificates import LOCAL_NAMES
from splitcore.wire.channel import split_address
from splitcore.wire.tls import client_tls, server_tls


def main(
    upstream: Annotated[str, typer.Option(help="the server behind, host:port")],
    artefact: Annotated[Path, typer.Option(help="the split model under attack: shapes, codec, and the head for insiders")],
    state: Annotated[Path, typer.Option(help="folder for the ledger and what else must outlive the process")],
    listen: Annotated[str, typer.Option(help="where the client connects, host:port; port 0: any free one")] = "127.0.0.1:0",
    control: Annotated[str, typer.Option(help="control API, host:port")] = "127.0.0.1:0",
    token_file: Annotated[Path | None, typer.Option(help="the control API's token; made when missing. STATE/token")] = None,
    names: Annotated[str, typer.Option(help="more host names that the control API answers to, with commas")] = "",
    telemetry: Annotated[str | None, typer.Option(help="the collector, tcp://host:port")] = None,
    node: Annotated[str, typer.Option(help="this node's name in telemetry")] = "adversary",
    allow: Annotated[list[str] | None, typer.Option(help="a host outside private ranges that is yours to attack")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="data sets, for insiders", envvar="LATENTBED_DATA")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM: shown to clients, who then speak TLS with us")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM, of --tls-certificate")] = None,
    ca_certificate: Annotated[
        Path | None, typer.Option(help="PEM: instead, an authority that makes one for each name that clients ask for")
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(help="PEM, of --ca-certificate")] = None,
    tls_names: Annotated[str, typer.Option(help="of the one for clients that ask for no name, with commas")] = ",".join(
        LOCAL_NAMES
    ),
    upstream_trust: Annotated[
        Path | None, typer.Option(help="PEM: authorities of UPSTREAM; with it queries go over TLS")
    ] = None,
    upstream_certificate: Annotated[
        Path | None, typer.Option(help="PEM: for an upstream that wants one, a stolen one say")
    ] = None,
    upstream_key: Annotated[Path | None, typer.Option(help="PEM, of --upstream-certificate")] = None,
    upstream_name: Annotated[str | None, typer.Option(help="the name in the upstream's certificate; default: its host")] = None,
    control_certificate: Annotated[Path | None, typer.Option(help="PEM; with it the control API speaks TLS alone")] = None,
    control_key: Annotated[Path | None, typer.Option(help="PEM, of --control-certificate")] = None,
    trust: Annotated[
        list[str] | None, typer.Option(help="MODULE, or FILE.py, whose attacks `module:Class` may run here; repeatable")
    ] = None,
) -> None:
    """Relays every gRPC method between a client and UPSTREAM, and does to the frames what its behaviour says."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(
                run(
                    artefact=artefact, listen=listen, upstream=upstream, control=control, state=state,
                    token_file=token_file or state / "token", names=frozenset(filter(None, names.split(","))),
                    telemetry=telemetry, node=node, allow=frozenset(allow or ()), data_dir=data_dir,
                    trust=frozenset(trust or ()),
                    upstream_tls=client_tls(upstream_trust, upstream_certificate, upstream_key, upstream_name),
                    control_tls=server_tls(control_certificate, control_key),
                    intercepting=interception(
                        tls_certificate, tls_key, ca_certificate, ca_key,
                        [*filter(None, tls_names.split(",")), split_address(upstream)[0]],
                    ),
                )
            )  # fmt: skip
        except (LatentbedError, OSError, ValueError) as error:
            sys.exit(f"adversary: {error}")


if __name__ == "__main__":
    typer.run(main)
