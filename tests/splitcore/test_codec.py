"""What every codec promises: snap is decode∘encode bit for bit, encoding again changes nothing, the error is bounded."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter, ValidationError

from splitcore.codec import Codec, CodecConfig, fit, parse
from splitcore.codec.entropy import Entropy
from splitcore.codec.identity import Float16, Identity
from splitcore.codec.jpeg import Jpeg
from splitcore.codec.jpeg_triples import JpegTriples
from splitcore.codec.packing import pack, unpack
from splitcore.codec.prior import Prior
from splitcore.codec.uniform import Uniform, UniformCodec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

PER = ("tensor", "channel", "tensor/sample", "channel/sample")
PLAIN = [
    "identity",
    "float16",
    *(f"uniform{bits}/{per}" for bits, per in product(range(1, 9), PER)),
    "jpeg10",
    "jpeg75",
    "jpeg95",
    "jpeg30/rgb-triples",
    "jpeg95/rgb-triples",
]
NAMES = PLAIN + [f"{name}+zstd" for name in PLAIN] + ["entropy"]
SHAPES: list[tuple[int, ...]] = [(1,), (7,), (16,), (3, 5), (4, 8), (1, 1, 1), (3, 1, 1), (2, 3, 5), (5, 7, 3), (8, 4, 4)]


def spec_of(shape: tuple[int, ...], seed: int = 0) -> LatentSpec:
    """A spec with another range in every channel."""
    rng = np.random.default_rng(seed)
    lo = rng.uniform(-4, 0.5, shape[0])
    hi = lo + rng.uniform(0.1, 6, shape[0])
    step = rng.uniform(0.01, 2, shape[0])
    masses = [rng.uniform(0, 1, n) ** 8 + 1e-6 for n in rng.integers(1, 40, shape[0])]
    prior = Prior.of(masses, rng.integers(-20, 0, shape[0]).tolist(), step.tolist())
    return LatentSpec(shape, tuple(map(float, lo)), tuple(map(float, hi)), 1.0, prior)


def fitted(name: str, spec: LatentSpec) -> Codec:
    """The codec of a name; `entropy` alone stands for that of the prior which `spec` has."""
    return fit(Entropy() if name == "entropy" else name, spec)


def latents_of(spec: LatentSpec, k: int, seed: int = 1) -> F32:
    """Latents that lie in the ranges for the most part, and outside for some."""
    rng = np.random.default_rng(seed)
    lo, hi = spec.per_channel(spec.lo), spec.per_channel(spec.hi)
    stack: F32 = (lo + rng.uniform(-0.2, 1.2, (k, *spec.shape)) * (hi - lo)).astype(np.float32)
    return stack


@pytest.mark.parametrize("name", NAMES)
def test_snap_is_what_arrives_bit_for_bit_and_encoding_it_again_changes_nothing(name: str) -> None:
    for shape in SHAPES:
        codec = fitted(name, spec_of(shape))
        latents = latents_of(codec.latent, 5)

        payloads = codec.encode(latents)
        arrived = codec.decode(payloads)

        assert arrived.dtype == np.float32 and arrived.shape == (5, *shape)
        assert codec.snap(latents).tobytes() == arrived.tobytes()
        for row, payload in enumerate(payloads):
            again = codec.as_sent(payload)
            assert again.encode(arrived[row : row + 1]) == [payload]
            assert again.snap(arrived[row : row + 1]).tobytes() == arrived[row].tobytes()
        if codec.settles:
            assert codec.encode(arrived) == payloads
            assert codec.snap(arrived).tobytes() == arrived.tobytes()
        assert codec.decode([memoryview(payload) for payload in payloads]).tobytes() == arrived.tobytes()
        assert all(len(payload) <= codec.max_payload_bytes for payload in payloads)
        assert (arrived >= codec.lo).all() and (arrived <= codec.hi).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_latent_of_a_stack_is_encoded_by_itself(name: str) -> None:
    codec = fitted(name, spec_of((3, 5, 2)))
    latents = latents_of(codec.latent, 4)
    together = codec.encode(latents)
    assert together == [codec.encode(latents[i : i + 1])[0] for i in range(4)]
    assert codec.encode(latents[:0]) == [] and codec.decode([]).shape == (0, 3, 5, 2)


@pytest.mark.parametrize(("bits", "per"), list(product(range(1, 9), ("tensor", "channel"))))
def test_uniform_is_off_by_half_a_step_inside_the_range_and_clips_outside(bits: int, per: str) -> None:
    codec = fit(f"uniform{bits}/{per}", spec_of((4, 6, 6)))
    rng = np.random.default_rng(2)
    lo, hi = np.broadcast_to(codec.lo, (4, 6, 6)), np.broadcast_to(codec.hi, (4, 6, 6))
    inside = (lo + rng.uniform(0, 1, (50, 4, 6, 6)) * (hi - lo)).astype(np.float32)
    # the slack is float32's own rounding
    assert (np.abs(codec.snap(inside) - inside) <= codec.step / 2 + 4e-6).all()
    assert (codec.snap((hi + 1)[None]) == codec.hi).all()
    assert (codec.snap((lo - 1)[None]) == codec.lo).all()


@given(
    lo=st.floats(-1000, 1000, width=32),
    width=st.floats(2**-6, 2000, width=32),
    bits=st.integers(1, 8),
    data=st.data(),
)
@settings(deadline=None)
def test_encoding_again_changes_nothing_for_any_range_that_is_not_refused(
    lo: float, width: float, bits: int, data: st.DataObject
) -> None:
    try:
        codec = fit(f"uniform{bits}/tensor", LatentSpec((256,), (lo,) * 256, (lo + width,) * 256, 1.0))
    except CodecError:
        assert width / (2**bits - 1) < 2000 * 2**-19, "only a range that float32 hardly resolves is refused"
        return
    every_code = np.arange(256) % 2**bits
    payload = pack(every_code[None].astype(np.uint8), bits)[0].tobytes()
    assert codec.encode(codec.decode([payload])) == [payload]
    latents = data.draw(hnp.arrays(np.float32, (1, 256), elements=st.floats(-4096, 4096, width=32)))
    assert codec.encode(codec.snap(latents)) == codec.encode(latents)


@pytest.mark.parametrize(("lo", "hi"), [(1000.0, 1000.0001), (-1000.0001, -1000.0), (0.0, 1e-36), (0.0, 1e-320)])
def test_a_range_too_narrow_for_float32_is_refused(lo: float, hi: float) -> None:
    with pytest.raises(CodecError, match="widen"):
        fit("uniform8/channel", LatentSpec((2, 3), (0.0, lo), (1.0, hi), 1.0))
    assert fit("identity", LatentSpec((2, 3), (0.0, lo), (1.0, hi), 1.0)).name == "identity"


@pytest.mark.parametrize("name", NAMES)
def test_latents_that_are_not_finite_are_refused(name: str) -> None:
    codec = fitted(name, spec_of((2, 2)))
    for wrong in (np.nan, np.inf, -np.inf):
        latents = latents_of(codec.latent, 2)
        latents[1, 0, 1] = wrong
        with pytest.raises(CodecError, match="finite"):
            codec.encode(latents)
        with pytest.raises(CodecError, match="finite"):
            codec.snap(latents)


@pytest.mark.parametrize("name", NAMES)
def test_latents_of_another_shape_are_refused(name: str) -> None:
    codec = fitted(name, spec_of((2, 3)))
    for shape in ((2, 3), (1, 3, 2), (2,), (1, 2, 3, 1), (6,), ()):
        with pytest.raises(CodecError, match=r"\[k, 2, 3\]"):
            codec.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_floats_are_encoded_without_a_warning(name: str) -> None:
    codec = fitted(name, spec_of((2, 2)))
    huge = np.full((1, 2, 2), np.finfo(np.float32).max, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for latents, bound in ((huge, codec.hi), (-huge, codec.lo)):
            arrived = codec.decode(codec.encode(latents))
            assert (arrived == np.clip(latents, codec.lo, codec.hi)).all()
            if name.startswith(("uniform", "entropy")):
                assert (arrived == bound).all()


def test_a_float64_beyond_float32_is_refused_as_infinite() -> None:
    codec = fit("identity", spec_of((2,)))
    with pytest.raises(CodecError, match="finite"):
        codec.encode(np.array([[1e300, 0.0]]))


def test_float16_saturates() -> None:
    codec = fit("float16", spec_of((4,)))
    arrived = codec.snap(np.array([[65504, 65520, 1e38, -1e38]], np.float32))
    assert arrived.tolist() == [[65504, 65504, 65504, -65504]]


@given(codes=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)), bits=st.integers(1, 8))
@settings(deadline=None)
def test_packing_agrees_with_its_slow_twin_that_goes_bit_by_bit(codes: np.ndarray, bits: int) -> None:
    codes = codes & np.uint8(2**bits - 1)
    packed = pack(codes, bits)
    assert [row.tobytes() for row in packed] == [pack_slowly(row.tolist(), bits) for row in codes]
    n = codes.shape[1]
    assert unpack(packed, bits, n).tolist() == [unpack_slowly(row.tobytes(), bits, n) for row in packed] == codes.tolist()


def pack_slowly(codes: list[int], bits: int) -> bytes:
    text = "".join(f"{code:0{bits}b}" for code in codes)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def unpack_slowly(packed: bytes, bits: int, n: int) -> list[int]:
    text = "".join(f"{byte:08b}" for byte in packed)
    return [int(text[i * bits : (i + 1) * bits], 2) for i in range(n)]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_the_codec_back(name: str) -> None:
    codec = fitted(name, spec_of((2, 2)))
    assert codec.name == (f"entropy/{codec.latent.prior.hash}" if name == "entropy" and codec.latent.prior else name)
    again = fit(parse(codec.name), codec.latent)
    latents = latents_of(codec.latent, 2)
    assert again.name == codec.name and again.encode(latents) == codec.encode(latents)


@pytest.mark.parametrize(
    "name",
    ["", "uniform", "uniform0/tensor", "uniform4/sample", "uniform9/tensor", "uniform8", "uniform8/row", "identity+zstd+zstd",
     "Identity", "identity\n", "float16 ", "entropy", "entropy/0123456", "entropy/0123456G", "entropy/01234567+zstd", "jpeg",
     "jpeg0", "jpeg96", "jpeg075", "jpeg75/rgb", "jpeg/rgb-triples", "+zstd", "x" * 10_000, "uniform８/tensor"],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(CodecError, match="expected identity, float16, uniform") as refusal:
        fit(name, spec_of((2,)))
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "uniform", "bits": 0},
        {"kind": "uniform", "bits": 9},
        {"kind": "uniform", "bits": 4, "per": "row"},
        {"kind": "uniform", "levels": 4},
        {"kind": "identity", "bits": 4},
        {"kind": "float16", "kind2": 1},
        {"kind": "hevc"},
        {"kind": "jpeg", "quality": 96},
        {"kind": "jpeg/rgb-triples", "quality": 0},
        {"kind": "entropy", "prior": "xyz"},
        {"kind": "entropy", "zstd": True},
        {},
    ],
    ids=str,
)
def test_a_configuration_with_an_unknown_key_or_value_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(CodecConfig).validate_python(config)


@given(config=st.builds(Uniform, bits=st.integers(1, 8), per=st.sampled_from(PER), zstd=st.booleans())
       | st.builds(Jpeg, quality=st.integers(1, 95), zstd=st.booleans())
       | st.builds(JpegTriples, quality=st.integers(1, 95), zstd=st.booleans()) | st.builds(Identity, zstd=st.booleans())
       | st.builds(Entropy, prior=st.just("0123abcd")) | st.builds(Float16, zstd=st.booleans()))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_configuration_survives_json_and_its_own_name(config: CodecConfig) -> None:
    adapter: TypeAdapter[CodecConfig] = TypeAdapter(CodecConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config
    if config.kind != "entropy":
        codec: Codec = fit(config, spec_of((2, 2)))
        assert parse(codec.name) == config


def test_a_channel_has_its_own_grid_only_when_told_so() -> None:
    spec = LatentSpec((2, 2), (0.0, -10.0), (3.0, 20.0), 1.0)
    channel, tensor = fit("uniform2/channel", spec), fit("uniform2/tensor", spec)
    assert isinstance(channel, UniformCodec) and isinstance(tensor, UniformCodec)
    assert channel.step.ravel().tolist() == [1.0, 10.0] and tensor.step.ravel().tolist() == [10.0]
    assert channel.snap(np.full((1, 2, 2), 1.2, np.float32)).tolist() == [[[1, 1], [0, 0]]]
    assert tensor.snap(np.full((1, 2, 2), 6.0, np.float32)).tolist() == [[[10, 10], [10, 10]]]
