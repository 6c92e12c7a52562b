"""What a foreign server counted by itself: the other end of the books, where there is no log.

By ModelStatistics (Triton, OpenVINO, our own edge), or by Prometheus metrics: Triton's names, or MLServer's, whose runtime in
examples/mlserver counts rows too.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from splitcore.errors import LatentbedError
from splitcore.wire.channel import sync_channel
from splitcore.wire.look import counted

REQUESTS = ("nv_inference_request_success_total", "nv_inference_request_success", "model_infer_request_success_total")
ROWS = ("nv_inference_count_total", "nv_inference_count", "rows_total")
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Counts:
    """Since the server started; None: it does not say."""

    requests: int | None = None
    """answered"""
    rows: int | None = None

    def since(self, before: Counts) -> Counts:
        return Counts(_less(self.requests, before.requests), _less(self.rows, before.rows))


def counts(target: str, model: str, metrics: str | None) -> Counts:
    """Raises LatentbedError where metrics were named and are not there."""
    return _by_statistics(target, model) if metrics is None else _by_metrics(metrics, model)


def _by_statistics(target: str, model: str) -> Counts:
    with sync_channel(target) as channel:
        said = counted(channel, model)
    return Counts() if said is None else Counts(*said)


def _by_metrics(url: str, model: str) -> Counts:
    try:
        text = httpx.get(url, timeout=TIMEOUT_S, trust_env=False).raise_for_status().text
    except httpx.HTTPError as error:
        raise LatentbedError(f"expected Prometheus metrics at {url}, got {error!r}") from error
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if model in (sample.labels.get("model"), sample.labels.get("model_name")):
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    # a counter that nothing has moved yet is not there
    requests = next((totals[name] for name in REQUESTS if name in totals), 0.0)
    rows = next((totals[name] for name in ROWS if name in totals), None)
    return Counts(int(requests), None if rows is None else int(rows))


def _less(now: int | None, before: int | None) -> int | None:
    return None if now is None else now - (before or 0)
