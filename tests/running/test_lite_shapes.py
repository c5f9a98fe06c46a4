"""Runs of `lite` with weights of other bands and scales than the shipped ones."""

import json

import numpy as np
import pytest

import pipeline
from pipeline import check
from pipeline.run import main
from tests.models.small import write_lite
from tests.running.conftest import LEFT, TOP, box, chunk_digests, write_aoi

RGB, RGBN = ("B04", "B03", "B02"), ("B04", "B03", "B02", "B08")
SHAPES = {"RGBN x4": (RGBN, 4), "RGB x2": (RGB, 2), "RGB x8": (RGB, 8)}


@pytest.fixture(params=SHAPES, scope="module")
def shape(request):
    return SHAPES[request.param]


@pytest.fixture(scope="module")
def words(shape, archive, tmp_path_factory):
    """Arguments of a run, but its store and chunks."""
    folder = tmp_path_factory.mktemp("shape")
    sr, fusion = write_lite(folder, *shape)
    aoi = write_aoi(folder / "region.geojson", box(LEFT + 700, TOP - 1300, LEFT + 1390, TOP - 890))
    weights = ("--weights", str(sr), "--weights", f"fusion={fusion}", "--start", "2024-01-01", "--end", "2024-12-31")
    return ("--aoi", str(aoi), "--catalog", str(archive), "--max-cloud", "100", "--chunk-px", "96", *weights)


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """A store of the shape; for reading only."""
    store = tmp_path_factory.mktemp("finished") / "whole.zarr"
    assert main([*words, "--unit-chunks", "2", "--out", str(store), "--cluster", "inline"]) == 0
    return store


@pytest.mark.slow
def test_all_bands_are_made_and_sound(shape, finished, capsys):
    bands, scale = shape
    assert check.main([str(finished), "--verify", "full"]) == 0
    dataset = pipeline.open_store(finished)
    assert len(dataset.band) == 12
    assert int((dataset.quality == 3).sum()) > 0
    if scale == 8:
        fine = pipeline.open_store(finished, gsd_m=1.25)
        assert set(fine.band.values) == set(bands)
        both = (fine.reflectance, dataset.reflectance.sel(band=fine.band))
        means = both[0].coarsen(y=2, x=2).mean().values
        np.testing.assert_allclose(means, both[1].values, atol=1.1e-4)
    attributes = json.loads((finished / "zarr.json").read_text())["attributes"]
    assert set(bands) <= set(attributes["generated_bands"])
    capsys.readouterr()


@pytest.mark.slow
def test_chunks_do_not_show(words, finished, tmp_path):
    other = tmp_path / "other.zarr"
    assert main([*words, "--unit-chunks", "5", "--out", str(other), "--cluster", "inline"]) == 0
    assert chunk_digests(other) == chunk_digests(finished)


@pytest.mark.slow
def test_draws_follow_the_seed(shape, words, tmp_path):
    values = []
    for seed in ("1", "2"):
        store = tmp_path / f"{seed}.zarr"
        more = ("--estimate", "sample", "--seed", seed, "--out", str(store), "--cluster", "inline")
        assert main([*words, "--unit-chunks", "4", *more]) == 0
        values.append(pipeline.open_store(store).reflectance.sel(band=list(shape[0])).values)
    assert np.nanmean(np.abs(values[0] - values[1])) > 1e-4
