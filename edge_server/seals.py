"""Sealed frames at the edge: what a stream or a call opens, and how its answers are sealed.

A stream's conversation ends with it. Calls of one client share one, kept here with the numbers that were used: the server's
salt for them changes after EPOCH_S, and all conversations under a salt go together with it, so that what is forgotten can
no longer be opened either. Only somebody with the key makes the server keep anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import grpc

from edge_server.refusal import Refused
from splitcore.errors import WireError
from splitcore.frame import Reply
from splitcore.wire import oip
from splitcore.wire.envelope import (
    CallConversation,
    Envelope,
    ServerStream,
    pack_call_hello_reply,
    unpack_envelope,
    unpack_hello,
)
from splitcore.wire.sealing import Keys, SealError, new_salt

EPOCH_S = 600.0
"""how long a salt for calls is handed out; what was sealed under it opens for as long again"""
MAX_CONVERSATIONS = 4096
"""under one salt; a further one changes it"""


def unauthenticated(frame_id: str = "") -> tuple[str, Refused]:
    """(id, refusal). The same words whatever was wrong: who guesses learns nothing from them."""
    return frame_id, Refused(
        grpc.StatusCode.UNAUTHENTICATED,
        "UNAUTHENTICATED",
        "expected a frame that was sealed for this place with this server's key",
    )


class NotOpened(Exception):  # noqa: N818 an answer, not a fault
    """A message that is not computed: its id where one can be read, and the refusal."""

    def __init__(self, frame_id: str, refusal: Refused) -> None:
        super().__init__(refusal.text)
        self.frame_id, self.refusal = frame_id, refusal


class StreamSeal:
    """One stream's end."""

    def __init__(self, key: bytes, required: bool) -> None:
        self._key, self._required = key, required
        self._conversation: ServerStream | None = None

    def greet(self, message: bytes) -> bytes | None:
        """The answer to a hello; None for any other message. A second hello is none. Raises NotOpened."""
        try:
            salt = unpack_hello(message) if self._conversation is None else None
        except WireError:
            raise NotOpened(*unauthenticated()) from None
        if salt is None:
            return None
        self._conversation = ServerStream(self._key, salt)
        return self._conversation.hello_reply

    def open(self, message: bytes) -> bytes:
        """The request in it; a message without a seal as it is, where none is required. Raises NotOpened."""
        conversation = self._conversation
        if conversation is None and not self._required and not _sealed(message):
            return message
        envelope = _envelope(message)
        try:
            if conversation is not None:
                return conversation.open(envelope)
        except SealError:
            pass
        raise NotOpened(*unauthenticated(envelope.id))

    def pack(self, reply: Reply) -> bytes:
        conversation = self._conversation
        return oip.pack_stream_reply(reply) if conversation is None else conversation.seal(reply)


@dataclass
class _Epoch:
    """Calls under one salt of the server's."""

    since_s: float
    salt: bytes = field(default_factory=new_salt)
    conversations: dict[bytes, CallConversation] = field(default_factory=dict)
    """by the client's salt"""


class Seals:
    """What a server with a key keeps."""

    def __init__(self, key: bytes, *, required: bool, now_s: Callable[[], float] = time.monotonic) -> None:
        self._key, self.required, self._now_s = key, required, now_s
        self._now, self._before = _Epoch(now_s()), _Epoch(now_s())

    def stream(self) -> StreamSeal:
        return StreamSeal(self._key, self.required)

    def greet(self, message: bytes) -> bytes | None:
        """The answer to a call that is a hello; None for any other message. Raises NotOpened."""
        try:
            salt = unpack_hello(message)
        except WireError:
            raise NotOpened(*unauthenticated()) from None
        if salt is None:
            return None
        return pack_call_hello_reply(self._key, salt, self._epoch().salt)

    def open(self, message: bytes) -> tuple[bytes, Callable[[Reply], bytes]]:
        """(the request in a call's message, how its answer is packed). Raises NotOpened."""
        if not self.required and not _sealed(message):
            return message, oip.pack_reply
        envelope = _envelope(message)
        self._epoch()
        for epoch in (self._now, self._before):
            known = epoch.conversations.get(envelope.salt)
            try:
                conversation = known or CallConversation(Keys.of(self._key, envelope.salt, epoch.salt, "call"))
                request = conversation.open(envelope)
            except SealError:
                continue
            epoch.conversations[envelope.salt] = conversation
            return request, partial(conversation.seal, envelope.number)
        raise NotOpened(*unauthenticated(envelope.id))

    def _epoch(self) -> _Epoch:
        """The present one; a salt is never taken back without what was opened under it."""
        now_s, now = self._now_s(), self._now
        if now_s - now.since_s > EPOCH_S or len(now.conversations) >= MAX_CONVERSATIONS:
            self._before = now if now_s - now.since_s <= 2 * EPOCH_S else _Epoch(now_s)
            self._now = _Epoch(now_s)
        return self._now


def _sealed(message: bytes) -> bool:
    try:
        return unpack_envelope(message) is not None
    except WireError:
        return True  # a broken seal is no reason to take it for a message without one


def _envelope(message: bytes) -> Envelope:
    """Raises NotOpened."""
    try:
        envelope = unpack_envelope(message)
    except WireError as error:
        raise NotOpened(*unauthenticated(error.frame_id)) from None
    if envelope is None:
        try:
            frame_id = oip.unpack_request(message).id  # so that whoever sent it knows which one was refused
        except WireError as error:
            frame_id = error.frame_id
        raise NotOpened(*unauthenticated(frame_id))
    return envelope
