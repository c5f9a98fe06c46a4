"""Windows that fit one image: one of each stage, with the same pixels as in the windows of a run."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.bands import RGB
from pipeline.grid.grid import Window
from pipeline.models.bundle import LatticeSpec, save_bundle
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet_network import WaveletNetwork
from pipeline.superres.chain import cells_by_group, groups_of
from pipeline.superres.system import load
from pipeline.superres.weights import choose, stages_of
from tests.models.test_wavediffur import TINY
from training.quality import product
from training.quality.fitted_windows import fitted
from training.quality.product import Way

REACH_PX = 72


@pytest.mark.parametrize("side_px", [72, 120, 264, 528])
def test_every_stage_runs_one_window_that_holds_the_image(side_px):
    stages = stages_of(choose("wavediffur"))
    found, first = fitted(stages, RGB, side_px, REACH_PX)
    image = Window(first, first, side_px, side_px).pad(REACH_PX)
    cells = cells_by_group(groups_of(found, RGB), [image])
    assert [len(of_group) for of_group in cells] == [1, 1]
    for before, after in zip(stages, found, strict=True):
        if after.name == "fusion":
            assert after == before
            continue
        assert after.lattice.reach_px == before.lattice.reach_px
        assert after.lattice.stride_px % 64 == 0  # squares of attention nest
    level = groups_of(found, RGB)[-1]
    assert level.lattice.support(*cells[-1][0]).union(image) == level.lattice.support(*cells[-1][0])


def test_small_images_cost_a_quarter_of_what_they_cost_in_windows_of_a_run():
    stages = stages_of(choose("wavediffur"))

    def computed_px(stages, first):
        groups = groups_of(stages, RGB)
        cells = cells_by_group(groups, [Window(first, first, 72, 72).pad(REACH_PX)])
        return sum(len(of) * group.lattice.window_px**2 for of, group in zip(cells, groups, strict=True))

    found, first = fitted(stages, RGB, 72, REACH_PX)
    placed = product.first_of(groups_of(stages, RGB)[0].lattice, 72, REACH_PX)
    assert computed_px(found, first) < computed_px(stages, placed) / 3.5


def test_small_latent_diffusion_runs_in_windows_that_fit_its_four_bands():
    stages = stages_of(choose("ldsr"))
    found, _ = fitted(stages, (*RGB, "B08"), 72, REACH_PX)
    (before,), (after,) = ([stage for stage in of if stage.name == "sr"] for of in (stages, found))
    assert after.lattice.window_px < before.lattice.window_px
    assert after.lattice.stride_px % 16 == 0  # the cells of 4 coarse px by which a fixed pattern is removed
    assert fitted(stages, (*RGB, "B11"), 72, REACH_PX) is None


def test_other_systems_keep_their_windows():
    assert fitted(stages_of(choose("lite")), RGB, 72, REACH_PX) is None
    assert fitted(stages_of(choose("wavediffur")), (*RGB, "B08"), 72, REACH_PX) is None  # the fusion is not local
    assert fitted((), RGB, 72, REACH_PX) is None


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A cascade by a scrambled network, whose pixels all depend on their surroundings."""
    import torch

    network = WaveletNetwork(**TINY, bands=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "wavediffur.safetensors"
    bundle = replace(wavediffur_bundle(TINY, RGB), lattice=LatticeSpec(384, 256, 64, 32))
    save_bundle(path, bundle, network.state_dict())
    return load(choose("wavediffur", (str(path),)), "cpu")


def test_pixels_are_those_of_the_windows_of_a_run(system, monkeypatch):
    image = (0.2 + 0.1 * np.random.default_rng(0).random((3, 16, 16))).astype(np.float32)
    found = product.of_rgb(image, system, Way(consistency="box"))
    _, first = fitted(system.stages, RGB, 72, REACH_PX)
    monkeypatch.setattr(product, "fitted", lambda *_: None)
    monkeypatch.setattr(product, "first_of", lambda *_: first)  # the same place, so that squares of attention agree
    expected = product.of_rgb(image, system, Way(consistency="box"))
    assert float((found.rho - expected.rho).abs().max()) <= 1.01e-4  # one DN: rounding carries its error on
    assert float((found.rho - expected.rho).abs().mean()) < 2e-5
