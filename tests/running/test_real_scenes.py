"""Block means on real scenes: what is stored, averaged over each native pixel, is what the files hold.

The files are read here by rasterio alone, placed by their own geotransform and the store's coordinates, and turned into
reflectance by the formula of the products, so that nothing of the archive station judges itself. The decimated tile is
not among the scenes: it has no band at its native resolution.
"""

import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr

from pipeline.archive.local.scan import scan
from pipeline.archive.stac.index_file import write_index
from pipeline.bands import BAND_NAMES
from pipeline.running import driver
from tests.running.conftest import box, config_for, run, values, write_aoi

pytestmark = pytest.mark.shared_data

GSD_M = {name: 10 for name in ("B02", "B03", "B04", "B08")} | {"B01": 60, "B09": 60}
PATCHES = (
    "S2A_MSIL2A_20170613T101031_87_48",
    "S2A_MSIL2A_20170617T113321_36_85",
    "S2A_MSIL2A_20180510T94033_19_86",
    "S2B_MSIL2A_20170914T093029_32_39",
    "S2B_MSIL2A_20170924T093019_43_47",
    "S2B_MSIL2A_20170924T93021_41_29",
    "S2B_MSIL2A_20180204T94161_57_38",
    "S2B_MSIL2A_20180421T114349_41_4",
    "S2B_MSIL2A_20180502T093039_43_14",
)
BRIGHT, HALF_SNOW, CLEAR = PATCHES[6], PATCHES[2], PATCHES[3]
MAJORTOM = {"282D_485L_3_3": 0, "433D_629L_3_1": -1000, "609U_541L_3_0": 0}
THEIA_BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
VIENNA_BANDS = ("B04", "B03", "B02", "B08")
CROSSING_M = (-270, 20)  # where, from the middle of the CLEAR patch, four lattice windows meet


@dataclass(frozen=True)
class Source:
    """One scene as files: its folder, the bands to be made, and the offset that its DN still carry."""

    folder: Path
    offset_dn: int = 0
    when: str | None = None
    only: tuple[str, ...] = ()
    files: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self):
        for path in sorted(self.folder.glob("*")):
            named = re.search(r"(?:^|_)B(\d{1,2})(A?)(?:_60m)?\.(?:tif|jp2)$", path.name)
            band = named and (f"B{named[1]}A" if named[2] else f"B{int(named[1]):02d}")
            if band and (not self.only or band in self.only):
                self.files[band] = path

    @property
    def bands(self):
        return tuple(name for name in BAND_NAMES if name in self.files)

    def bounds(self):
        """Left, bottom, right, top of the ground that all bands cover, in metres; EPSG code."""
        covered = []
        for path in self.files.values():
            with rasterio.open(path) as dataset:
                covered.append(dataset.bounds)
                epsg = dataset.crs.to_epsg()
        left, bottom, right, top = zip(*covered, strict=True)
        return (max(left), max(bottom), min(right), min(top)), epsg


def native_m(band):
    return GSD_M.get(band, 20)


def make(source, folder, *, sr="bicubic", ground=None, name="out", **more):
    """Run the pipeline over `ground` (left, bottom, right, top; default: all but the outermost 5 m)."""
    scenes, _ = scan(source.folder, datetime_utc=source.when, offset_dn=source.offset_dn if source.when else None)
    index = folder / "index.json"
    write_index(scenes, index)
    bounds, epsg = source.bounds()
    left, bottom, right, top = ground or (bounds[0] + 5, bounds[1] + 5, bounds[2] - 5, bounds[3] - 5)
    aoi = write_aoi(folder / f"{name}.geojson", box(left, bottom, right, top), epsg)
    settings = {"sr": sr, "bands": source.bands, "chunk_px": 480, "unit_chunks": 4, "consistency": "box"}
    settings |= more.pop("settings", {})
    store = folder / f"{name}.zarr"
    plan, _ = run(config_for(index, **settings), aoi, store, **more)
    assert [zone.epsg for zone in plan.zones] == [epsg]
    return store


def centre(source, size_m, east_m=0, north_m=0):
    """A square of `size_m` in the middle of the scene, moved by so much."""
    (left, bottom, right, top), _ = source.bounds()
    x, y = (left + right) / 2 + east_m, (bottom + top) / 2 + north_m
    return (x - size_m / 2, y - size_m / 2, x + size_m / 2, y + size_m / 2)


def stored_reflectance(store):
    """(reflectance (band, y, x) with NaN for nodata, by the store's own attributes; left, top of the first pixel)."""
    group = zarr.open_group(store, mode="r")
    array = group["reflectance"]
    dn = np.asarray(array[0])
    rho = dn * float(array.attrs["scale_factor"]) + float(array.attrs["add_offset"])
    rho[dn == 0] = np.nan
    return rho, float(group["x"][0]) - 1.25, float(group["y"][0]) + 1.25


