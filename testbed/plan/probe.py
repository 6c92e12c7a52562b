"""A link measured through a live server: an empty call for the round trip, padded calls for the rate of the uplink.

The call is the protocol's `ServerLive`, which every server of the Open Inference Protocol answers in a few bytes without
computing. Its padding is an unknown field, which protobuf has every reader skip.
"""

from __future__ import annotations

import os
import time

import grpc
import numpy as np

from splitcore.errors import ScenarioError
from splitcore.link import LinkProfile
from splitcore.wire import oip
from splitcore.wire.channel import MAX_MESSAGE_BYTES, split_address, sync_channel

ROUNDS = 20
PADDED = 5
SMALL_BYTES = 0
FIRST_BYTES, MOST_BYTES = 32 << 10, MAX_MESSAGE_BYTES // 4
LONG_MS = 250.0
"""a padded call that takes so much longer than an empty one is long enough to tell the rate"""
TIMEOUT_S = 60.0


class Probe:
    """An open connection to a server. Raises ScenarioError where nobody answers."""

    def __init__(self, target: str) -> None:
        try:
            split_address(target)
        except ValueError as error:
            raise ScenarioError(f"a link is measured through a server's address: {error}") from error
        self.target = target
        self._channel = sync_channel(target)
        self._live = self._channel.unary_unary(oip.path(oip.LIVE))

    def close(self) -> None:
        self._channel.close()

    def call_ms(self, padding_bytes: int) -> float:
        message = oip.pack_padding(os.urandom(padding_bytes)) if padding_bytes else b""
        started = time.perf_counter_ns()
        try:
            self._live(message, timeout=TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ScenarioError(f"expected a server of the Open Inference Protocol at {self.target}, got {error}") from error
        return (time.perf_counter_ns() - started) / 1e6

    def round_trips_ms(self) -> list[float]:
        """Of empty calls; the one that opens the connection does not count."""
        self.call_ms(SMALL_BYTES)
        return [self.call_ms(SMALL_BYTES) for _ in range(ROUNDS)]

    def rate_up_kbps(self, round_trip_ms: float) -> float:
        """Of the uplink: bits over what a padded call takes longer than one of half the padding."""
        size = FIRST_BYTES
        # the connection's window grows with what it has seen pass, so sizes rise until a call is long
        while self.call_ms(size) < round_trip_ms + LONG_MS and size < MOST_BYTES:
            size *= 2
        whole, half = ([self.call_ms(part) for _ in range(PADDED)] for part in (size, size // 2))
        return rate_kbps(size - size // 2, float(np.median(whole)) - float(np.median(half)))


def rate_kbps(size_bytes: int, longer_ms: float) -> float:
    """Raises ScenarioError where more bytes took no longer."""
    if longer_ms <= 0:
        raise ScenarioError(f"{size_bytes} more bytes took {longer_ms:.2f} ms longer: the link is too unsteady to be measured")
    return 8 * size_bytes / longer_ms


def as_link(round_trips_ms: list[float], rate_up_kbps: float, floor_ms: float) -> LinkProfile:
    """The link's numbers from what was measured.

    Either direction is delay + J with J uniform on [0, jitter]: the shortest round trip is twice the delay, and the median of
    the sum of two J is the jitter. `floor_ms` is what such a call takes on loopback. The downlink is taken for as fast as the
    uplink: a reply has some hundred bytes, and their time is in the round trip already.
    """
    shortest, middle = min(round_trips_ms), float(np.median(round_trips_ms))
    return LinkProfile(
        rate_up_kbps=rate_up_kbps, rate_down_kbps=rate_up_kbps, delay_ms=max(0.0, shortest - floor_ms) / 2,
        jitter_ms=middle - shortest,
    )  # fmt: skip


def measured_link(target: str, floor_ms: float) -> LinkProfile:
    """What lies between here and the server. Raises ScenarioError."""
    probe = Probe(target)
    try:
        times = probe.round_trips_ms()
        return as_link(times, probe.rate_up_kbps(float(np.median(times))), floor_ms)
    finally:
        probe.close()


def floor_ms(target: str) -> float:
    """The shortest empty call, to a server on loopback."""
    probe = Probe(target)
    try:
        return min(probe.round_trips_ms())
    finally:
        probe.close()
