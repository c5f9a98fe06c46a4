"""Runs of the wavelet cascade with small scrambled weights: all bands, finer groups by passes, their means, resume."""

import json

import numpy as np
import pytest
import torch

import pipeline
from pipeline import check
from pipeline.models.bundle import LatticeSpec, save_bundle
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet_network import WaveletNetwork
from pipeline.run import main
from tests.models.small import write_lite
from tests.models.test_wavediffur import TINY
from tests.running.conftest import LEFT, TOP, box, chunk_digests, write_aoi

BANDS = ("B04", "B03", "B02", "B08")
FINEST_M = {2: 2.5, 4: 2.5, 16: 0.625}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("weights")
    _, fusion = write_lite(folder)
    network = WaveletNetwork(**TINY, bands=len(BANDS))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    bundle = replace(wavediffur_bundle(TINY, BANDS), lattice=LatticeSpec(192, 128, 32, 16))
    save_bundle(folder / "wavediffur.safetensors", bundle, network.state_dict())
    return ("--weights", str(folder / "wavediffur.safetensors"), "--weights", f"fusion={fusion}")


@pytest.fixture(params=FINEST_M, scope="module")
def scale(request):
    return request.param


@pytest.fixture(scope="module")
def words(scale, weights, archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aoi")
    aoi = write_aoi(folder / "region.geojson", box(LEFT + 700, TOP - 1100, LEFT + 1000, TOP - 890))
    more = ("--sr", "wavediffur", "--option", f"scale={scale}", "--start", "2024-01-01", "--end", "2024-12-31")
    return ("--aoi", str(aoi), "--catalog", str(archive), "--max-cloud", "100", "--chunk-px", "96", *weights, *more)


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    store = tmp_path_factory.mktemp("finished") / "whole.zarr"
    assert main([*words, "--unit-chunks", "2", "--out", str(store), "--cluster", "inline"]) == 0
    return store


def test_all_bands_and_every_finer_group(scale, finished, capsys):
    assert check.main([str(finished), "--verify", "full"]) == 0
    above = pipeline.open_store(finished)
    assert len(above.band) == 12
    assert set(BANDS) <= set(json.loads((finished / "zarr.json").read_text())["attributes"]["generated_bands"])
    gsd_m = 2.5
    while gsd_m > FINEST_M[scale]:
        gsd_m /= 2
        fine = pipeline.open_store(finished, gsd_m=gsd_m)
        assert set(fine.band.values) == set(BANDS)
        means = fine.reflectance.coarsen(y=2, x=2).mean().values
        there = np.isfinite(means)  # the groups above also cover what finer levels read around the area
        assert there.mean() > 0.005
        assert np.abs(means - above.reflectance.sel(band=fine.band).values)[there].max() < 1e-6
        assert float(fine.reflectance.std()) > 0
        above = fine
    capsys.readouterr()


@pytest.mark.slow
def test_chunks_do_not_show(words, finished, tmp_path):
    other = tmp_path / "other.zarr"
    assert main([*words, "--unit-chunks", "5", "--out", str(other), "--cluster", "inline"]) == 0
    assert chunk_digests(other) == chunk_digests(finished)


@pytest.mark.parametrize("wrong", ["3", "256", "1", "four"])
def test_scales_that_are_no_power_of_two_are_refused(wrong, weights, archive, tmp_path, capsys):
    aoi = write_aoi(tmp_path / "region.geojson", box(LEFT + 700, TOP - 1100, LEFT + 1000, TOP - 890))
    words = ("--aoi", str(aoi), "--catalog", str(archive), *weights, "--sr", "wavediffur", "--option", f"scale={wrong}")
    assert main([*words, "--out", str(tmp_path / "x.zarr")]) == 2
    assert "scale=" in capsys.readouterr().err
    assert not (tmp_path / "x.zarr").exists()