def read_natively(path, gsd_m, left, top, shape, offset_dn):
    """Reflectance (y, x) of a file over the store's ground, NaN where the file holds 0 or ends."""
    with rasterio.open(path) as dataset:
        whole, transform = dataset.read(1), dataset.transform
    assert (transform.a, transform.e) == (gsd_m, -gsd_m)
    col, row = (left - transform.c) / gsd_m, (transform.f - top) / gsd_m
    assert col == pytest.approx(round(col), abs=1e-5)
    assert row == pytest.approx(round(row), abs=1e-5)
    col, row = round(col), round(row)
    given = np.zeros(shape, whole.dtype)
    y0, x0 = max(0, row), max(0, col)
    part = whole[y0 : max(y0, row + shape[0]), x0 : max(x0, col + shape[1])]
    given[y0 - row : y0 - row + part.shape[0], x0 - col : x0 - col + part.shape[1]] = part
    return np.where(given == 0, np.nan, (given.astype(float) + offset_dn) * 1e-4)


def check_block_means(store, source, least_valid=0.95):
    """Every native pixel of every band; returns the largest difference in DN."""
    rho, left, top = stored_reflectance(store)
    names = [str(name) for name in zarr.open_group(store, mode="r")["band"][:]]
    assert names == list(source.bands)
    worst = 0.0
    for band, image in zip(names, rho, strict=True):
        gsd_m, k = native_m(band), round(native_m(band) / 2.5)
        shape = (image.shape[0] // k, image.shape[1] // k)
        native = read_natively(source.files[band], gsd_m, left, top, shape, source.offset_dn)
        blocks = image.reshape(shape[0], k, shape[1], k)
        measured = np.isfinite(native)
        assert measured.mean() >= least_valid, band
        missing = np.isnan(blocks)
        assert np.array_equal(missing.all((1, 3)), ~measured), band
        assert np.array_equal(missing.any((1, 3)), ~measured), band
        difference_dn = np.abs(blocks.mean((1, 3)) - native)[measured] * 1e4
        assert difference_dn.max() <= 0.5, (band, difference_dn.max())
        worst = max(worst, float(difference_dn.max()))
    return worst


@pytest.mark.parametrize("patch", PATCHES)
def test_block_means_bigearthnet(shared_data, tmp_path, patch):
    source = Source(shared_data / "s2_l2a" / "bigearthnet" / patch)
    assert source.bands == BAND_NAMES
    store = make(source, tmp_path)
    assert values(store).shape[-2:] == (480, 480)
    check_block_means(store, source, least_valid=0.999)


@pytest.mark.slow
@pytest.mark.parametrize(("patch", "size_m"), [(BRIGHT, 1190), (HALF_SNOW, 700)])
def test_block_means_bigearthnet_lite(shared_data, tmp_path, patch, size_m):
    """Snow and cloud are as bright as what the network has learned: detail is generated, and the promise holds."""
    source = Source(shared_data / "s2_l2a" / "bigearthnet" / patch)
    store = make(source, tmp_path, sr="lite", ground=centre(source, size_m))
    check_block_means(store, source, least_valid=0.999)
    quality = values(store, "quality")[0]
    assert (quality == 3).any()


@pytest.mark.slow
@pytest.mark.parametrize("cell", MAJORTOM)
def test_block_means_majortom(shared_data, tmp_path, cell):
    """Off the official grid by fractions of a metre, and kept there; one scene still carries the BOA offset."""
    folder = shared_data / "s2_l2a" / "majortom_native" / cell
    source = Source(folder, MAJORTOM[cell], when="2021-07-01T10:00:00Z")
    check_block_means(make(source, tmp_path), source, least_valid=0.999)


@pytest.mark.slow
def test_block_means_majortom_lite(shared_data, tmp_path):
    folder = shared_data / "s2_l2a" / "majortom_native" / "433D_629L_3_1"
    source = Source(folder, -1000, when="2021-07-01T10:00:00Z")
    store = make(source, tmp_path, sr="lite", ground=centre(source, 500))
    check_block_means(store, source, least_valid=1)
    assert (values(store, "quality")[0] == 3).any()


@pytest.mark.slow
def test_block_means_argentina(shared_data, tmp_path):
    """Eight bands, 20 m and 10 m starting at different eastings, a fifth of blue clipped to 0 and so nodata."""
    source = Source(shared_data / "s2_l2a" / "argentina_pampas_32720", when="2025-06-15T14:00:00Z")
    assert source.bands == ("B02", "B03", "B04", "B05", "B08", "B8A", "B11", "B12")
    store = make(source, tmp_path)
    assert (values(store)[0, 0] == 0).mean() > 0.2
    check_block_means(store, source, least_valid=0.7)


@pytest.mark.slow
def test_block_means_argentina_lite(shared_data, tmp_path):
    source = Source(shared_data / "s2_l2a" / "argentina_pampas_32720", when="2025-06-15T14:00:00Z")
    ground = centre(source, 2000)
    store = make(source, tmp_path, sr="lite", ground=ground)
    dn = values(store)[0]
    assert (dn[0] == 0).any()
    assert (values(store, "quality")[0] == 3).any()
    check_block_means(store, source, least_valid=0.5)


def split_bands(file, layers, folder, twice):
    """Per-band GeoTIFFs of {band: layer}, zeros for what is not positive; bands of `twice` were replicated 2 x 2."""
    folder.mkdir()
    with rasterio.open(file) as dataset:
        for band, layer in layers.items():
            image, transform = dataset.read(layer), dataset.transform
            image = np.where(image > 0, image, 0).astype(np.uint16)
            if band in twice:
                even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
                assert transform.c % 20 == transform.f % 20 == 0
                image = even[::2, ::2]
                assert np.array_equal(image.repeat(2, 0).repeat(2, 1), even)
                transform = transform @ transform.scale(2)
            with rasterio.open(
                folder / f"{band}.tif", "w", driver="GTiff", width=image.shape[1], height=image.shape[0], count=1,
                dtype="uint16", crs=dataset.crs, transform=transform, nodata=0,
            ) as target:  # fmt: skip
                target.write(image, 1)


def test_block_means_theia(shared_data, tmp_path):
    file = shared_data / "s2_l2a" / "theia_bouconne_7dates" / "2018_3A_Theia_Bouconne.tif"
    layers = {band: 30 + i for i, band in enumerate(THEIA_BANDS, 1)}  # the fourth date
    split_bands(file, layers, tmp_path / "scene", THEIA_BANDS[4:])
    source = Source(tmp_path / "scene", when="2018-06-15T10:50:00Z")
    assert len(source.bands) == 10
    check_block_means(make(source, tmp_path), source)


@pytest.mark.slow
def test_block_means_vienna(shared_data, tmp_path):
    file = shared_data / "s2_l2a" / "ftw_vienna_rgbn" / "inference-img.tif"
    split_bands(file, {band: i for i, band in enumerate(VIENNA_BANDS, 1)}, tmp_path / "scene", ())
    source = Source(tmp_path / "scene", when="2021-05-15T10:00:00Z")
    check_block_means(make(source, tmp_path), source)


@pytest.mark.slow
def test_block_means_safe(shared_data, tmp_path):
    """JPEG 2000 of a product whose XML declares the offset; only B01 and B09 are native there."""
    source = Source(shared_data / "s2_l2a" / "safe_T29UNU_R60m", -1000, only=("B01", "B09"))
    left, top = 499980 + 163 * 60, 5900040
    store = make(source, tmp_path, ground=(left + 5, top - 5995, left + 5995, top - 5))
    assert values(store).shape[-2:] == (2400, 2400)
    check_block_means(store, source, least_valid=0.999)


@pytest.fixture(scope="module")
def clear(shared_data):
    return Source(shared_data / "s2_l2a" / "bigearthnet" / CLEAR)


@pytest.fixture(scope="module")
def ground(clear):
    """A square in which four lattice windows meet, all four contributing."""
    return centre(clear, 650, *CROSSING_M)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, clear, ground):
    """The lite system's answer on a clear real scene, in one unit."""
    folder = tmp_path_factory.mktemp("whole")
    store = make(clear, folder, sr="lite", ground=ground, settings={"chunk_px": 144, "unit_chunks": 9})
    receipts = [json.loads(path.read_bytes()) for path in (store / "_run" / "receipts").glob("*.json")]
    assert [receipt["windows"] for receipt in receipts] == [4]
    return store


