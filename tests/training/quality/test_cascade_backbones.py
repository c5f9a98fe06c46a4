"""Other systems as steps of a cascade, beside themselves applied again."""

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models.wavelet import consistent, twice
from tests.models.small import write_lite
from tests.training.quality.test_cascade_report import CHIPS, chip, data_of, rows
from training.degradation.degrade import Degradation
from training.quality import baselines
from training.quality.cascade_backbones import AGAIN, OVER, Again, Named, backbone_sections
from training.quality.cascade_scores import MEANS, SENSOR, Seen, seen, truths
from training.quality.sampler import of_system
from training.tasks.wavelet_cascade import CASCADES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    sr, _ = write_lite(tmp_path_factory.mktemp("weights"))
    return Named("lite", (str(sr),))


def pair_of(kind, side=128):
    how = Seen(kind, Degradation()).of_scale(16)
    return seen(truths([chip("one", side, side)], (16,))[16][0], how)


def test_interpolation_goes_by_levels_of_two_and_again_by_four():
    pair = pair_of(MEANS)
    expected = pair.lr
    for _ in range(4):
        expected = consistent(twice(expected), expected)
    over = CASCADES.over("bicubic", (), 16, CPU).every_level(pair, measured=False)
    assert [image.shape[-1] for image in over] == [16, 32, 64, 128]
    torch.testing.assert_close(over[-1], expected)
    again = Again(Named("bicubic"), 0, CPU).image(pair)
    torch.testing.assert_close(again, baselines.bicubic(baselines.bicubic(pair.lr)))


@pytest.mark.parametrize("kind", [SENSOR, MEANS])
def test_a_network_is_made_consistent_but_for_the_measured_step(kind, lite):
    pair = pair_of(kind)
    again = Again(lite, 0, CPU)
    once = of_system(again.system).mean(pair.lr)
    torch.testing.assert_close(again.image(pair), of_system(again.system).mean(once))
    first, last = CASCADES.over(lite.name, lite.files, 16, CPU).every_level(pair, measured=kind == SENSOR)
    torch.testing.assert_close(first, once if kind == SENSOR else consistent(once, pair.lr))
    torch.testing.assert_close(baselines.box(last), first)


def test_levels_of_interpolation_and_of_networks_do_not_undershoot_beside_dark_ground(lite):
    pair = pair_of(MEANS)
    pair.lr[..., 4:] = 0.001
    assert Again(Named("bicubic"), 0, CPU).image(pair).min() < -0.005
    for of in (Named("bicubic"), lite):
        for image in CASCADES.over(of.name, of.files, 16, CPU).every_level(pair, measured=False):
            assert image.min() > -1e-6
            torch.testing.assert_close(baselines.box(image, image.shape[-1] // 8), pair.lr, rtol=0, atol=1e-6)


def test_tables_name_systems_and_only_the_cascade_is_consistent(lite):
    said = []
    sections = backbone_sections(
        [Named.parsed("bicubic"), lite], CASCADES, data_of(CHIPS), (16,), "box", None, CPU, 0, said.append
    )
    means = sections[1]
    (table,) = rows(means.text)
    assert [(row[0], row[4]) for row in table] == [(n, m) for n in ("bicubic", "lite") for m in (OVER, AGAIN)]
    assert all(row[1:4] == ["x16", "1", "1"] for row in table)
    consistency = [float(row[-1]) for row in table]
    assert consistency[0] == consistency[2] == 0
    assert min(consistency[1], consistency[3]) > 1e-5
    assert {record.table for record in means.records} == {"backbone bicubic, means x16", "backbone lite, means x16"}


def test_scales_that_are_no_power_of_four_are_refused():
    with pytest.raises(UsageError, match="--backbones at x8; expected powers of 4"):
        backbone_sections([Named("bicubic")], CASCADES, data_of(CHIPS), (8, 16), "box", None, CPU, 0, print)


def test_systems_may_come_with_a_file():
    assert Named.parsed(" mine=a/b.safetensors") == Named("mine", ("a/b.safetensors",))
    assert Named.parsed("mine") == Named("mine")
