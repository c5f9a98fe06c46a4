"""Sheets: which places and parts they show, and that every pixel is a block of the sheet."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.tiles import BANDS, Tile
from training.quality import picture
from training.quality.pairs import Pair
from training.quality.picture import GAP_PX, LABEL_PX, ZOOM, Panel, chosen, detailed_part, real_pair, sheet


def pair(name, index, contrast):
    generator = torch.Generator().manual_seed(index)
    hr = 0.3 + contrast * torch.rand(1, 3, 64, 64, generator=generator)
    return Pair(name, index, hr, torch.nn.functional.avg_pool2d(hr, 4), f"{name}/{index}")


def tile(name, contrast, level=0.1):
    rng = np.random.default_rng(0)
    rho = {g: np.zeros((len(bands), 20 * 60 // g, 20 * 60 // g), np.float32) for g, bands in BANDS.items()}
    rho[10] += (level + contrast * rng.random(rho[10].shape)).astype(np.float32)
    return Tile.of(name, rho, np.ones((20, 20), bool), ("B02",))


def test_one_place_per_set_of_median_sharpness():
    pairs = [pair("town", i, contrast) for i, contrast in enumerate((0.5, 0.1, 0.3))] + [pair("sea", 3, 0.1)]
    assert [p.index for p in chosen(pairs)] == [2, 3]
    assert [p.index for p in chosen(pairs, sets=1)] == [2]


def test_the_sharpest_clear_patch_of_sentinel2():
    found = real_pair([tile("soft", 0.05), tile("sharp", 0.3), tile("snow", 0.4, level=0.5)])
    assert found is not None
    assert found.place == "sharp"
    assert found.lr.shape == (1, 3, 120, 120)
    assert found.hr.shape == (1, 3, 480, 480)
    assert real_pair([tile("snow", 0.4, level=0.5)]) is None


def test_the_part_with_most_detail():
    image = torch.full((1, 3, 80, 100), 0.2)
    image[..., 40:56, 60:76] += 0.1 * torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    rows, columns = detailed_part(image, 24)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (24, 24)
    assert rows.start <= 40
    assert rows.stop >= 56
    assert columns.start <= 60
    assert columns.stop >= 76
    assert rows.start % 4 == columns.start % 4 == 0
    assert detailed_part(image[..., :18, :18], 24) == (slice(0, 16), slice(0, 16))


def test_every_pixel_is_a_block_in_the_sheets_own_stretch():
    truth = torch.linspace(0, 1, 3 * 64).reshape(3, 8, 8)
    deviation = torch.zeros(1, 8, 8)
    deviation[0, 2, 3] = 0.02
    drawn = np.asarray(sheet([Panel("a", truth), Panel("spread", deviation, white=0.02), Panel("truth", truth)], "t"))
    top = 2 * LABEL_PX
    left, right = GAP_PX, 2 * GAP_PX + 8 * ZOOM
    first = drawn[top : top + 8 * ZOOM, left : left + 8 * ZOOM]
    black, white = (float(torch.quantile(truth, share / 100)) for share in picture.STRETCH)
    expected = ((truth - black) / (white - black)).clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(first, expected.repeat(ZOOM, 0).repeat(ZOOM, 1))
    second = drawn[top : top + 8 * ZOOM, right : right + 8 * ZOOM, 0]
    assert set(np.unique(second)) == {0, 255}
    assert (second[2 * ZOOM : 3 * ZOOM, 3 * ZOOM : 4 * ZOOM] == 255).all()
    assert int((second == 255).sum()) == ZOOM**2


@pytest.mark.parametrize("truth", [True, False])
def test_sheets_are_written_and_show_all_methods(truth, tmp_path):
    class Candidate:
        name, settings, bands = "x", "x sha256 0, 2 steps", ("B04", "B03", "B02")

        def members(self, pair, count=4):
            noise = torch.randn(count // 2, *pair.hr.shape[1:], generator=torch.Generator().manual_seed(0))
            return 0.3 + 0.02 * torch.stack([noise, -noise], 1).flatten(0, 1)

    pairs = [pair("town", 0, 0.4)] if truth else []
    tiles = [] if truth else [tile("s2", 0.2)]
    said = []
    (path,) = picture.write(Candidate(), pairs, tiles, tmp_path / "new", said.append)
    assert [file.name for file in (tmp_path / "new").iterdir()] == [path.name]
    assert str(path) in said[0]
    side = (64 if truth else 96) * ZOOM
    with Image.open(path) as image:
        rows = 2
        assert image.size == (4 * (side + GAP_PX) + GAP_PX, LABEL_PX + rows * (side + LABEL_PX + GAP_PX))
    shown = picture.panels(Candidate(), pairs[0] if truth else real_pair(tiles), truth)
    assert [panel.label for panel in shown][:5] == ["input, 10 m", "bicubic", "IBP", "x, one sample", "x, mean of 4"]
    assert (shown[-1].label == "truth") == truth
