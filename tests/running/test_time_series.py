"""Time series: one step per date or per month, from a stack of seven real dates and from scenes made here."""

import json

import numpy as np
import pytest
import rasterio
import xarray as xr

import pipeline
from pipeline.aoi.aoi import read_aoi
from pipeline.archive.local.scan import scan
from pipeline.archive.stac.index_file import write_index
from pipeline.archive.stack import Stack, native, split_stack
from pipeline.archive.stack import main as split_command
from pipeline.bands import BAND_NAMES
from pipeline.errors import NoDataError, UsageError
from pipeline.planning.planner import absent_bands, make_plan
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, config_for, run, write_aoi

DATES = ("2018-04-29", "2018-05-13", "2018-07-08", "2018-08-15", "2018-09-15", "2018-10-15", "2018-11-15")
LAYERS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
TEN = tuple(name for name in BAND_NAMES if name in LAYERS)
FILE = "s2_l2a/theia_bouconne_7dates/2018_3A_Theia_Bouconne.tif"
WEST, NORTH = 356040, 4835680  # upper left corner of the file, 40 m north of whole 60 m pixels
SIDE_M = 240
COLS, ROWS = slice(60, 60 + SIDE_M // 10), slice(64, 64 + SIDE_M // 10)  # of the file


@pytest.fixture(scope="module")
def seven(shared_data, tmp_path_factory):
    """(index, AOI, file): the stack split into seven scenes and indexed, and a square of whole 60 m pixels in it."""
    folder = tmp_path_factory.mktemp("seven")
    file = shared_data / FILE
    ids = split_stack(Stack(file, LAYERS, DATES), folder / "scenes")
    assert ids == tuple(f"2018_3A_Theia_Bouconne_{date}" for date in DATES)
    scenes, notes = scan(folder / "scenes")
    assert [scene.datetime_utc[:10] for scene in scenes] == list(DATES)
    assert {scene.offset.offset_dn for scene in scenes} == {-1000}
    assert len(notes) == 7
    assert all(note.endswith("without B01, B09") for note in notes)
    write_index(scenes, folder / "archive.json")
    left, top = WEST + 600, NORTH - 640
    corners = box(left + 5, top - SIDE_M + 5, left + SIDE_M - 5, top - 5)
    return folder / "archive.json", write_aoi(folder / "aoi.geojson", corners, 32631), file


@pytest.fixture(scope="module")
def series(seven, tmp_path_factory):
    """The store of the seven dates, each its own time step."""
    index, aoi, _ = seven
    store = tmp_path_factory.mktemp("series") / "out.zarr"
    run(config_for(index, composite="none", bands=TEN, consistency="box"), aoi, store)
    return store


@pytest.mark.shared_data
def test_seven_dates_make_seven_steps_of_ten_bands(series):
    ds = pipeline.open_store(series)
    assert [str(moment)[:10] for moment in ds.time.values] == list(DATES)
    assert tuple(ds.band.values) == TEN
    assert ds.native_gsd_m.values.tolist() == [10, 10, 10, 20, 20, 20, 10, 20, 20, 20]
    assert bool(ds.reflectance.notnull().all()), "bands that there are not are absent, and no band is empty"
    assert "not in the store: B01, B09, which --bands leaves out and no scene has" in json.loads(ds.attrs["notes"])
    with pytest.raises(KeyError):
        ds.reflectance.sel(band="B01")
    with pytest.raises(UsageError, match="no such index: b01"):
        pipeline.indices(ds, "b01")


@pytest.mark.shared_data
def test_ndvi_profile_at_2p5m_is_that_of_the_measured_pixels(series, seven):
    """The file is read by rasterio alone: layer numbers and DN as its authors give them."""
    ds = pipeline.open_store(series)
    means = ds.reflectance.sel(band=["B04", "B08"]).coarsen(y=4, x=4).mean()
    profile = pipeline.indices(means.to_dataset(name="reflectance"), "ndvi").mean(("y", "x")).values
    with rasterio.open(seven[2]) as dataset:
        whole = dataset.read().astype(float).reshape(7, 10, dataset.height, dataset.width)[:, :, ROWS, COLS]
    red, nir = whole[:, LAYERS.index("B04")], whole[:, LAYERS.index("B08")]
    measured = ((nir - red) / (nir + red)).mean((1, 2))
    assert measured.max() - measured.min() > 0.1, "seasons"
    # half a DN of rounding in each band, over sums of at least 400 DN
    assert np.abs(profile - measured).max() < 2e-3
    at_full = pipeline.indices(ds, "ndvi").mean(("y", "x")).values
    assert np.abs(at_full - measured).max() < 0.01, "a mean of ratios is not the ratio of means, but close"


@pytest.mark.shared_data
def test_twenty_metre_bands_come_back_exactly(series, seven):
    ds = pipeline.open_store(series)
    means = (ds.reflectance.sel(band="B11").coarsen(y=8, x=8).mean() * 1e4).values
    with rasterio.open(seven[2]) as dataset:
        layers = [1 + 10 * date + LAYERS.index("B11") for date in range(7)]
        stored = dataset.read(layers)[:, ROWS, COLS][:, ::2, ::2]
    assert np.abs(means - stored).max() <= 0.5


@pytest.mark.shared_data
def test_without_bands_the_cure_names_those_there_are(seven):
    index, aoi, _ = seven
    with pytest.raises(NoDataError, match="bands B01, B09 are missing") as caught:
        make_plan(config_for(index, composite="none"), read_aoi(str(aoi)))
    assert caught.value.cure == "request the available bands: --bands B02,B03,B04,B05,B06,B07,B08,B8A,B11,B12"


def test_absent_bands_say_why(tmp_path):
    bands = tuple(name for name in BAND_NAMES if name != "B09")
    scene = make_scene(tmp_path, scene_id="S2A_A", size_m=120, bands=bands)
    found = absent_bands(tuple(name for name in bands if name != "B12"), {scene.id: scene})
    assert found == {"B09": "no scene has it", "B12": "left out by --bands"}
    assert absent_bands(BAND_NAMES, {scene.id: scene}) == {}


@pytest.fixture(scope="module")
def five_scenes(tmp_path_factory):
    """Three dates in June and two in July of one flat place, their B04 known; the third of June is cloudy."""
    folder = tmp_path_factory.mktemp("five")
    scenes = []
    for date, seed, cloud in (
        ("2024-06-02", 1, 0.0), ("2024-06-12", 2, 0.0), ("2024-06-22", 3, 1.0), ("2024-07-02", 4, 0.0),
        ("2024-07-12", 5, 0.0),
    ):  # fmt: skip
        scenes.append(
            make_scene(folder, scene_id=f"S2A_{date}", seed=seed, size_m=360, date=f"{date}T10:20:31Z",
                       scl=np.full((18, 18), 9 if cloud else 4, np.uint8), cloud_pct=100 * cloud, bands=("B04",))
        )  # fmt: skip
    aoi = write_aoi(folder / "aoi.geojson", box(LEFT + 65, TOP - 235, LEFT + 235, TOP - 65))
    return make_archive(folder, scenes), aoi, scenes


def b04(scene):
    """DN of the house convention over the AOI's 60 m cells, from the scene's file."""
    with rasterio.open(scene.hrefs["B04"]) as dataset:
        return dataset.read(1)[6:24, 6:24].astype(int) + 1000


def test_monthly_medians_by_hand(five_scenes, tmp_path):
    index, aoi, scenes = five_scenes
    store = tmp_path / "monthly.zarr"
    plan, _ = run(config_for(index, composite="monthly", bands=("B04",), consistency="box"), aoi, store)
    assert [period.label for period in plan.zones[0].periods] == ["2024-06", "2024-07"]
    ds = pipeline.open_store(store)
    assert [str(moment)[:10] for moment in ds.time.values] == ["2024-06-01", "2024-07-01"]
    assert json.loads(ds.attrs["periods"])[0]["composite"] == "median"
    assert ds.sel(time="2024-07").sizes["time"] == 1
    means = (ds.reflectance.sel(band="B04").coarsen(y=4, x=4).mean() * 1e4 + 1000).values
    june = (b04(scenes[0]) + b04(scenes[1]) + 1) // 2  # the cloudy date does not count; half up
    july = (b04(scenes[3]) + b04(scenes[4]) + 1) // 2
    assert np.abs(means - np.stack([june, july])).max() <= 0.51
    assert np.abs(june - july).max() > 50


def test_a_month_does_not_depend_on_the_range_asked_for(five_scenes, tmp_path):
    index, aoi, _ = five_scenes
    stores = tmp_path / "both.zarr", tmp_path / "july.zarr"
    run(config_for(index, composite="monthly", bands=("B04",)), aoi, stores[0])
    run(config_for(index, composite="monthly", bands=("B04",), start="2024-07-01"), aoi, stores[1])
    both, july = (pipeline.open_store(store).reflectance for store in stores)
    xr.testing.assert_equal(both.sel(time="2024-07"), july)


# --- stacks


def write_stack(path, images, left=600000, top=5100000, dtype="int16", nodata=None, gsd=10.0, epsg=32632):
    """(layer, y, x) as one GeoTIFF."""
    with rasterio.open(
        path, "w", driver="GTiff", count=len(images), height=images.shape[1], width=images.shape[2], dtype=dtype,
        crs=f"EPSG:{epsg}", transform=rasterio.Affine(gsd, 0, left, 0, -gsd, top), nodata=nodata,
    ) as dataset:  # fmt: skip
        dataset.write(images.astype(dtype))
    return path


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1), dataset.transform.c, dataset.transform.f, dataset.transform.a


