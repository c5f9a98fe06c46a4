"""What a run stores of one image: the pipeline's own numbers, whatever the size of the image."""

import numpy as np
import pytest
import torch

from pipeline.bands import BAND_NAMES
from pipeline.grid.grid import Window
from pipeline.grid.lattice import Lattice
from pipeline.superres import masks
from pipeline.superres.consistency import bicubic_up
from pipeline.superres.system import load
from pipeline.superres.weights import choose
from training.data.tiles import BANDS
from training.quality import baselines, product
from training.quality.pairs import Pair
from training.quality.product import Way


@pytest.fixture(scope="module")
def plain():
    return load(choose("bicubic"), "cpu")


@pytest.fixture(scope="module")
def lite():
    return load(choose("lite"), "cpu")


def rgb(height, width, level=0.2):
    return (level + 0.1 * np.random.default_rng(0).random((3, height, width))).astype(np.float32)


@pytest.mark.parametrize("shape", [(17, 16), (64, 110)])  # one window; several
def test_interpolation_is_stored_as_it_is_to_a_dn(plain, shape):
    image = masks.reflectance(product.to_dn(rgb(*shape)))
    found = product.of_rgb(image, plain, Way(consistency="none"))
    assert found.rho.shape == (3, 4 * shape[0], 4 * shape[1])
    assert found.spread is None
    mirrored = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="symmetric")
    expected = bicubic_up(torch.from_numpy(mirrored)[None], 4)[0, :, 16:-16, 16:-16]
    assert float((found.rho - expected).abs().max()) <= 1.01e-4  # rounded with the error carried on


@pytest.mark.parametrize(
    ("side_px", "reach_px", "first", "windows"),
    [
        (168, 72, 96, 1),  # centred
        (264, 72, 24, 4),  # nine if centred
        (264, 0, 48, 1),  # centred
        (672, 0, -312, 4),  # nine if centred
    ],
)
def test_images_touch_as_few_windows_as_possible(side_px, reach_px, first, windows):
    lattice = Lattice(480, 384, 48, 24)
    assert product.first_of(lattice, side_px, reach_px) == first
    touched = {
        row: len(lattice.cells_touching(Window(row, row, side_px, side_px).pad(reach_px)))
        for row in range(-384, 385, 24)
    }
    assert touched[first] == windows == min(touched.values())


def test_every_consistency_is_judged_at_the_same_place(lite, monkeypatch):
    placed = []
    monkeypatch.setattr(product, "super_resolve", lambda native, window, *_: placed.append(window) or 1 / 0)
    for consistency in ("none", "box", "sensor"):
        with pytest.raises(ZeroDivisionError):
            product.of_rgb(rgb(64, 64), lite, Way(consistency=consistency))
    assert len(set(placed)) == 1


def test_the_contract_is_that_of_the_store(plain):
    image = rgb(24, 24)
    found = product.of_rgb(image, plain, Way(consistency="box"))
    means = baselines.box(found.rho[None].double())[0]
    assert float((means - torch.from_numpy(image)).abs().max()) <= 1.01e-4
    assert not torch.equal(product.of_rgb(image, plain).rho, found.rho)


@pytest.mark.slow
def test_estimates_are_those_of_a_run(lite):
    pair = Pair("town", 3, torch.zeros(1, 3, 64, 64), torch.from_numpy(rgb(16, 16))[None])
    mean, draw = product.of_pair(pair, lite), product.of_pair(pair, lite, Way("sample"))
    assert set(np.unique(mean.quality)) == {masks.QUALITY_GENERATED}
    assert draw.rho.std() > mean.rho.std()
    other = Pair("town", 4, pair.hr, pair.lr)
    assert not torch.equal(draw.rho, product.of_pair(other, lite, Way("sample")).rho)
    two = product.of_pair(pair, lite, Way(members=2))
    assert two.spread is not None
    assert float(two.spread.mean()) > 0
    assert str(Way(members=2)) == "mean of 2, sensor"


def test_a_cloud_gets_no_detail_as_in_a_run(lite):
    found = product.of_rgb(rgb(48, 48, level=0.8), lite)
    assert set(np.unique(found.quality)) == {masks.QUALITY_MEASURED}


def test_all_bands_come_from_their_own_grids(plain):
    dn = {gsd: np.full((len(names), 360 // gsd, 360 // gsd), 1000 + gsd, np.uint16) for gsd, names in BANDS.items()}
    found = product.store(dn, BANDS, plain, Way().options(plain), BAND_NAMES)
    assert found.rho.shape == (12, 144, 144)
    for gsd, names in BANDS.items():
        for name in names:
            assert float((found.rho[BAND_NAMES.index(name)] - gsd * 1e-4).abs().max()) < 1e-6
