"""The picture of a store: where it looks, and that its three panels are what they say."""

import numpy as np
import pytest
from PIL import Image

from pipeline.execution import quicklook
from pipeline.grid.grid import Grid, Window
from pipeline.products.quicklook import is_quicklook, stretch_limits
from pipeline.superres.masks import reflectance
from tests.archive.synthetic import make_archive, make_scene
from tests.execution.conftest import LEFT, TOP, box, config_for, run, values, write_aoi


class _Zone:
    grid = Grid(32632, Window(0, 0, 960, 960))


def textured(generator, *shape):
    return generator.integers(1100, 1900, shape).astype(np.uint16)


@pytest.fixture
def ground():
    """(reflectance (1, 1, y, x), quality (1, y, x)): flat and generated, but for one textured corner."""
    dn, quality = np.full((1, 1, 960, 960), 1500, np.uint16), np.full((1, 960, 960), 3, np.uint8)
    dn[0, 0, 720:, 720:] = textured(np.random.default_rng(1), 240, 240)
    return dn, quality


def test_it_looks_where_there_is_something_to_see(ground):
    assert quicklook._place(*ground, _Zone, 0) == Window(720, 720, 240, 240)


def test_it_looks_where_detail_is_generated(ground):
    """A texture stronger still, without generated detail, does not draw it away; nor does one bright spot."""
    dn, quality = ground
    dn[0, 0, :240, :240] = 3 * textured(np.random.default_rng(2), 240, 240)
    quality[0, :240, :240] = 1
    dn[0, 0, 720:960, 0:240] = 1500
    dn[0, 0, 800:820, 100:120] = 60_000
    assert quicklook._place(dn, quality, _Zone, 0) == Window(720, 720, 240, 240)


def test_without_generated_detail_it_looks_where_was_measured(ground):
    dn, quality = ground
    quality[:] = 1
    dn[0, 0, :, :720], quality[0, :, :720] = 0, 0
    assert quicklook._place(dn, quality, _Zone, 0) == Window(720, 720, 240, 240)
    dn[:], quality[:] = 0, 0
    assert quicklook._place(dn, quality, _Zone, 0) is None


def test_interpolation_keeps_ramps_and_nodata():
    dn = np.broadcast_to(np.arange(2000, 2120, 10, dtype=np.uint16), (3, 12, 12)).copy()
    dn[:, 5, 5] = 0
    fine = quicklook._interpolated(dn)
    assert fine.shape == (3, 48, 48)
    assert np.isclose(fine[0, 4, 16:32], reflectance(2000 + (np.arange(16, 32) - 1.5) * 2.5), atol=1e-5).all()
    assert (fine[:, 20:24, 20:24] == np.float32(-0.1)).all()
    assert (fine > -0.0999).sum() == 3 * (48**2 - 16)


def test_the_panels_are_input_interpolation_and_output(tmp_path):
    scene = make_scene(tmp_path, scene_id="S2A_ONE", seed=1, size_m=1800)
    place = write_aoi(tmp_path / "a.geojson", box(LEFT + 301, TOP - 899, LEFT + 899, TOP - 301))
    config = config_for(make_archive(tmp_path, [scene]), bands=("B02", "B03", "B04"), consistency="none")
    plan, _ = run(config, place, tmp_path / "a.zarr")
    path = quicklook.write_quicklook(plan, tmp_path / "a.zarr")
    assert is_quicklook(path)
    sheet = np.asarray(Image.open(path)).astype(int)
    assert sheet.shape == (272 + 28 + 480 + 16, 3 * 480 + 4 * 16, 3)
    measured, smooth, output = (sheet[300:780, left : left + 480] for left in (16, 512, 1008))
    cells = measured.reshape(30 * 2, 8, 60, 8, 3)
    assert (cells == cells[:, :1, :, :1]).all()  # 10 m pixels, enlarged as they are
    assert len(np.unique(measured)) > 50
    assert np.abs(smooth - output).max() <= 2  # this store is interpolated, rounded to whole DN
    assert np.abs(smooth - measured).mean() > 3
    dn = values(tmp_path / "a.zarr")[0][[2, 1, 0]]
    native = dn.reshape(3, 60, 4, 60, 4).mean((2, 4))
    low, high = stretch_limits(reflectance(native.astype(np.uint16)))
    shown = 255 * np.clip((reflectance(dn) - low) / (high - low), 0, 1) ** 0.8
    assert np.abs(output[::2, ::2] - shown.transpose(1, 2, 0)).mean() < 6
