"""What stands between the frames and the adversary in a run: certificates and keys made for it, and the nodes' options.

They lie in the run directory, readable by its owner alone, and are made once: a run that goes on uses those that it began with.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from splitcore.wire.certificates import write_set
from splitcore.wire.sealing import load_key, make_key
from splitcore.wire.tls import ClientTls

Level: TypeAlias = Literal["clear", "tls-evil-ca", "mtls", "sealed"]

PROTECTS: dict[Level, str] = {
    "clear": "nothing: the adversary reads and changes every byte",
    "tls-evil-ca": "TLS, but the adversary owns an authority that the phone trusts: it reads and changes every byte",
    "mtls": "TLS with certificates of both ends: the adversary passes bytes that it cannot read",
    "sealed": "AES-256-GCM over each frame and each answer, on a clear link: the adversary sees ids, sizes and times",
}


class Security(BaseModel):
    """What protects the frames, where the testbed starts the nodes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: Level = "clear"
    tokens: bool = False
    """the edge answers only to a token; the phone has one, and says it with each call"""
    price_frames: Annotated[int, Field(ge=0, le=100_000)] = 256
    """sent one by one, protected and not, straight to the edge, to measure what protection costs; 0: not measured"""


@dataclass(frozen=True)
class Arming:
    """Options of the nodes, and what whoever measures them needs."""

    edge: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    adversary: tuple[str, ...] = ()
    tls: ClientTls | None = None
    seal_key: bytes | None = None
    token: str | None = None


def arm(security: Security, folder: Path) -> Arming:
    """Makes what is missing in `folder`. Raises SecurityError."""
    edge: list[str] = []
    client: list[str] = []
    adversary: list[str] = []
    tls, key, token = None, None, None
    if security.level != "clear" or security.tokens:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if security.level in ("tls-evil-ca", "mtls"):
        if not (folder / "ca.key").exists():
            write_set(folder)
        edge += ["--tls-certificate", str(folder / "server.pem"), "--tls-key", str(folder / "server.key")]
        # whose certificates they are is no secret: the adversary knows it too
        adversary += ["--upstream-trust", str(folder / "ca.pem")]
        if security.level == "mtls":
            tls = ClientTls(trust=folder / "ca.pem", certificate=folder / "client.pem", key=folder / "client.key")
            edge += ["--client-trust", str(folder / "ca.pem")]
            client += ["--tls-certificate", str(folder / "client.pem"), "--tls-key", str(folder / "client.key")]
        else:
            tls = ClientTls(trust=folder / "phone-trust.pem")
            adversary += ["--ca-certificate", str(folder / "adversary-ca.pem"), "--ca-key", str(folder / "adversary-ca.key")]
        client += ["--tls-trust", str(tls.trust)]
    if security.level == "sealed":
        path = folder / "seal.key"
        if not path.exists():
            make_key(path)
        key = load_key(path)
        edge += ["--seal-key-file", str(path), "--require-seal"]
        client += ["--seal-key-file", str(path)]
    if security.tokens:
        token = _token(folder)
        edge += ["--tokens", str(folder / "tokens.json")]
        client += ["--access-token-file", str(folder / "token")]
    return Arming(tuple(edge), tuple(client), tuple(adversary), tls, key, token)


def _token(folder: Path) -> str:
    """The phone's, in `token`; its hash is in `tokens.json`."""
    path = folder / "token"
    if not path.exists():
        text = secrets.token_urlsafe(24)
        entry = {"name": "phone", "sha256": hashlib.sha256(text.encode()).hexdigest()}
        (folder / "tokens.json").write_text(json.dumps([entry]) + "\n")
        # the last one: where it is, its hash is too
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
    return path.read_text().strip()