@pytest.mark.slow
@pytest.mark.parametrize("way", ["small units, shuffled", "two workers"])
def test_unit_size_order_and_workers_do_not_show(whole, clear, ground, tmp_path, monkeypatch, way):
    settings, more = {"chunk_px": 144, "unit_chunks": 1}, {}
    original, to_do = driver.pending, []

    def shuffled(*args):
        todo, done = original(*args)
        to_do.append(len(todo))
        random.Random(5).shuffle(todo)
        return todo, done

    if way == "two workers":
        settings["unit_chunks"] = 2
        more = {"cluster": "local", "workers": 2}
    else:
        monkeypatch.setattr(driver, "pending", shuffled)
    store = make(clear, tmp_path, sr="lite", ground=ground, settings=settings, **more)
    assert way == "two workers" or to_do[0] > 1
    for name in ("reflectance", "quality"):
        assert np.array_equal(values(whole, name), values(store, name)), name


def test_means_hold_and_detail_is_there(whole, clear, ground, tmp_path):
    check_block_means(whole, clear, least_valid=1)
    plain = make(clear, tmp_path, ground=ground)
    quality = values(whole, "quality")
    assert (quality > 0).all()
    assert (quality == 3).mean() > 0.8, "all but the edge of the imagery"
    lite, bicubic = values(whole)[0].astype(int), values(plain)[0].astype(int)
    for i, band in enumerate(BAND_NAMES):
        assert np.abs(lite[i] - bicubic[i]).mean() > 1, band
