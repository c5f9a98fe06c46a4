"""What counts requests counts them, and the least is that of blocks worked out by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

from pipeline.grid.grid import Grid
from tests.benchmarks.reading import Asked, least

SIDE_PX = 4096  # 4 x 4 blocks


def test_ranges_are_counted_with_their_bytes():
    asked = Asked()
    for text in ("bytes=0-32767", "bytes=100-199", ""):
        asked.rule("a.tif", 0, SimpleNamespace(headers={"Range": text} if text else {}))
    assert (asked.requests, asked.bytes) == (3, 32768 + 100)


@dataclasses.dataclass
class Planned:
    """As much of a plan as `least` looks at: one zone, one band, and a halo of `halo_px` of 2.5 m."""

    grid: Grid
    halo_px: int
    inputs: tuple[str, ...] = ("B04",)

    @property
    def zones(self):
        return (SimpleNamespace(grid=self.grid),)

    def options(self):
        return None

    def model_passes(self):
        return [SimpleNamespace(reach_px=lambda _options: self.halo_px, read_window=lambda window: window)]


@pytest.mark.parametrize(("halo_px", "blocks"), [(0, 1), (48, 4)])
def test_the_least_is_each_touched_block_once(tmp_path, halo_px, blocks):
    """An area in one corner of a block: its halo touches three more. Blocks are not compressed."""
    left, top = 600_000, 5_100_000
    with rasterio.open(
        tmp_path / "TILE_B04.tif", "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=1, dtype="uint16",
        crs="EPSG:32632", transform=rasterio.Affine(10, 0, left, 0, -10, top), tiled=True, blockxsize=1024,
        blockysize=1024,
    ) as file:  # fmt: skip
        file.write(np.ones((1, SIDE_PX, SIDE_PX), "uint16"))
    corner_x, corner_y = left + 10_260, top - 10_260  # 20 m inside the second block
    grid = Grid.covering(32632, (corner_x, corner_y - 600, corner_x + 600, corner_y))
    assert least(Planned(grid, halo_px), tmp_path) == (1 + blocks, 32768 + blocks * 2 * 1024**2)
