"""Sealed messages: AES-256-GCM under keys of one conversation, with a counter each way.

Two ends that share a key each give a random salt when a conversation begins. HKDF-SHA-256 (RFC 5869) makes of key and both
salts one key for either direction, so nothing of another conversation, nor of the other direction, opens here: a recorded
conversation replayed meets another salt of the server's. Within one, the message's number is the nonce; a number that is not
higher than all before is refused, so nothing is replayed or put in another order. What is missing is not noticed here: a
request that was taken away has no answer, and a party that waits for it sees that.

Calls have no order on the wire: for them `Window` takes each number once, within WINDOW of the highest.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import struct
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from splitcore.errors import LatentbedError, SecurityError

KEY_BYTES, SALT_BYTES, TAG_BYTES = 32, 16, 16
KEY_VARIABLE = "LATENTBED_SEAL_KEY"
"""environment: the key as text, where no file is named"""
LAST = (1 << 48) - 1
"""messages of one conversation at most, far below what one key of AES-GCM is good for"""
WINDOW = 1024
"""calls at once at most, and how far behind the highest number one may come"""


class SealError(LatentbedError):
    """A message was not sealed by the other end of this conversation, or has been here before. Does not say which."""


def make_key(path: Path) -> None:
    """A new random key in a new file, readable by its owner alone. Raises SecurityError where the file is there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise SecurityError(f"expected no file {path}, there is one: remove it, or name another") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")


def load_key(path: Path | None) -> bytes | None:
    """The key in a file, else in the environment, else None. Raises SecurityError."""
    if path is not None:
        try:
            text, where = path.read_text(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise SecurityError(f"expected the key of sealed frames in {path}: {error}") from error
    elif KEY_VARIABLE in os.environ:
        text, where = os.environ[KEY_VARIABLE], KEY_VARIABLE
    else:
        return None
    text = text.strip()
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise SecurityError(
            f"expected {KEY_BYTES} bytes as {2 * KEY_BYTES} hexadecimal digits or in base64 in {where}, got {len(text)} "
            "characters that are neither: `latentbed seal-key FILE` makes one"
        )
    return key


def new_salt() -> bytes:
    return secrets.token_bytes(SALT_BYTES)


def about(*parts: str | int) -> bytes:
    """What a seal vouches for besides its content: unambiguous, whatever the parts are."""
    out = bytearray()
    for part in parts:
        text = str(part).encode()
        out += struct.pack("<I", len(text)) + text
    return bytes(out)


class Sealer:
    """One direction's sending end."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0

    def seal(self, content: bytes, about: bytes) -> tuple[int, bytes]:
        """(the message's number, the sealed content)."""
        if self._number >= LAST:
            raise SealError("expected a new conversation after 2^48 messages")
        self._number += 1
        return self._number, self.seal_as(self._number, content, about)

    def seal_as(self, number: int, content: bytes, about: bytes) -> bytes:
        """Under a number that the caller never uses twice: a call's answer has the call's."""
        return self._cipher.encrypt(_nonce(number), content, about)


class Opener:
    """One direction's receiving end; numbers go up."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._highest = 0

    def open(self, number: int, sealed: bytes, about: bytes) -> bytes:
        """Raises SealError, and is as it was then."""
        if not self._fresh(number):
            raise SealError("not sealed for this place")
        content = self.open_as(number, sealed, about)
        self._took(number)
        return content

    def open_as(self, number: int, sealed: bytes, about: bytes) -> bytes:
        """What has this number, however often. Raises SealError."""
        try:
            return self._cipher.decrypt(_nonce(number), sealed, about)
        except (InvalidTag, ValueError, OverflowError) as error:
            raise SealError("not sealed for this place") from error

    def _fresh(self, number: int) -> bool:
        return self._highest < number <= LAST

    def _took(self, number: int) -> None:
        self._highest = number


class Window(Opener):
    """A receiving end for messages that come in any order, each number once."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self._seen = 0
        """bit n: the number `highest - n` was here"""

    def _fresh(self, number: int) -> bool:
        behind = self._highest - number
        return 0 < number <= LAST and (behind < 0 or (behind < WINDOW and not self._seen >> behind & 1))

    def _took(self, number: int) -> None:
        behind = self._highest - number
        if behind < 0:
            # a number far ahead shifts everything out: no need to make an integer of that many bits first
            self._seen = (self._seen << -behind if -behind < WINDOW else 0) & ((1 << WINDOW) - 1) | 1
            self._highest = number
        else:
            self._seen |= 1 << behind


@dataclass(frozen=True)
class Keys:
    """Of one conversation."""

    up: bytes = field(repr=False)
    """from the client to the server"""
    down: bytes = field(repr=False)

    @classmethod
    def of(cls, key: bytes, client_salt: bytes, server_salt: bytes, kind: str) -> Keys:
        """`kind`: stream or call, so that neither opens what was sealed for the other."""
        if len(client_salt) != SALT_BYTES or len(server_salt) != SALT_BYTES:
            raise SealError(f"expected salts of {SALT_BYTES} bytes, got {len(client_salt)} and {len(server_salt)}")
        info = f"latentbed sealed {kind} 1".encode()
        both = HKDF(algorithm=SHA256(), length=2 * KEY_BYTES, salt=client_salt + server_salt, info=info).derive(key)
        return cls(both[:KEY_BYTES], both[KEY_BYTES:])


def _nonce(number: int) -> bytes:
    return struct.pack(">IQ", 0, number)
