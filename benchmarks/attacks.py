"""The attack engine against a live edge server, beside what that server can answer at all. `make bench-attacks`.

One run, ratios: the raw capacity is measured before and after each attack with requests of as many rows as the attack's own
mean, as many in flight, from a client that does nothing else. The machine's other load cancels; absolute rows per second do not
mean much elsewhere. Writes benchmarks/results/attacks.json.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from adversary.attacks import Attack
from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.nes import NES
from adversary.attacks.square import Square
from adversary.campaign import Campaign
from adversary.ledger import Ledger
from adversary.oracle import LiveOracle
from adversary.session import Outcome, Session
from adversary.space import WireSpace
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.data import load
from splitcore.frame import Frame, Reply
from splitcore.head import Head
from splitcore.nn.export import export
from splitcore.nn.recipe import load_recipe
from splitcore.nn.training import train
from splitcore.threat import Norm, ThreatModel
from testbed.nodes import Process

ROOT = Path(__file__).resolve().parents[1]
SAMPLES, BUDGET, IN_FLIGHT = 64, 1000, 4
CASES: list[tuple[Attack, Norm]] = [(Square(), "linf"), (NES(), "linf"), (HopSkipJump(), "l2")]


def capacity(target: str, codec: Codec, payloads: list[bytes], rows: int, seconds: float = 1.5) -> float:
    """Rows per second of a client that keeps IN_FLIGHT requests of `rows` rows on their way and looks at nothing."""
    oracle = LiveOracle(target)
    stack = tuple((payloads * (-(-rows // len(payloads))))[:rows])
    slots, answered, start = threading.Semaphore(IN_FLIGHT), 0, time.perf_counter()

    def done(reply: Reply | Exception) -> None:
        nonlocal answered
        assert isinstance(reply, Reply) and reply.error is None, reply
        answered += rows
        slots.release()

    number = 0
    while time.perf_counter() - start < seconds:
        slots.acquire()
        oracle.ask(Frame(id=f"bench/raw/{number}", payloads=stack, codec=codec.name, shape=codec.latent.shape), done)
        number += 1
    for _ in range(IN_FLIGHT):
        slots.acquire()
    rate = answered / (time.perf_counter() - start)
    oracle.close()
    return rate


def attack_all(target: str, attack: Attack, norm: Norm, codec: Codec, payloads: list[bytes], std: float, folder: Path):
    """(wall seconds, rows, requests, successes) of one campaign over all samples."""
    ledger = Ledger(folder / f"{attack.kind}.jsonl")
    campaign = Campaign(LiveOracle(target), ledger, run=f"bench-{attack.kind}", nonce="0", in_flight=IN_FLIGHT)
    outcomes: list[Outcome] = []
    finished = threading.Semaphore(0)

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        finished.release()

    threat = ThreatModel(norm=norm, eps=0.5, eps_unit="std", budget=BUDGET)
    start = time.perf_counter()
    for number, payload in enumerate(payloads):
        space = WireSpace(payload, codec, std)
        campaign.submit(Session(f"bench/c/{number}", space, attack, threat, rng=np.random.default_rng([0, number])), done)
    for _ in payloads:
        finished.acquire()
    wall = time.perf_counter() - start
    rows, requests = ledger.counts["query"], ledger.counts["answered"]
    campaign.close()
    ledger.close()
    return wall, rows, requests, sum(outcome.success for outcome in outcomes)


def main() -> None:
    console = Console(width=110)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = load_recipe(ROOT / "recipes" / "digits.yaml")
        export(train(recipe, progress=False, device="cpu"), recipe, load("digits", "test"), folder / "artefact")
        artefact = Artefact(folder / "artefact")
        codec = fit(artefact.manifest.codec, artefact.latent)
        payloads = codec.encode(Head(artefact).from_uint8(artefact.samples[0][:SAMPLES]))
        edge = Process("edge_server", folder / "edge", ["--artefact", str(folder / "artefact"), "--max-batch-size", "256"])
        try:
            target = edge.wait_ready()["grpc"]
            capacity(target, codec, payloads, 64)  # first requests grow buffers
            table = Table(box=None, header_style="bold", title=f"{SAMPLES} samples, budget {BUDGET}, digits tail, {codec.name}")
            for column in ("attack", "fell", "rows", "rows a request", "wall s", "rows/s", "raw rows/s", "of raw"):
                table.add_column(column, justify="left" if column == "attack" else "right")
            for attack, norm in CASES:
                wall, rows, requests, fell = attack_all(target, attack, norm, codec, payloads, artefact.latent.std, folder)
                a_request = max(1, round(rows / requests))
                raw = max(capacity(target, codec, payloads, a_request), capacity(target, codec, payloads, a_request))
                share = rows / wall / raw
                table.add_row(attack.kind, f"{fell} of {SAMPLES}", f"{rows:,}", str(a_request), f"{wall:.2f}",
                              f"{rows / wall:,.0f}", f"{raw:,.0f}", f"{share:.0%}")  # fmt: skip
                results.append(
                    {"name": f"{attack.kind} rows/s of raw capacity", "value": round(share, 3), "unit": "ratio",
                     "bar": None, "better": "higher"}
                )  # fmt: skip
            console.print(table)
        finally:
            edge.stop()
    out = ROOT / "benchmarks" / "results" / "attacks.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
