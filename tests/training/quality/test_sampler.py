"""Systems are judged by what they declare: a stage at 10 m, its bands and its noise; else a clear no."""

from dataclasses import replace

import pytest
import torch

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.models.bundle import LatticeSpec, save_bundle
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet_network import WaveletNetwork
from pipeline.superres.system import built, load
from pipeline.superres.weights import choose
from tests.models.small import write_lite
from tests.models.test_wavediffur import TINY
from tests.toys import all_bands, rgbn
from training.quality.judge import Candidate
from training.quality.pairs import Pair, members
from training.quality.product import Way, of_pair
from training.quality.sampler import bands_of, further_noise, of_system, resolving_stages, scale_of
from training.tasks.wavelet_cascade import CASCADES

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


@pytest.fixture
def cascade_of(tmp_path):
    """Function that returns the system of a x2 network at a scale."""
    _, fusion = write_lite(tmp_path)

    def made(scale, trained=True):
        torch.manual_seed(0)
        network = WaveletNetwork(**TINY, bands=3)
        with torch.no_grad():
            for parameter in network.parameters() if trained else ():
                parameter.copy_(0.1 * torch.randn(parameter.shape))
        path = tmp_path / f"{trained}.safetensors"
        bundle = replace(wavediffur_bundle(TINY, RGB, sampler={"steps": 2}), lattice=LatticeSpec(192, 128, 32, 16))
        save_bundle(path, bundle, network.state_dict())
        return load(choose("wavediffur", (str(path), f"fusion={fusion}"), {"scale": scale}), "cpu")

    return made


def coarse(height=13, width=16):
    return 0.1 + 0.3 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("option", "names"), [(2, 1), (4, 2), (16, 2)])
def test_stages_of_a_cascade_are_chained_to_the_target(cascade_of, option, names):
    system, lr = cascade_of(option), coarse()
    assert [stage.name for stage in resolving_stages(system)] == [f"level {n}" for n in range(1, names + 1)]
    assert scale_of(system) == Candidate("mine", system).scale == 2**names
    sampler = of_system(system, scale_of(system))
    pair = Pair("town", 3, torch.zeros(1, 3, *(side * 2**names for side in lr.shape[-2:])), lr)
    expected = CASCADES.load(system.bundles["sr"], CPU).every_level(pair, measured=True)[-1]
    found = sampler.mean(lr)
    if option == 2:  # stored at 2.5 m, and averaged to the 5 m of its network
        assert found.shape == expected.shape
    else:
        torch.testing.assert_close(found, expected)
    drawn = members(sampler, pair, 3)
    assert drawn.shape == (3, *pair.hr.shape[1:])
    assert not torch.allclose(drawn[0], drawn[2])
    torch.testing.assert_close(members(sampler, pair, 1)[0], drawn[0])


def test_what_a_cascade_stores_is_what_its_stages_give(cascade_of):
    """Of an untrained one: squares of attention begin elsewhere in the lattice than in the image alone."""
    system, lr = cascade_of(4, trained=False), coarse(40, 40)
    stored = of_pair(Pair("town", 3, torch.zeros(1, 3, 160, 160), lr), system, Way(consistency="none")).rho
    alone = of_system(system).mean(lr)[0]
    inside = (slice(None), slice(16, 144), slice(16, 144))
    torch.testing.assert_close(stored[inside], alone[inside], atol=2e-4, rtol=0)


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
        UsageError, match=r"toy-all.* at 20 m.*; expected stages that bring bands of 10 m.*--only scenes"
    ):
        resolving_stages(built(all_bands.SYSTEM, {}, CPU))
