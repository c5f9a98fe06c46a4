"""Sheets: which places and parts they show, and that every pixel is a block of the sheet."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from training.data.tiles import BANDS, Nested, Tile
from training.quality import picture
from training.quality.pairs import Pair
from training.quality.picture import (
    GAP_PX,
    LABEL_PX,
    TEXT_PX,
    ZOOM,
    Panel,
    chosen,
    chosen_of_sentinel2,
    fitted,
    sheet,
)


def pair(name, index, contrast):
    generator = torch.Generator().manual_seed(index)
    hr = 0.3 + contrast * torch.rand(1, 3, 64, 64, generator=generator)
    return Pair(name, index, hr, torch.nn.functional.avg_pool2d(hr, 4), f"{name}/{index}")


def tile(name, contrast, level=0.1):
    rng = np.random.default_rng(0)
    rho = {g: np.zeros((len(bands), 20 * 60 // g, 20 * 60 // g), np.float32) for g, bands in BANDS.items()}
    rho[10] += (level + contrast * rng.random(rho[10].shape)).astype(np.float32)
    return Tile.of(name, rho, np.ones((20, 20), bool), ("B02",))


def chip(place, level, noise=0.02, side=64, nodata=0):
    """A held-out image of 2.5 m of one brightness; its first `nodata` columns are black."""
    rng = np.random.default_rng(0)
    pixels = (level * (1 + noise * rng.standard_normal((3, side, side)))).clip(0.01, 1).astype(np.float32)
    pixels[:, :, :nodata] = 0
    return Pair("town", place, torch.from_numpy(pixels)[None], torch.zeros(1, 3, side // 4, side // 4), f"town/{place}")


def test_places_of_a_set_differ_in_land_cover_and_the_median_is_first():
    levels = (0.30, 0.05, 0.32, 0.60, 0.31)
    pairs = [chip(index, level) for index, level in enumerate(levels)] + [pair("sea", 9, 0.1)]
    town = [place for place in chosen(pairs) if place.pair.source == "town"]
    assert len(town) == 3
    assert town[0].why == "the median of its set"
    assert {levels[place.pair.index] for place in town[1:]} == {0.05, 0.60}
    assert {place.why.split(",")[0].split(" ")[0] for place in town[1:]} == {"darker", "brighter"}
    assert [place.pair.source for place in chosen(pairs, count=1)] == ["town", "sea"]
    assert chosen(pairs) == chosen(pairs)


def test_contrast_does_not_attract():
    """Of equal brightness and greenness, the place of median texture is shown first, not the most detailed."""
    pairs = [chip(index, 0.3, noise) for index, noise in enumerate((0.3, 0.05, 0.1))]
    assert chosen(pairs, count=1)[0].pair.index == 2


def test_large_images_show_one_of_their_windows():
    (place,) = chosen([chip(0, 0.3, side=256)], count=1)
    assert place.part in [(slice(top, top + 96), slice(left, left + 96)) for top in (32, 128) for left in (32, 128)]


def test_clear_patches_of_sentinel2_that_no_training_saw():
    def of(name, split, level, source="s2", valid=True):
        made = replace(tile(name, 0.05, level), split=split, source=source)
        return made if valid else replace(made, ground=Nested(made.rho, np.zeros((20, 20), bool)))

    tiles = [
        of("seen", "train", 0.3), of("dark", "held-out", 0.05), of("middle", "held-out", 0.2, "other"),
        of("bright", "held-out", 0.4), of("snow", "held-out", 0.7), of("empty", "held-out", 0.1, valid=False),
    ]  # fmt: skip
    found = chosen_of_sentinel2(tiles)
    assert {place.pair.place for place in found} == {"dark", "middle", "bright"}
    assert found[0].pair.place == "middle"
    assert not any(place.truth for place in found)
    assert found[0].pair.lr.shape == (1, 3, 120, 120)
    assert found[0].pair.hr.shape == (1, 3, 480, 480)
    assert all(part.stop - part.start == 96 and part.start % 4 == 0 for place in found for part in place.part)
    (trained,) = chosen_of_sentinel2(tiles[:1], count=1)
    assert trained.why.endswith("; trained on")
    assert chosen_of_sentinel2(tiles[-2:]) == []


def test_long_text_keeps_its_end():
    font = ImageFont.load_default(size=TEXT_PX)
    text = "a very long name of weights, one sample"
    assert fitted(text, 1000, font) == text
    cut = fitted(text, 150, font)
    assert cut.startswith("...")
    assert cut.endswith(", one sample")
    assert font.getlength(cut) <= 150


def test_narrow_panels_are_enlarged_until_their_labels_fit():
    truth = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    drawn = sheet([Panel("truth", truth)], "first\nsecond", columns=1)
    assert drawn.size == (240 + 2 * GAP_PX, 3 * LABEL_PX + 240 + GAP_PX)


def test_each_band_may_have_its_own_stretch():
    truth = torch.stack([torch.linspace(0, high, 64).reshape(8, 8) for high in (0.1, 0.5, 1.0)])
    by_band, joint = (
        np.asarray(sheet([Panel("truth", truth)], "t", columns=1, by_band=each))[2 * LABEL_PX : -GAP_PX, GAP_PX:-GAP_PX]
        for each in (True, False)
    )
    assert (by_band == by_band[..., :1]).all()
    red, green, blue = joint[-1, -1]
    assert red < green < blue


def test_every_pixel_is_a_block_in_the_sheets_own_stretch():
    truth = torch.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64)
    deviation = torch.zeros(1, 64, 64)
    deviation[0, 2, 3] = 0.02
    spread = Panel("spread", deviation, (torch.tensor(0.0), torch.tensor(0.02)))
    drawn = np.asarray(sheet([Panel("a", truth), spread, Panel("truth", truth)], "t"))
    top, side = 2 * LABEL_PX, 64 * ZOOM
    left, right = GAP_PX, 2 * GAP_PX + side
    first = drawn[top : top + side, left : left + side]
    black, white = (float(torch.quantile(truth, share / 100)) for share in picture.STRETCH)
    shown = ((truth - black) / (white - black)).clamp(0, 1).permute(1, 2, 0).numpy() ** picture.DISPLAY_GAMMA
    expected = np.rint(shown * 255).repeat(ZOOM, 0).repeat(ZOOM, 1)
    np.testing.assert_allclose(first, expected, atol=1)
    second = drawn[top : top + side, right : right + side, 0]
    assert set(np.unique(second)) == {0, 255}
    assert (second[2 * ZOOM : 3 * ZOOM, 3 * ZOOM : 4 * ZOOM] == 255).all()
    assert int((second == 255).sum()) == ZOOM**2


@pytest.mark.parametrize("truth", [True, False])
def test_sheets_are_written_and_show_all_methods(truth, tmp_path):
    class Candidate:
        name, settings, bands, scale = "x", "x sha256 0, 2 steps", ("B04", "B03", "B02"), 4

        def members(self, pair, count=4):
            noise = torch.randn(count // 2, *pair.hr.shape[1:], generator=torch.Generator().manual_seed(0))
            return 0.3 + 0.02 * torch.stack([noise, -noise], 1).flatten(0, 1)

    pairs = [pair("town", 0, 0.4)] if truth else []
    tiles = [] if truth else [tile("s2", 0.2)]
    said = []
    (path,) = picture.write(Candidate(), pairs, tiles, tmp_path / "new", said.append, count=1)
    assert [file.name for file in (tmp_path / "new").iterdir()] == [path.name]
    assert str(path) in said[0]
    side = (64 if truth else 96) * ZOOM
    with Image.open(path) as image:
        rows = 2
        assert image.size == (4 * (side + GAP_PX) + GAP_PX, 2 * LABEL_PX + rows * (side + LABEL_PX + GAP_PX))
    (place,) = chosen(pairs) if truth else chosen_of_sentinel2(tiles, count=1)
    shown = picture.panels(Candidate(), place)
    assert [panel.label for panel in shown][:5] == ["input", "bicubic", "IBP", "x, one sample", "x, mean of 4"]
    assert (shown[-1].label == "truth") == truth
