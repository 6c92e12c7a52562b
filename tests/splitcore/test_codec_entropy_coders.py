"""Two coders of one bitstream, numpy's and constriction's: what they write and what they make of any bytes is the same."""

from __future__ import annotations

import copy
import os
from itertools import pairwise

import numpy as np
import pytest

from splitcore.codec import fit, rans_constriction
from splitcore.codec.entropy import Entropy, EntropyCodec
from splitcore.codec.prior import Prior
from splitcore.codec.rans import Rans
from splitcore.codec.rans_constriction import Constriction, fastest
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

constriction = pytest.importorskip("constriction")

MUTATIONS = int(os.environ.get("LATENTBED_MUTATIONS", "150"))
"""payloads a shape; 10,000 take ten minutes for all"""
RNG = np.random.default_rng(0)


def cdf_of(masses: np.ndarray) -> tuple[int, ...]:
    return Prior.of([masses], [0], [1.0]).cdf[0]


TABLES = {
    "even": cdf_of(np.ones(63)),
    "one symbol": cdf_of(np.ones(1)),
    "as skewed as can be": (0, 65535, 65536),
    "skewed the other way": (0, 1, 65536),
    "bell": cdf_of(np.exp(-(np.linspace(-6, 6, 301) ** 2))),
    "the longest": cdf_of(RNG.uniform(0, 1, 4096) ** 20),
    "all of one but one": (*range(4097), 65536),
    "uneven": cdf_of(RNG.uniform(0, 1, 1000) ** 3),
}


@pytest.mark.parametrize("table", TABLES)
def test_constriction_has_the_very_intervals_of_our_tables(table: str) -> None:
    cdf = TABLES[table]
    model = fastest(Rans((cdf,), np.zeros(1, np.int64)))._models[0]
    for place, (start, stop) in enumerate(pairwise(cdf)):
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(place, model)
        assert coder.pos() == (0, 256 * start)  # from x = 0
        coder = constriction.stream.stack.AnsCoder()
        coder.seek(0, 256 * (stop - start))
        coder.encode_reverse(place, model)
        assert coder.pos() == (0, (1 << 24) + 256 * start)  # from x = f


def codec_and_twin(shape: tuple[int, ...], scale: float) -> tuple[EntropyCodec, EntropyCodec, F32]:
    """constriction's, numpy's, and latents of which some symbols are escaped."""
    rng = np.random.default_rng(sum(shape))
    widths = scale * rng.uniform(0.2, 2, (shape[0], *[1] * (len(shape) - 1)))
    known, latents = ((rng.laplace(size=(k, *shape)) * widths).astype(np.float32) for k in (1, 6))
    prior = Prior.counted(known, [1.0] * shape[0])
    codec = fit(Entropy(), LatentSpec(shape, (-1.0,) * shape[0], (1.0,) * shape[0], 1.0, prior))
    assert isinstance(codec, EntropyCodec) and isinstance(codec._coder, Constriction)
    twin = copy.copy(codec)
    twin._coder = Rans(prior.cdf, np.arange(shape[0]).repeat(codec.latent.elements // shape[0]))
    return codec, twin, latents


SHAPES = [(1,), (3, 5), (2, 700), (3, 7, 9), (5, 13, 13), (40, 9, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_write_the_same_bytes_and_read_one_anothers(shape: tuple[int, ...]) -> None:
    for scale in (0.05, 1, 300):
        codec, twin, latents = codec_and_twin(shape, scale)
        payloads = codec.encode(latents)
        assert twin.encode(latents) == payloads
        assert codec.decode(payloads).tobytes() == twin.decode(payloads).tobytes() == codec.snap(latents).tobytes()


def outcome(codec: EntropyCodec, payload: bytes) -> str | bytes:
    try:
        return codec.decode([payload]).tobytes()
    except CodecError as refusal:
        return str(refusal)


def altered(payload: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(payload)
    head = 2 + 2 * payload[0]
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(changed) + 1))
        match rng.integers(0, 8):
            case 0:
                changed[min(at, len(changed) - 1)] ^= 1 << int(rng.integers(8))
            case 1:
                changed[at : at + 4] = rng.bytes(4)
            case 2:
                del changed[at : at + int(rng.integers(1, 9))]
            case 3:
                changed[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 4:  # bytes of the first stream, its length as it should be
                changed[2:4] = (int.from_bytes(changed[2:4], "little") + 4 & 0xFFFF).to_bytes(2, "little")
                changed[head:head] = rng.bytes(4)
            case 5:
                changed[at:] = rng.bytes(len(changed) - at)
            case 6:  # small numbers where a state ends
                changed[at : at + 8] = bytes([*[0] * 7, int(rng.integers(3))])
            case _:
                changed[at : at + 4] = b"\xff" * 4
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_altered_payload_means_the_same_to_both(shape: tuple[int, ...]) -> None:
    codec, twin, latents = codec_and_twin(shape, 1)
    payloads = codec.encode(latents)
    rng = np.random.default_rng(0)
    for number in range(MUTATIONS):
        wrong = altered(payloads[number % len(payloads)], rng)
        assert outcome(codec, wrong) == outcome(twin, wrong), wrong.hex()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_streams_of_any_bytes_are_read_alike_to_the_last_symbol(shape: tuple[int, ...]) -> None:
    # below what the codec refuses: the coders themselves, on bytes that no coder wrote
    codec, twin, latents = codec_and_twin(shape, 1)
    rng = np.random.default_rng(1)
    lanes = codec.encode(latents)[0][0]
    for _ in range(MUTATIONS // 10):
        streams = [
            [rng.bytes(int(rng.integers(0, 40))).rstrip(b"\0") for _ in range(lanes)] for _ in range(int(rng.integers(1, 4)))
        ]
        (ours, our_end), (theirs, their_end) = (each._coder.read(streams) for each in (twin, codec))
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(our_end, their_end)


def test_a_constriction_that_makes_other_tables_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Rans((TABLES["bell"], TABLES["even"]), np.zeros(4, np.int64))
    assert isinstance(fastest(plain), Constriction)

    categorical = constriction.stream.model.Categorical

    class Perfect:
        """As constriction before 0.5 made them by default."""

        stream = constriction.stream

        class model:  # noqa: N801
            @staticmethod
            def Categorical(p: np.ndarray, **_: bool) -> object:  # noqa: N802
                return categorical(p, perfect=True)

    monkeypatch.setattr(constriction.stream, "model", Perfect.model)
    assert fastest(plain) is plain
    monkeypatch.setattr(rans_constriction, "constriction", None)
    assert fastest(plain) is plain
