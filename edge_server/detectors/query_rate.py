"""A client that asks for much more than it used to: a cumulative sum of log-likelihood ratios over its rows.

Page, "Continuous inspection schemes", Biometrika 41 (1954), for a Poisson process: with the usual rate λ and the rate f·λ that
is to be noticed, n rows after t seconds add n·ln f - (f - 1)·λ·t to the sum, which never falls below 0; above the threshold the
client is detected. The mean time to a false alarm of a Poisson client is at least e^threshold rows (Lorden, 1971). It is a
leaky bucket whose leak and depth follow from what shall be noticed and how rarely it may err.

A client is who the server says it is: a host, or an identity that was proved. A man in the middle asks from the phone's own
host or with the phone's own token, and then the phone's frames are refused with the queries: that is this detector's price.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edge_server.detectors.base import Action, Asked, Detector
from splitcore.latent import F32, LatentSpec


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class QueryRate:
    sees: ClassVar[str] = "a client that asks for many more rows than it used to"

    kind: Literal["query_rate"] = "query_rate"
    action: Action = "reject"
    rows_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """λ: what a client usually asks; None: learned from each client's first `learn_s` seconds, in which nothing is detected"""
    learn_s: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    factor: Annotated[float, Field(gt=1, le=1000)] = 3.0
    """f: how many times the usual rate is to be noticed"""
    threshold: Annotated[float, Field(gt=0, le=1000)] = 12.0
    """nats; a Poisson client is falsely detected once in e^threshold rows or less often"""
    burst: Annotated[int, Field(ge=0, le=1_000_000)] = 16
    """rows that may come at once besides, as a client's own messages have them"""
    recover_s: Annotated[float, Field(ge=0, le=86_400)] = 5.0
    """seconds of silence after which a detected client is let in again at the latest"""
    max_clients: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """clients that are remembered, those that asked last"""

    def for_model(self, latent: LatentSpec) -> Detector:
        return _Watch(self)


@plain_dataclass(slots=True)
class _Client:
    first_ns: int
    last_ns: int
    rows: int = 0
    usual: float = 0.0
    """λ, rows a second; 0: still learned"""
    total: float = 0.0
    """the cumulative sum"""


class _Watch:
    def __init__(self, config: QueryRate) -> None:
        self._config = config
        self._log_f = math.log(config.factor)
        self._limit = config.threshold + config.burst * self._log_f
        self.forget()

    def forget(self) -> None:
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def look(self, latents: F32, requests: Sequence[Asked]) -> dict[int, str]:
        detected, at = dict[int, str](), 0
        for request in requests:
            why = self._arrives(request)
            if why:
                detected.update(dict.fromkeys(range(at, at + request.rows), why))
            at += request.rows
        return detected

    def _arrives(self, request: Asked) -> str:
        config, now_ns = self._config, request.received_ns
        client = self._clients.get(request.client)
        if client is None:
            client = self._clients[request.client] = _Client(now_ns, now_ns, usual=config.rows_per_s or 0.0)
            if len(self._clients) > config.max_clients:
                self._clients.popitem(last=False)
        else:
            self._clients.move_to_end(request.client)
        passed_s = max(0, now_ns - client.last_ns) / 1e9  # streams may overtake one another
        client.last_ns = max(client.last_ns, now_ns)
        if not client.usual:
            learned_s = (now_ns - client.first_ns) / 1e9
            if learned_s < config.learn_s:
                client.rows += request.rows
                return ""
            client.usual = max(client.rows, 1) / config.learn_s
        leak = (config.factor - 1) * client.usual
        client.total = max(0.0, client.total - leak * passed_s) + request.rows * self._log_f
        if client.total <= self._limit:
            return ""
        client.total = min(client.total, self._limit + leak * config.recover_s)
        return f"{client.total:.1f} nats above {client.usual:.3g} rows/s"