def test_split_gives_native_pixels_negatives_and_nodata(tmp_path):
    """Origin 10 m off the 20 m grid: the first row and column of copies are cut off; -10000 is nodata."""
    rng = np.random.default_rng(3)
    red = rng.integers(-200, 4000, (2, 7, 7))
    red[0, 2, 3] = -10000
    coarse = rng.integers(-200, 4000, (2, 4, 4))
    swir = coarse.repeat(2, 1).repeat(2, 2)[:, 1:, 1:]
    file = write_stack(tmp_path / "two.tif", np.stack([red[0], swir[0], red[1], swir[1]]), left=600010, top=5100010)
    stack = Stack(file, ("B04", "B11"), ("2018-04-29", "2018-05-13T10:30:00Z"), nodata=-10000)
    assert split_stack(stack, tmp_path / "out") == ("two_2018-04-29", "two_2018-05-13")
    for date, scene in enumerate(sorted((tmp_path / "out").iterdir())):
        dn, left, top, gsd = read(scene / "B04.tif")
        assert (left, top, gsd) == (600010, 5100010, 10)
        expected = red[date] + 1000
        expected[red[date] == -10000] = 0
        assert np.array_equal(dn, expected)
        dn, left, top, gsd = read(scene / "B11.tif")
        assert (left, top, gsd) == (600020, 5100000, 20)
        assert np.array_equal(dn, coarse[date, 1:, 1:] + 1000)
    moment = json.loads((scene / "item.json").read_text())["properties"]["datetime"]
    assert moment == "2018-05-13T10:30:00Z"


