"""`super_resolve`: the same pixels as a run over the same scene, whatever form the image has."""

import numpy as np
import pytest
import sen2fine
import xarray as xr
from pyproj import Transformer

from pipeline.api import resolve
from pipeline.bands import BAND_NAMES, BANDS
from pipeline.errors import Interrupted, UsageError
from tests.api.conftest import bands_of, dataset_of
from tests.archive.synthetic import make_archive, make_scene
from tests.models.small import write_lite

LEFT, TOP, SIZE = 600000, 5100000, 1200
QUICK = {"sr": "bicubic", "cluster": "inline", "chunk_px": 240}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(
        folder, scene_id="S2A_X", size_m=SIZE, left_m=LEFT, top_m=TOP, offset_dn=-1000, cloud_fraction=0.1
    )


def ground(left=LEFT, top=TOP, size=SIZE):
    """A polygon within a square, near its edges."""
    turn = Transformer.from_crs(32632, 4326, always_xy=True).transform
    right, bottom = left + size - 1, top - size + 1
    corners = [(left + 1, bottom), (right, bottom), (right, top - 1), (left + 1, top - 1), (left + 1, bottom)]
    return {"type": "Polygon", "coordinates": [[list(turn(*corner)) for corner in corners]]}


@pytest.fixture(scope="module")
def by_run(scene, tmp_path_factory):
    """The store of an ordinary run over the files of the scene."""
    folder = tmp_path_factory.mktemp("run")
    settings = {**QUICK, "composite": "none", "max_cloud": 100.0}
    return sen2fine.run(ground(), folder / "a.zarr", catalog=make_archive(folder, [scene]), **settings).load()


def same(one, other):
    for name in ("reflectance", "quality", "scl"):
        assert np.array_equal(one[name].values, other[name].values, equal_nan=name == "reflectance"), name
    assert np.array_equal(one.x, other.x)
    assert np.array_equal(one.y, other.y)
    assert np.array_equal(one.time, other.time)
    return True


@pytest.mark.slow
def test_dn_on_the_10_m_grid(scene, by_run):
    got = sen2fine.super_resolve(dataset_of(scene), offset=-1000, **QUICK)
    assert same(got, by_run)
    assert got.reflectance.dtype == np.float32
    assert got.rio.crs.to_epsg() == 32632
    assert got.reflectance.chunks is None


@pytest.mark.slow
def test_reflectance_by_common_names_along_a_dimension(scene, by_run):
    names = {band.name: band.common_name for band in BANDS}
    dn = dataset_of(scene)[list(BAND_NAMES)].rename(names).to_dataarray("band").astype("float64")
    image = xr.concat([((dn - 1000) * 1e-4).where(dn > 0)], "band")
    classes = dataset_of(scene)[["SCL"]].astype("float32")
    assert same(sen2fine.super_resolve([image, classes], **QUICK), by_run)


@pytest.mark.slow
def test_native_grids_and_chunks(scene, by_run):
    parts = {
        gsd: dataset_of(scene, gsd, {b: dn for b, dn in bands_of(scene).items() if dn.shape[0] * gsd == SIZE}).chunk()
        for gsd in (10, 20, 60)
    }
    assert same(sen2fine.super_resolve(parts, offset=-1000, **QUICK), by_run)


@pytest.mark.slow
def test_a_part_of_the_image_is_that_part_of_the_result(scene):
    """Away from its edges, beyond which it has no pixels; cut where no 20 or 60 m pixel begins."""
    settings = {**QUICK, "consistency": "box", "offset": -1000}
    whole = sen2fine.super_resolve(dataset_of(scene), **settings)
    got = sen2fine.super_resolve(dataset_of(scene).isel(x=slice(13, 91), y=slice(7, 85)), **settings)
    assert got.sizes["x"] == got.sizes["y"] == 78 * 4
    assert not [name for name in got.attrs if name.startswith("spatial:")]
    inner = got.isel(x=slice(120, -120), y=slice(120, -120))
    expected = whole.sel(x=inner.x, y=inner.y)
    assert np.array_equal(inner.reflectance.values, expected.reflectance.values)
    assert np.isfinite(inner.reflectance.values).all()


@pytest.mark.slow
def test_time_steps_and_absent_bands(scene):
    one = dataset_of(scene)[["B02", "B03", "B04", "B08", "SCL"]]
    later = one.copy(deep=True).assign_coords(time=one.time + np.timedelta64(5, "D"))
    later["B02"] += 10
    got = sen2fine.super_resolve(xr.concat([one, later], "time"), offset=-1000, **QUICK)
    assert got.band.values.tolist() == ["B02", "B03", "B04", "B08"]
    assert np.array_equal(got.time.values, [*one.time.values, *later.time.values])
    step = (got.reflectance.isel(time=1) - got.reflectance.isel(time=0)).sel(band="B02")
    assert float(step.mean()) == pytest.approx(0.001, abs=1e-5)
    assert float(abs(got.reflectance.isel(time=1) - got.reflectance.isel(time=0)).sel(band="B03").max()) == 0
    median = sen2fine.super_resolve(xr.concat([one, later], "time"), offset=-1000, composite="median", **QUICK)
    assert median.sizes["time"] == 1


@pytest.mark.slow
def test_what_is_masked_stays_empty(scene, by_run):
    image = dataset_of(scene).astype("float32").drop_vars("SCL")
    image = image.where(image.x > LEFT + 250)
    got = sen2fine.super_resolve(image, offset=-1000, **QUICK)
    west = got.reflectance.sel(x=slice(None, LEFT + 240))
    assert np.isnan(west.sel(band=["B02", "B03", "B04", "B08"]).values).all()
    east = got.reflectance.sel(x=slice(LEFT + 600, None))
    assert np.isfinite(east.values).all()


