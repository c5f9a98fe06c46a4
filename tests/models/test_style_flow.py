"""Distributions of style vectors: densities and samples that belong together."""

import pytest
import torch

from pipeline.models.style_flow import GaussianStyle, StyleFlow


def moved(model, by=0.3):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def vectors(count, dim=32):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("couplings", [8, 16])
def test_what_is_drawn_comes_from_its_noise(couplings):
    torch.manual_seed(0)
    flow, noise = moved(StyleFlow(couplings), 0.05), vectors(50)
    drawn = flow.draw(noise)
    assert (drawn - noise).abs().max() > 1
    base, _ = flow.base(drawn)
    assert ((base - flow.loc) / flow.log_scale.exp() - noise).abs().max() <= 1e-4


@pytest.mark.parametrize("make", [lambda: StyleFlow(3, 4, (6, 6)), lambda: GaussianStyle(4)], ids=["flow", "gaussian"])
def test_the_density_is_the_base_density_by_the_jacobian_of_drawing(make):
    torch.manual_seed(0)
    model, noise = moved(make().double()), vectors(5, 4).double()
    base = torch.distributions.Normal(0, 1).log_prob(noise).sum(1)
    for one, expected in zip(noise, base, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: model.draw(z[None])[0], one)
        found = model.log_prob(model.draw(one[None]))[0]
        assert torch.allclose(found, expected - torch.linalg.slogdet(jacobian).logabsdet, atol=1e-9)


def test_the_density_of_a_flow_sums_to_one():
    torch.manual_seed(0)
    flow = moved(StyleFlow(2, 2, (8, 8)).double(), 0.2)
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    assert abs(flow.log_prob(points).exp().sum() * (axis[1] - axis[0]) ** 2 - 1) < 1e-3


def test_an_untrained_flow_keeps_every_component_apart():
    """Its last layers are zero: each component is one of the noise, many times divided by sigmoid(2)."""
    torch.manual_seed(0)
    flow = StyleFlow(4)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.draw(z[None])[0], vectors(1)[0])
    assert ((jacobian != 0).sum(0) == 1).all()
    assert (jacobian[jacobian != 0] >= 1).all()


def test_a_gaussian_takes_mean_and_covariance():
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    x = vectors(20000, 6) @ mixing.T + torch.arange(6.0)
    model = GaussianStyle(6)
    model.fit(x)
    drawn = model.draw(torch.randn(20000, 6, generator=torch.Generator().manual_seed(4)))
    assert (drawn.mean(0) - x.mean(0)).abs().max() < 0.1
    assert (torch.cov(drawn.T) - torch.cov(x.T)).abs().max() < 0.05 * torch.cov(x.T).abs().max()


def test_a_gaussian_of_vectors_with_a_constant_component_can_be_evaluated():
    x = vectors(100, 4)
    x[:, 2] = 0.5
    model = GaussianStyle(4)
    model.fit(x)
    assert model.log_prob(x).isfinite().all()
    assert (model.draw(x)[:, 2] - 0.5).abs().max() < 0.1