def test_split_reads_reflectance_in_any_scale(tmp_path):
    rho = np.array([[[-0.02, 0.0, 0.5, np.nan]] * 2])
    file = write_stack(tmp_path / "rho.tif", (rho - 0.1) / 0.5, dtype="float32")
    split_stack(Stack(file, ("B08",), ("2024-06-17",), scale=0.5, offset=0.1), tmp_path / "out")
    dn = read(tmp_path / "out" / "rho_2024-06-17" / "B08.tif")[0]
    assert dn[0].tolist() == [800, 1000, 6000, 0]


def test_interpolated_bands_are_refused_and_nothing_is_left(tmp_path):
    ramp = np.arange(36).reshape(1, 6, 6)
    file = write_stack(tmp_path / "ramp.tif", ramp)
    with pytest.raises(UsageError, match="B11 of .* is not made of 20 m pixels: 9 of 9 cells") as caught:
        split_stack(Stack(file, ("B11",), ("2024-06-17",)), tmp_path / "out")
    assert "leave the band out" in caught.value.cure
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ramp.tif"]


def test_native_undoes_copies_and_only_copies():
    coarse = np.arange(6).reshape(2, 3)
    copies = coarse.repeat(6, 0).repeat(6, 1)
    assert np.array_equal(native(copies, 6, 0, 0), coarse)
    assert np.array_equal(native(np.pad(copies, ((2, 3), (1, 0))), 6, 2, 1), coarse)
    copies[11, 17] += 1
    with pytest.raises(ValueError, match="1 of 6 cells"):
        native(copies, 6, 0, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bands": ("B04", "B08", "B03")}, "holds 2 layers; expected 3: 3 bands of 1 dates"),
        ({"bands": ("B04", "B04")}, "bands B04, B04; expected each once"),
        ({"bands": ("B04", "nir")}, "bands B04, nir; expected each once, of B01, B02"),
        ({"datetimes_utc": ("2024-06-17", "17.6.2024"), "bands": ("B04",)}, "datetime '17.6.2024' cannot be read"),
        ({"datetimes_utc": ("2024-06-17", "2024-06-17T10:00"), "bands": ("B04",)}, "one layer per band and day"),
        ({"scale": 0.0}, "scale 0; expected a positive number"),
    ],
)
def test_wrong_words_about_a_stack(tmp_path, change, says):
    file = write_stack(tmp_path / "two.tif", np.ones((2, 6, 6)))
    with pytest.raises(UsageError, match=says):
        split_stack(
            Stack(**{"path": file, "bands": ("B04", "B08"), "datetimes_utc": ("2024-06-17",)} | change),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "says"), [({"gsd": 20.0}, "pixels of 10 m"), ({"epsg": 3035}, "a UTM zone")])
def test_wrong_grids_of_a_stack(tmp_path, more, says):
    file = write_stack(tmp_path / "wrong.tif", np.ones((1, 6, 6)), **more)
    with pytest.raises(UsageError, match=says):
        split_stack(Stack(file, ("B04",), ("2024-06-17",)), tmp_path / "out")


def test_command_splits_and_refuses_in_one_line(tmp_path, capsys):
    file = write_stack(tmp_path / "two.tif", np.ones((2, 6, 6)))
    words = [str(file), "--bands", "B04, B08", "--dates", "2024-06-17", "--out", str(tmp_path / "out")]
    assert split_command(words) == 0
    assert "two_2024-06-17\n1 scenes in" in capsys.readouterr().out
    assert split_command(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "exists; expected a new folder" in said
    assert said.count("\n") == 1
