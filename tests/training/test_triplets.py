"""Stores of triplets: sharp and coarse images and maps, written from images and a vector file, and read in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import shapely.affinity
import torch
import zarr

from pipeline.bands import RGB
from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle
from tests.conditions.made_up import vector
from tests.models.sgdm_small import write_prior
from tests.training.imagery import corner_in, placed, texture, write_raster
from tests.training.sgdm_for_tests import know, presets
from training import triplets
from training.data.rasters import harmonise, median_gamma
from training.data.sources import load_training_file
from training.data.triplets import CLASSES, numbered, one_hot
from training.degradation.degrade import Degradation, degrade
from training.loop.batches import Draw
from training.tasks.sgdm import MapGuidance

GSD_M = 1.25
SIDE_PX = 64
CREDIT = "City of Example, CC BY 4.0"
EPSG = 32632


def town(folder, count=3):
    """Images on the grid of the zone, two to train on and one held out, and a map with a lake and houses on each."""
    rows = []
    for number, split in enumerate(("train", "train", "held-out")[:count]):
        left, top = corner_in(split, number)
        left, top = left + 1000, top - 1000
        pixels = texture(2 * SIDE_PX, 2 * SIDE_PX, number)
        write_raster(folder / "hr" / f"{number}.tif", pixels, **placed(left, top, GSD_M))
        box = shapely.box(left, top - 40 * GSD_M, left + 40 * GSD_M, top)
        rows += [
            (box, {"class": "water"}),
            (shapely.affinity.translate(box, 50, -50), {"class": "building"}),
        ]
    vector(folder / "map.gpkg", rows, crs=f"EPSG:{EPSG}")
    (folder / "map.gpkg.license").write_text(CREDIT)
    return folder


def command(folder, *more, out="t.zarr"):
    return [
        "--hr", str(folder / "hr" / "*.tif"), "--map", str(folder / "map.gpkg"), "--side", str(SIDE_PX),
        "--out", str(folder / out), *more,
    ]  # fmt: skip


def training_file(folder, more=""):
    path = folder / "t.toml"
    path.write_text(
        f'name = "t"\nlicence = "ours"\n\n[[source]]\nname = "t"\nrole = "triplets"\nzarr = "t.zarr"\n{more}'
    )
    return path


@pytest.fixture
def store(tmp_path):
    town(tmp_path)
    assert triplets.main(command(tmp_path, "--licence", "imagery: public domain")) == 0
    return tmp_path


def test_chips_hold_the_image_its_coarse_form_and_the_map(store):
    group = zarr.open_group(str(store / "t.zarr"), mode="r")
    assert group["sharp"].shape == (12, 3, SIDE_PX, SIDE_PX)
    assert group["coarse"].shape == (12, 3, SIDE_PX // 8, SIDE_PX // 8)
    first = texture(2 * SIDE_PX, 2 * SIDE_PX, 0)[:, :SIDE_PX, :SIDE_PX]
    expected = harmonise(first.astype(np.float32) / 255, median_gamma(RGB))
    sharp = group["sharp"][0] / 1e4
    assert np.abs(sharp - expected).max() < 1e-3  # on the same grid: nothing is resampled
    again = degrade(torch.from_numpy(sharp).float()[None], replace(Degradation().of_scale(8), noise=0))
    assert np.abs(group["coarse"][0] / 1e4 - again[0].numpy()).max() < 0.006  # noise of 0.001
    of_map = group["map"][0]
    assert (of_map[:40, :40] == CLASSES.index("water") + 1).all()
    assert (of_map[40:, 40:] == CLASSES.index("building") + 1).all()
    assert not of_map[40:, :40].any()
    assert not of_map[:40, 40:].any()
    assert group.attrs["credit"] == CREDIT
    assert group.attrs["shown"]["water"] > 0
    assert group.attrs["shown"]["rail"] == 0
    left, top = corner_in("train", 0)
    assert (group["epsg"][0], group["left_m"][0], group["top_m"][0]) == (EPSG, left + 1000, top - 1000)


def test_patches_turn_with_their_maps(store):
    data = load_training_file(training_file(store), output_gsd_m=GSD_M, scale=8)
    sampler = data.hr_sampler("train", 32, 32, RGB)
    group = zarr.open_group(str(store / "t.zarr"), mode="r")
    patches = sampler.patches(np.random.default_rng(0), 12)
    assert len({(patch.turns, patch.mirrored) for patch in patches}) > 3
    for patch in patches:
        at = patch.address
        chip = sampler.images[at.image].reader.chip
        where = np.s_[at.y : at.y + 32, at.x : at.x + 32]
        assert np.array_equal(patch.of_map, patch.turned(group["map"][chip][where][None])[0])
        order = [
            int(np.abs(patch.turned(group["sharp"][chip][(k, *where)][None])[0] / 1e4 - patch.pixels[k]).max() < 1e-3)
            for k in range(3)
        ]
        assert order == [1, 1, 1]
        small = group["coarse"][chip][:, at.y // 8 : at.y // 8 + 4, at.x // 8 : at.x // 8 + 4]
        assert np.allclose(patch.coarse, patch.turned(small) / 1e4, atol=1e-6)


def test_guidance_learns_from_the_maps_of_the_store(store, monkeypatch):
    know(monkeypatch)
    data = load_training_file(training_file(store), output_gsd_m=GSD_M, scale=8)
    preset = replace(presets()["sgdm"], recipe={**presets()["sgdm"].recipe, "no_map": 0.0})
    task = MapGuidance(preset, data)
    task.begin_from(load_bundle(write_prior(store)))
    assert task.batches.classes == ("building", "water")
    batch = task.batch(Draw.seeded(0, 0))
    shown = {CLASSES[k] for k in batch["map"].amax((0, 2, 3)).nonzero().flatten().tolist()}
    assert shown <= {"building", "water"}
    assert shown
    assert all(one.pair.of_map is not None for one in task.watched)
    assert torch.equal(task.watched[0].of_map[0], torch.from_numpy(one_hot(task.watched[0].pair.of_map)).float())
    assert data.licence == f"ours; imagery: public domain; {CREDIT}"
    assert data.held_out_places()


def test_numbers_and_channels_are_the_same_map():
    numbers = np.array([[0, 1, 7], [3, 0, 5]], np.uint8)
    assert np.array_equal(numbered(one_hot(numbers).astype(np.float32)), numbers)
    assert one_hot(numbers).sum(0).tolist() == [[0, 1, 1], [1, 0, 1]]


def test_real_pairs_keep_their_coarse_image(tmp_path):
    left, top = corner_in("train", 0)
    left, top = left + 1000, top - 1000
    sharp = texture(256, 256, 0)
    write_raster(tmp_path / "hr" / "a.tif", sharp, **placed(left, top, GSD_M))
    reflectance = harmonise(sharp.astype(np.float32) / 255, median_gamma(RGB))
    coarse = degrade(torch.from_numpy(reflectance)[None], Degradation(noise=0.0).of_scale(8))[0].numpy()
    dn = np.round(1e4 * coarse).astype(np.uint16)
    write_raster(tmp_path / "hr" / "lr.tif", dn, **placed(left, top, 8 * GSD_M))
    vector(tmp_path / "map.gpkg", [(shapely.box(left, top - 100, left + 100, top), {"class": "wood"})])
    more = ["--lr", "s2", "--coarse", "lr.tif"]
    made = command(tmp_path, *more)
    made[1] = str(tmp_path / "hr" / "a.tif")
    assert triplets.main(made) == 0
    group = zarr.open_group(str(tmp_path / "t.zarr"), mode="r")
    assert group["sharp"].shape[0] == 16
    stored = [group["coarse"][k] for k in range(16)]
    expected = [dn[:, r : r + 8, c : c + 8] for r in range(0, 32, 8) for c in range(0, 32, 8)]
    assert all(any(np.abs(one.astype(int) - other).max() <= 1 for other in expected) for one in stored)
    assert (group["map"][0][:64, :64] == CLASSES.index("wood") + 1).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--scale", "7"], "a multiple of the scale"),
        (["--lr", "s2"], "--coarse with --lr s2"),
        (["--bands", "red,green"], "names of"),
        (["--side", "4096"], "no image holds a valid chip"),
    ],
)
def test_unfit_arguments_are_refused_and_leave_nothing(tmp_path, capsys, more, said):
    town(tmp_path, 1)
    assert triplets.main(command(tmp_path, *more)) != 0
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("t.zarr*"))


def test_a_map_of_other_ground_is_refused(tmp_path, capsys):
    town(tmp_path, 1)
    vector(tmp_path / "map.gpkg", [(shapely.box(0, 0, 10, 10), {"class": "water"})])
    assert triplets.main(command(tmp_path)) != 0
    assert "shows nothing on" in capsys.readouterr().err


def test_stores_that_do_not_fit_are_refused(store, capsys):
    with pytest.raises(UsageError, match="holds triplets of x8"):
        load_training_file(training_file(store), output_gsd_m=2.5, scale=4)
    assert triplets.main(command(store)) != 0
    assert "exists" in capsys.readouterr().err
    unfinished = zarr.open_group(str(store / "t.zarr"), mode="r+")
    del unfinished.attrs["shown"]
    triplets_cache_cleared()
    with pytest.raises(UsageError, match="no finished store"):
        load_training_file(training_file(store), output_gsd_m=GSD_M, scale=8)
    path = store / "p.toml"
    path.write_text('[[source]]\nname = "t"\nrole = "triplets"\npath = "hr"\n')
    with pytest.raises(UsageError, match="role triplets with path"):
        load_training_file(path)


def triplets_cache_cleared():
    from training.data import triplets as stores

    stores._opened.cache_clear()


# --- a real map without a network connection: another date, classified and drawn as polygons --------------------------

PRAIRIE = "hr/naip_prairie_5m"
OTHER_DATE, TEST_DATE = "20140720", "20170827"


def classified(path: Path, to: Path):
    """Polygons of open water (NDWI), green fields (NDVI) and large areas of either, of one date, as a GeoPackage."""
    from rasterio.features import shapes, sieve

    with rasterio.open(path) as file:
        red, green, _, infrared = file.read().astype(np.float32)
        transform, crs = file.transform, file.crs.to_string()
    wet = (green - infrared) / (green + infrared + 1) > 0.1
    vital = (infrared - red) / (infrared + red + 1) > 0.25
    classes = sieve(np.where(wet, 1, np.where(vital, 2, 0)).astype(np.uint8), 100)
    rows = []
    for geometry, value in shapes(classes, mask=classes > 0, transform=transform):
        outline = shapely.geometry.shape(geometry).simplify(7.5)
        if not outline.is_empty:
            rows.append((outline.buffer(0), {"class": {1: "water", 2: "farmland"}[int(value)]}))
    return vector(to, rows, crs=crs)


@pytest.mark.shared_data
@pytest.mark.slow
def test_the_map_of_one_date_guides_images_of_another(shared_data, tmp_path):
    images = {date: next((shared_data / PRAIRIE).glob(f"*{date}*.tif")) for date in (OTHER_DATE, TEST_DATE)}
    classified(images[OTHER_DATE], tmp_path / "map.gpkg")
    given = ["--hr", str(images[TEST_DATE]), "--map", str(tmp_path / "map.gpkg"), "--bands", "B04,B03,B02,B08"]
    assert triplets.main([*given, "--scale", "2", "--side", "128", "--out", str(tmp_path / "t.zarr")]) == 0
    group = zarr.open_group(str(tmp_path / "t.zarr"), mode="r")
    of_map, sharp = group["map"][:], group["sharp"][:] / 1e4
    assert len(of_map) >= 20
    ndwi = (sharp[:, 1] - sharp[:, 3]) / (sharp[:, 1] + sharp[:, 3] + 1e-3)
    water = of_map == CLASSES.index("water") + 1
    fields = of_map == CLASSES.index("farmland") + 1
    assert water.mean() > 0.01
    assert fields.mean() > 0.05
    # the map lies where the other date shows the same ground
    assert np.median(ndwi[water]) > np.median(ndwi[fields]) + 0.3
