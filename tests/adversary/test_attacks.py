"""Every attack against the contract, and each against a closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flat import fallen
from tails import LinearTail, attack_all, clean_latents, identity, spec, taught, wire_spaces

from adversary.attacks import ATTACKS, Answers, Attack, Case
from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.nes import NES
from adversary.attacks.noise import Noise
from adversary.attacks.rays import RayS
from adversary.attacks.square import Square
from splitcore.codec import fit
from splitcore.journal import read
from splitcore.latent import F32, LatentSpec
from splitcore.threat import BALLS, Norm, ThreatModel

SHAPES = [(8, 4, 4), (3, 7, 14), (3, 14, 7), (1, 1, 1), (64, 1, 1), (256, 2, 3), (40,), (6, 10)]
CODECS = ["uniform8/channel", "identity", "uniform4/tensor+zstd", "float16"]
# every codec on a usual map, and every shape with one of them
SHAPES_AND_CODECS = [(SHAPES[0], codec) for codec in CODECS] + [(shape, CODECS[n % 4]) for n, shape in enumerate(SHAPES[1:])]
CASES = [(kind, norm) for kind in ATTACKS for norm in kind.norms]


def outcome_point(space_codec: str, shape: tuple[int, ...], payload: bytes) -> F32:
    return fit(space_codec, spec(shape)).decode([payload])[0]


@pytest.mark.parametrize(("shape", "codec_name"), SHAPES_AND_CODECS, ids=str)
@pytest.mark.parametrize(("kind", "norm"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_an_attack_ends_on_every_shape_within_its_budget_and_in_the_ball_after_decoding(
    kind: type[Attack], norm: Norm, shape: tuple[int, ...], codec_name: str, tmp_path: Path
) -> None:
    codec = fit(codec_name, spec(shape))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 3)
    threat = ThreatModel(norm=norm, eps=0.8, eps_unit="std", budget=157)
    outcomes = attack_all(tail, kind(), threat, dict(enumerate(wire_spaces(codec, latents))), tmp_path)
    assert sum(outcome.queries for outcome in outcomes.values()) == tail.rows
    for number, outcome in outcomes.items():
        assert outcome.error is None
        assert outcome.queries <= 157
        assert outcome.queries == sum(outcome.by_phase.values())
        if outcome.payload is not None:
            arrived = codec.decode([outcome.payload])
            ball = BALLS[norm](
                latents[number], 0.8 * (np.sqrt(codec.latent.elements) if norm == "l2" else 1), codec.lo, codec.hi
            )
            assert ball.contains(arrived)[0]
            assert outcome.distance == pytest.approx(ball.distance(arrived)[0], abs=1e-5)
        if outcome.success:
            assert outcome.payload is not None
            before, after = tail.scores(np.stack([latents[number], codec.decode([outcome.payload])[0]])).argmax(axis=1)
            assert before == outcome.label
            assert after == outcome.predicted != before


@pytest.mark.parametrize(("kind", "norm"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_sample_fares_alone_as_in_company(kind: type[Attack], norm: Norm, tmp_path: Path) -> None:
    # float32 sums depend on their order, and that on the batch: latents in steps of 1/32 and small integers sum exactly
    codec = fit("uniform8/channel", LatentSpec((8, 4, 4), (-4.0,) * 8, (-4 + 255 / 32,) * 8, 1.0))
    tail = LinearTail(codec)
    tail.W = np.rint(tail.W * 8).astype(np.float32)
    codec_spaces = wire_spaces(codec, clean_latents(codec, 8))
    threat = ThreatModel(norm=norm, eps=0.3, eps_unit="std", budget=200)
    attack = taught(tail, kind(), threat)
    together = attack_all(tail, attack, threat, dict(enumerate(codec_spaces)), tmp_path / "all", max_rows=37, in_flight=3)
    for number in (0, 5):
        alone = attack_all(tail, attack, threat, {number: codec_spaces[number]}, tmp_path / str(number))[number]
        company = together[number]
        assert (alone.queries, alone.payload, alone.by_phase) == (company.queries, company.payload, company.by_phase)


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(Square(), "linf"), (NES(), "linf"), (HopSkipJump(), "l2"), (RayS(), "linf")],
    ids=["square", "nes", "hsj", "rays"],
)
def test_an_attack_beats_noise_in_the_same_ball(attack: Attack, norm: Norm, tmp_path: Path) -> None:
    codec = fit("uniform8/channel", spec((8, 4, 4)))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 60)
    spaces = dict(enumerate(wire_spaces(codec, latents)))
    threat = ThreatModel(norm=norm, eps=0.15, eps_unit="std", budget=500)
    found = attack_all(tail, attack, threat, spaces, tmp_path / "attack")
    blind = attack_all(tail, Noise(), threat, spaces, tmp_path / "noise")
    clean = tail.scores(latents).argmax(axis=1)
    arrived = codec.decode([outcome.payload or b"" for _, outcome in sorted(blind.items())])
    fell_to_noise = int((tail.scores(arrived).argmax(axis=1) != clean).sum())
    fell = sum(outcome.success for outcome in found.values())
    assert fell >= 2 * fell_to_noise + 10


def test_hopskipjump_reaches_the_closed_form_distance_of_a_linear_tail(tmp_path: Path) -> None:
    # just outside the closed form: reached only by a search that comes this near
    assert fallen(HopSkipJump(), "l2", tmp_path, within=1.06, budget=6000, n=12) >= 10


def test_square_nes_and_rays_reach_the_closed_form_margin_of_a_linear_tail(tmp_path: Path) -> None:
    """In linf, the least eps that turns class y into j on z·W is (f_y - f_j) / ‖w_y - w_j‖₁."""
    for attack in (Square(), NES(), RayS()):
        assert fallen(attack, "linf", tmp_path / str(attack.kind), within=1.15, budget=3000, n=12) >= 11


def test_the_gradient_that_nes_estimates_points_along_the_true_one() -> None:
    """On a linear loss the expected estimate is the gradient; 4,000 mirrored probes come within a few degrees."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4, 3, 3)).astype(np.float32)
    w = rng.standard_normal((4, 3, 3)).astype(np.float32)
    codec = identity((4, 3, 3))
    space = wire_spaces(codec, z[None])[0]
    ball = BALLS["linf"](z, 1.0, space.lo, space.hi)
    search = NES(samples=4000, momentum=0.0).perturb(z, Case(ball=ball, space=space, budget=10_000, rng=rng))
    probes = next(search)
    assert probes.phase == "probe"
    losses = np.tensordot(probes.points, w, axes=3).astype(np.float32)
    k = len(losses)
    step = search.send(
        Answers(losses, np.zeros(k, bool), probes.points, np.zeros(k, np.float32), np.ones(k, bool), np.zeros(k, bool))
    )
    moved = (step.points[0] - z).ravel()
    agreement = (np.sign(moved) == -np.sign(w.ravel())).mean()
    assert agreement > 0.95


def test_the_ledger_names_each_sessions_rows_by_phase(tmp_path: Path) -> None:
    codec = fit("uniform8/channel", spec((8, 4, 4)))
    tail = LinearTail(codec)
    spaces = dict(enumerate(wire_spaces(codec, clean_latents(codec, 5))))
    threat = ThreatModel(norm="l2", eps=0.05, eps_unit="std", budget=400)
    outcomes = attack_all(tail, HopSkipJump(), threat, spaces, tmp_path, max_rows=33)
    booked: dict[tuple[str, str], int] = {}
    for row in read(tmp_path / "queries.jsonl"):
        for frame, phase, rows in row.get("asks", []):
            booked[frame, phase] = booked.get((frame, phase), 0) + rows
    claimed = {(outcome.frame, phase): n for outcome in outcomes.values() for phase, n in outcome.by_phase.items()}
    assert booked == claimed
