"""Systems are judged by what they declare: a stage at 10 m, its bands and its noise; else a clear no."""

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.superres.system import built
from tests.toys import all_bands, rgbn
from training.quality.pairs import Pair, members
from training.quality.sampler import bands_of, further_noise, of_system, resolving_stage

CPU = torch.device("cpu")


def test_four_bands_are_sampled_in_their_order_and_noise():
    """The toy draws at its own GSD and at 10 m; members come in antithetic pairs, whose mean has neither."""
    system = built(rgbn.SYSTEM, {}, CPU)
    assert bands_of(system) == ("B02", "B03", "B04", "B08")
    lr = torch.rand(1, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    pair = Pair("town", 3, torch.zeros(1, 4, 48, 64), lr, bands=bands_of(system))
    drawn = members(of_system(system), pair, 4)
    assert drawn.shape == (4, 4, 48, 64)
    up = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic") + 0.05 * (lr.mean() - 0.1)
    torch.testing.assert_close(drawn[:2].mean(0), up[0])
    assert float((drawn[0] - up[0]).std()) == pytest.approx((0.01**2 + 0.005**2) ** 0.5, rel=0.05)
    assert not torch.allclose(drawn[0], drawn[2])
    torch.testing.assert_close(members(of_system(system), pair, 1)[0], drawn[0])


def test_further_noise_follows_from_the_noise_of_a_member():
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one = further_noise(noise, 1, (2, 8, 4, 4))
    assert torch.equal(further_noise(noise, 1, (2, 8, 4, 4)), one)
    assert torch.equal(further_noise(noise[1:], 1, (1, 8, 4, 4))[0], one[1])
    assert torch.equal(further_noise(-noise, 1, (2, 8, 4, 4)), -one)
    for other in (further_noise(noise, 2, (2, 8, 4, 4)), further_noise(noise.flip(0), 1, (2, 8, 4, 4))):
        assert not torch.equal(other[0], one[0])


def test_a_system_that_reads_more_than_10_m_is_judged_elsewhere():
    with pytest.raises(
        UsageError, match=r"toy-all.* at 20 m.*; expected a stage that brings bands of 10 m.*--only scenes"
    ):
        resolving_stage(built(all_bands.SYSTEM, {}, CPU))
