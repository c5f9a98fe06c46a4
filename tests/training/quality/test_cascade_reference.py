"""What references are worth to a cascade: how they are made, warped to levels, and counted."""

import numpy as np
import pytest
import torch

from pipeline.bands import RGB
from pipeline.models.reference import fitted, fitted_bands
from tests.training.quality.test_cascade_report import CHIPS, chip, data_of, rows, scrambled, weights_of  # noqa: F401
from training.data.rasters import area_average
from training.degradation.degrade import Degradation
from training.quality import baselines, cascade_reference, cascade_report
from training.quality.cascade import Finer
from training.quality.cascade_reference import REFERENCES, SELF, covering, reference_of
from training.quality.cascade_scores import MEANS, Seen, seen, truths


def ramp(side=48):
    """Three bands whose values are linear in row and column."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    return torch.from_numpy(np.stack((x, y, x + y)))[None]


def test_a_finer_image_is_averaged_to_coarser_pixels_and_cut():
    found = Finer(ramp(), 1.0).at(2.0, 20, 22)
    assert found.shape == (1, 3, 20, 22)
    torch.testing.assert_close(found[0, 0, 0], 2 * torch.arange(22) + 0.5)


def test_a_coarser_image_is_interpolated_in_place():
    coarse = torch.from_numpy(area_average(ramp()[0].numpy(), 1.5, 1.5))[None]
    found = Finer(coarse, 1.5).at(1.0, 48, 48)
    torch.testing.assert_close(found[..., 6:-6, 6:-6], ramp()[..., 6:-6, 6:-6], rtol=0, atol=0.05)
    onwards = Finer(coarse, 1.5).at(2.0, 24, 24)
    torch.testing.assert_close(baselines.box(onwards, 3), baselines.box(ramp(), 6))  # pixels that both hold whole


def test_references_are_of_eight_bits_in_another_radiometry_and_in_place():
    truth = 0.2 + 0.001 * ramp()
    for kind in REFERENCES[:-1]:
        found = reference_of(truth, kind, 4, seed=3)
        assert found.pixel_px == kind.pixel_px
        assert torch.equal(found.image, found.image.round())
        assert 0 <= float(found.image.min()) < float(found.image.max()) <= 255
        # along a row, a monotonic change of radiometry keeps the order of values
        step = kind.shift_px
        line = found.at(1.0, 48, 48)[0, 0, 24, 8 + step : 40]
        assert bool((line.diff() > -0.6).all())


@pytest.mark.parametrize("kind", [kind for kind in REFERENCES if not kind.other])
def test_references_are_moved_as_their_name_says(kind):
    truth = torch.full((1, 3, 48, 48), 0.1)
    truth[..., 18:30, 12:24] = 0.4
    found = reference_of(truth, kind, 4, seed=3)
    bright = found.image[0, 0] > (found.image[0, 0].min() + found.image[0, 0].max()) / 2
    rows, cols = (bright.any(axis).nonzero()[:, 0] for axis in (1, 0))
    edges = [(int(line[0]), int(line[-1]) + 1) for line in (rows, cols)]
    expected = [(18 + kind.shift_px, 30 + kind.shift_px), (12 + kind.shift_px, 24 + kind.shift_px)]
    assert edges == [(first / kind.pixel_px, last / kind.pixel_px) for first, last in expected]


def test_other_ground_covers_the_image():
    image = ramp(20)
    found = covering(image, ramp(48))
    assert found.shape == (1, 3, 48, 48)
    torch.testing.assert_close(found[..., 20:40, 20:40], image)


def test_bands_without_a_reference_are_unknown():
    image = torch.rand(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    reference = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    found = fitted_bands(reference, image, [2, 1, 0])
    assert bool(found[:, 3].isnan().all())
    torch.testing.assert_close(found[:, [2, 1, 0]], fitted(reference, image[:, [2, 1, 0]]), equal_nan=True)


def test_a_level_takes_references_finer_than_its_input(scrambled):  # noqa: F811
    pair = seen(truths([chip("one", 64, 64)], (4,))[4][0], Seen(MEANS, Degradation()).of_scale(4))
    plain = scrambled[1].every_level(pair, measured=False)
    changed = []
    for pixel_px in (1.0, 2.0, 4.0):
        finer = Finer(torch.from_numpy(area_average(pair.hr[0].numpy(), pixel_px, pixel_px))[None], pixel_px)
        found = scrambled[1].every_level(pair, measured=False, finer=finer)
        changed.append([not torch.equal(one, other) for one, other in zip(found, plain, strict=True)])
    assert changed[0] == [True, True]
    assert changed[1] == [True, True]  # at the first level, whose output the second reads
    assert changed[2] == [False, False]


def test_a_table_has_a_row_per_reference_and_none_gains_nothing(scrambled):  # noqa: F811
    weights = cascade_report.Cascaded("mine", *scrambled)
    said = []
    sections = cascade_reference.reference_sections(weights, data_of(CHIPS), (4,), "box", None, said.append)
    assert [section.title.rpartition(", ")[2] for section in sections] == ["sensor", "means"]
    for section in sections:
        (table,) = rows(section.text)
        assert [row[1] for row in table] == ["bicubic", "IBP", SELF, *(kind.name for kind in REFERENCES)]
        by_name = {row[1]: row for row in table}
        assert by_name[SELF][3] == "+0.00"
        assert float(by_name["1 px"][2]) - float(by_name[SELF][2]) == pytest.approx(
            float(by_name["1 px"][3]), abs=0.011
        )
    assert weights.bands == RGB


def test_without_images_it_says_so(scrambled):  # noqa: F811
    weights = cascade_report.Cascaded("mine", *scrambled)
    (section,) = cascade_reference.reference_sections(
        weights, data_of([chip("flat", 30, 30)]), (4,), "box", None, print
    )
    assert "null: no image of the data is held out at 32 px" in section.text
