"""The learned prior: its rate is a rate, training fits it, and the tables that it freezes to code at about what it promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splitcore.codec import fit
from splitcore.codec.entropy import EntropyCodec
from splitcore.errors import ScenarioError
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck import EntropyBottleneck, JpegBottleneck
from splitcore.nn.bottleneck.entropy import FactorisedPrior

SCALES = torch.tensor([0.3, 2.0, 12.0]).reshape(3, 1, 1)


def latents(k: int, seed: int = 0) -> torch.Tensor:
    """[k, 3, 16, 16], Gaussian, another spread and centre in each channel."""
    noise = torch.randn(k, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return noise * SCALES + torch.tensor([0.0, 1.5, -4.0]).reshape(3, 1, 1)


def spec(z: torch.Tensor) -> LatentSpec:
    lo, hi = z.amin((0, 2, 3)), z.amax((0, 2, 3))
    return LatentSpec(tuple(z.shape[1:]), tuple(lo.tolist()), tuple(hi.tolist()), float(z.std()))


@pytest.fixture(scope="module")
def trained() -> FactorisedPrior:
    torch.manual_seed(0)
    bottleneck = EntropyBottleneck(channels=3).build()
    assert isinstance(bottleneck, FactorisedPrior)
    optimiser = torch.optim.Adam(bottleneck.parameters(), 0.05)
    for step in range(150):
        bottleneck(latents(16, step))
        optimiser.zero_grad()
        bottleneck.bits().mean().backward()
        optimiser.step()
    return bottleneck


def test_the_density_of_every_channel_adds_up_to_one() -> None:
    torch.manual_seed(0)
    bottleneck = EntropyBottleneck(channels=3, components=4).build()
    assert isinstance(bottleneck, FactorisedPrior)
    symbols = torch.arange(-400.0, 401.0).expand(1, 3, -1)
    for channel in range(3):
        each = torch.stack([bottleneck.cost(symbols[:, :, i : i + 1]) for i in (0, 400, 800)])
        assert torch.isfinite(each).all(), channel
    mass = bottleneck._mass(symbols.double().unsqueeze(-1))
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_symbol_in_the_middle_of_the_density_has_its_mass() -> None:
    bottleneck = EntropyBottleneck(channels=1, components=1, spread=4.0).build()
    assert isinstance(bottleneck, FactorisedPrior)
    # one logistic of scale 1 at 0: F(1/2) - F(-1/2) = tanh(1/4)
    assert bottleneck.cost(torch.zeros(1, 1, 1)).item() == pytest.approx(-np.log2(np.tanh(0.25)), rel=1e-5)


def test_while_training_there_is_noise_of_one_step_and_the_gradient_reaches_head_and_density() -> None:
    bottleneck = EntropyBottleneck(channels=3, step=0.5).build()
    assert isinstance(bottleneck, FactorisedPrior)
    z = latents(4).requires_grad_()
    out = bottleneck(z)
    assert 0.2 < (out - z).abs().max() <= 0.2501
    (out.sum() + bottleneck.bits().sum()).backward()
    assert bottleneck.bits().shape == (4,) and z.grad is not None and (z.grad != 1).any()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bottleneck.parameters())


def test_training_brings_the_rate_to_the_entropy_of_the_latents(trained: FactorisedPrior) -> None:
    z = latents(32, 999)
    trained.eval()
    trained(z)
    rate = trained.bits().mean().item() / 256
    # of a Gaussian rounded to integers, for deviations well above the step: log2(σ·sqrt(2πe)); for 0.3, three symbols
    exact = sum(np.log2(s * np.sqrt(2 * np.pi * np.e)) for s in (2.0, 12.0)) + 0.55
    assert exact - 0.1 < rate < exact + 0.15


def test_the_frozen_tables_code_at_about_the_rate_that_the_density_promised(trained: FactorisedPrior) -> None:
    z = latents(8, 1000)
    trained.eval()
    trained(z)
    promised = trained.bits().detach().double()
    frozen = trained.freeze(spec(latents(64, 5)))
    codec = fit(trained.codec_config(), frozen)
    assert isinstance(codec, EntropyCodec) and frozen.prior is not None and codec.name == f"entropy/{frozen.prior.hash}"
    np.testing.assert_allclose(codec.bits(z.numpy()), promised.numpy(), rtol=0.01)
    np.testing.assert_array_equal(codec.decode(codec.encode(z.numpy())), trained(z).detach().numpy())


def test_a_density_with_nothing_in_the_calibrated_range_still_freezes() -> None:
    bottleneck = EntropyBottleneck(channels=2, spread=0.01).build()
    far = LatentSpec((2, 4), (900.0, -5.0), (901.0, 1e5), 1.0)
    frozen = bottleneck.freeze(far)
    z = torch.full((1, 2, 4), 900.4)
    codec = fit(bottleneck.codec_config(), frozen)
    np.testing.assert_array_equal(codec.decode(codec.encode(z.numpy())), bottleneck(z).detach().numpy())


def test_another_number_of_channels_is_refused_with_what_to_say() -> None:
    with pytest.raises(ScenarioError, match=r"of 24 channels.*got 3"):
        EntropyBottleneck().build()(latents(1))


def test_jpeg_while_training_takes_the_batchs_own_range_and_the_gradient_passes() -> None:
    z = latents(4).requires_grad_()
    out = JpegBottleneck(quality=95).build()(z)
    out.sum().backward()
    assert z.grad is not None and (z.grad == 1).float().mean() > 0.99
    assert ((out - z).detach().square().mean((0, 2, 3)).sqrt() < 0.2 * SCALES.flatten()).all()
    constant = torch.full((2, 3, 8, 8), 7.0)
    torch.testing.assert_close(JpegBottleneck().build()(constant), constant, atol=0.01, rtol=0)