@pytest.mark.slow
def test_the_offset_must_be_known_for_dn(scene):
    image = dataset_of(scene)
    with pytest.raises(UsageError) as caught:
        sen2fine.super_resolve(image, **QUICK)
    assert "BOA offset" in caught.value.found
    assert "offset=-1000" in caught.value.cure
    said = image.assign_coords({"s2:processing_baseline": ("time", ["05.11"])})
    assert sen2fine.super_resolve(said, **QUICK).sizes["x"] == SIZE / 2.5


@pytest.mark.slow
def test_a_flag_of_the_archive_tells_the_offset(scene):
    image = (dataset_of(scene).drop_vars("SCL") - 1000).clip(1).astype("uint16")
    said = image.assign_coords({"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.11"})
    got, right = (
        sen2fine.super_resolve(given, **QUICK, **more) for given, more in ((said, {}), (image, {"offset": 0}))
    )
    assert np.array_equal(got.reflectance.values, right.reflectance.values)


@pytest.mark.slow
def test_reflectance_of_the_wrong_offset_is_refused(tmp_path):
    """As with loaders that take 0.1 off pixels from which the archive has taken it already."""
    dark = make_scene(tmp_path, scene_id="S2A_D", size_m=600, kind="coordinates")
    dn = {band: (values.astype("uint16") % 500 + 1) for band, values in bands_of(dark).items()}
    ny = dark.rasters[0].ny
    image = dataset_of(
        dark, 10, {b: v.repeat(ny // len(v), 0).repeat(ny // len(v), 1) for b, v in dn.items() if b != "SCL"}
    )
    with pytest.raises(UsageError, match="impossible") as caught:
        sen2fine.super_resolve(image * 1e-4 - 0.1, **QUICK)
    assert "how the loader scaled it" in caught.value.cure
    assert sen2fine.super_resolve(image * 1e-4, **QUICK).reflectance.notnull().all()


@pytest.mark.slow
def test_a_store_is_continued_by_the_same_call(scene, by_run, tmp_path, monkeypatch):
    out, image = tmp_path / "fine.zarr", dataset_of(scene)
    settings = {**QUICK, "offset": -1000, "unit_chunks": 1, "workers": 1}
    monkeypatch.setattr("pipeline.running.driver.UnitQueue", interrupted_after(2))
    with pytest.raises(Interrupted):
        sen2fine.super_resolve(image, out, **settings)
    monkeypatch.undo()
    assert (tmp_path / "fine.zarr.input" / "archive.json").exists()
    got = sen2fine.super_resolve(image, out, **settings)
    assert same(got, by_run)
    assert got.reflectance.chunks is not None
    assert not (tmp_path / "fine.zarr.input").exists()
    assert sen2fine.check(out, verify="full").ok


def interrupted_after(units):
    from pipeline.running.unit_queue import UnitQueue

    class Interrupting(UnitQueue):
        """Stops as by Ctrl-C after some units."""

        def run(self, todo):
            super().run(todo[:units])
            raise Interrupted("stopped by the test")

    return Interrupting


@pytest.mark.slow
def test_nothing_is_left_in_the_temporary_folder(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sen2fine.super_resolve(dataset_of(scene), offset=-1000, **QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"catalog": "earth-search"}, "super_resolve(catalog=...)"),
        ({"offset": 1000}, "offset = 1000"),
        ({"colour": 1}, "super_resolve(colour=...)"),
        ({"bands": "B22"}, "no such band: B22"),
    ],
)
def test_settings_that_do_not_fit(scene, settings, found):
    with pytest.raises(UsageError) as caught:
        sen2fine.super_resolve(dataset_of(scene), **settings)
    assert caught.value.found == found


def test_large_results_need_a_store(scene, monkeypatch):
    monkeypatch.setattr(resolve, "MAX_IN_MEMORY_GB", 0.01)
    with pytest.raises(UsageError) as caught:
        sen2fine.super_resolve(dataset_of(scene), offset=-1000)
    assert caught.value.expected == "at most 0.01 GB in memory"
    assert caught.value.cure.startswith('out="fine.zarr"')


def test_a_folder_of_the_user_is_not_taken_for_inputs(scene, tmp_path):
    (tmp_path / "fine.zarr.input").mkdir()
    (tmp_path / "fine.zarr.input" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="is in the way"):
        sen2fine.super_resolve(dataset_of(scene), tmp_path / "fine.zarr", offset=-1000, **QUICK)
    assert (tmp_path / "fine.zarr.input" / "thesis.tex").exists()


@pytest.mark.slow
def test_networks_see_the_same_as_in_a_run(scene, tmp_path):
    """Windows lie on the absolute lattice, also for an image that begins elsewhere than the scene."""
    sr, fusion = write_lite(tmp_path)
    settings = {"sr": "lite", "weights": [str(sr), f"fusion={fusion}"], "cluster": "inline"}
    archive = make_archive(tmp_path, [scene])
    expected = sen2fine.run(ground(), tmp_path / "a.zarr", catalog=archive, max_cloud=100, **settings)
    got = sen2fine.super_resolve(dataset_of(scene), offset=-1000, **settings)
    assert np.array_equal(got.reflectance.values, expected.reflectance.values)
    cut = sen2fine.super_resolve(dataset_of(scene).isel(x=slice(6, None), y=slice(18, None)), offset=-1000, **settings)
    inner = cut.reflectance.isel(x=slice(-40, -20), y=slice(-40, -20))
    assert np.isfinite(inner.values).all()
