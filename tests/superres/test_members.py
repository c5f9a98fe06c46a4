"""Streamed ensembles of antithetic pairs: mean, and an unbiased spread."""

import pytest
import torch

from pipeline.superres.members import Ensemble


def ensemble_of(draws):
    ensemble = Ensemble()
    for draw in draws:
        ensemble.add(draw)
    return ensemble


def antithetic(transform, pairs, generator):
    noise = torch.randn((pairs, 1, 2000), generator=generator, dtype=torch.float64)
    return [transform(sign * z) for z in noise for sign in (1, -1)]


def bent(z):
    return z + 0.5 * z.square()


def test_the_mean_is_the_plain_mean():
    draws = torch.randn((5, 3, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(ensemble_of(draws).mean, draws.mean(0))


def test_what_is_odd_in_the_noise_leaves_the_mean_at_once():
    draws = antithetic(lambda z: 3 + 2 * z, 1, torch.Generator().manual_seed(2))
    assert torch.allclose(ensemble_of(draws).mean, torch.full((1, 2000), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_the_variance_is_unbiased_for_linear_systems(pairs):
    spread = ensemble_of(antithetic(lambda z: 3 + 2 * z, pairs, torch.Generator().manual_seed(3))).spread
    assert float(spread.square().mean()) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("pairs", [2, 4])
def test_the_variance_is_unbiased_for_systems_that_are_not_odd(pairs):
    spread = ensemble_of(antithetic(bent, pairs, torch.Generator().manual_seed(4))).spread
    assert float(spread.square().mean()) == pytest.approx(1 + 0.25 * 2, rel=0.2)


def test_an_unpaired_member_counts_in_the_mean_alone():
    draws = torch.randn((3, 2, 2), generator=torch.Generator().manual_seed(5))
    assert torch.equal(ensemble_of(draws).spread, ensemble_of(draws[:2]).spread)
    assert torch.allclose(ensemble_of(draws).mean, draws.mean(0))


def test_one_member_has_no_spread_and_none_has_no_mean():
    assert ensemble_of(torch.ones(1, 2)).spread is None
    with pytest.raises(ValueError, match="no members"):
        _ = Ensemble().mean
