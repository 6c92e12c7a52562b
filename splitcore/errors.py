"""What can go wrong, by name. Every message says what was expected, what came instead, and what to do."""

from __future__ import annotations


class LatentbedError(Exception):
    """The root of every error that this project raises on purpose."""


class ArtefactError(LatentbedError):
    """A manifest or one of its files is missing, altered or does not fit its counterpart."""


class CodecError(LatentbedError):
    """A payload is not what the codec writes, or a latent cannot be encoded. Raised before memory is taken for it."""


class DataError(LatentbedError):
    """A data set is absent, incomplete or altered."""


class HandshakeError(LatentbedError):
    """Client and server do not hold the same artefact."""


class ScenarioError(LatentbedError):
    """A scenario or a recipe asks for something that cannot be."""


class TargetRefused(LatentbedError):  # noqa: N818 a refusal, not a failure
    """The adversary was pointed at an address that it may not attack."""


class SecurityError(LatentbedError):
    """A certificate, a key or a token is missing, unreadable, out of date, or not what it should be."""


class WireError(LatentbedError):
    """A message is not a well-formed frame. `frame_id` is the request's id where that could be read, else ''."""

    def __init__(self, message: str, *, frame_id: str = "") -> None:
        super().__init__(message)
        self.frame_id = frame_id
