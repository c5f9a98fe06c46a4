"""The store: opens plainly, refuses unaligned writes, notices damage."""

import importlib
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr

import pipeline
from pipeline.errors import IntegrityError, StorageError, UsageError
from pipeline.grid.grid import Grid
from pipeline.store import layout
from pipeline.store.keys import PLAN_KEY, RUN_FOLDER
from pipeline.store.layout import RegionWriter, verify_chunks
from pipeline.store.receipts import Ledger, Receipt
from pipeline.store.template import Template, create, create_root

BANDS = ("B02", "B03", "B04", "B11")


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "a.zarr"
    grid = Grid.covering(32632, (600000.0, 5099400.0, 600600.0, 5099880.0))
    template = Template(
        grid, BANDS, ("2024-06-17T10:20:31Z", "2024-06-20T10:20:31Z"), 96, BANDS[:3], with_scl=True,
        quality_meanings="nodata measured", attributes={"plan_digest": "d", "groups": [""]},
    )  # fmt: skip
    create(path, "", template)
    return path


def block(ny=96, nx=96, value=3000):
    return np.full((len(BANDS), ny, nx), value, np.uint16) + np.arange(nx, dtype=np.uint16)


def test_plain_xarray_sees_crs_names_dates_and_reflectance(store):
    RegionWriter(store, "", 1).write(slice(0, 96), slice(96, 192), {"reflectance": block()})
    layout.finish(store, [""], {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(store)
    importlib.import_module("rioxarray")

    assert ds.rio.crs.to_epsg() == 32632
    assert ds.reflectance.rio.crs.to_epsg() == 32632
    assert tuple(ds.rio.transform())[:6] == (2.5, 0.0, 600000.0, 0.0, -2.5, 5099880.0)
    assert list(ds.band.values) == list(BANDS)
    assert str(ds.time.values[0])[:10] == "2024-06-17"
    assert list(ds.native_gsd_m.values) == [10, 10, 10, 20]
    assert list(ds.generated.values) == [True, True, True, False]
    value = float(ds.reflectance.sel(band="B11", time="2024-06-20").squeeze()[0, 96])
    assert value == pytest.approx(0.2)
    assert np.isnan(float(ds.reflectance[0, 0, 0, 0]))


def test_open_store_gives_float32_and_refuses_other_stores(store, tmp_path):
    RegionWriter(store, "", 0).write(slice(0, 96), slice(0, 96), {"reflectance": block(value=1000)})
    layout.consolidate(store)
    with pytest.warns(UserWarning, match="not complete"):
        pipeline.open_store(store)
    layout.finish(store, [""], {})
    ds = pipeline.open_store(store)
    assert ds.reflectance.dtype == np.float32
    assert float(ds.reflectance[0, 0, 0, 0]) == 0.0
    assert float(ds.reflectance[0, 0, 0, 50]) == pytest.approx(0.005)
    with pytest.raises(UsageError, match="not a Zarr store"):
        pipeline.open_store(tmp_path)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(UsageError, match="not written by this pipeline"):
        pipeline.open_store(tmp_path / "other.zarr")


@pytest.mark.filterwarnings("ignore:The data type .FixedLengthUTF32:zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("save", ["zarr", "netcdf", "raster"])
def test_what_is_saved_from_an_opened_store_reads_back_as_it_was(store, tmp_path, save):
    """Decoded values carry nothing of the packing, or every copy would be decoded twice."""
    RegionWriter(store, "", 0).write(slice(0, 96), slice(0, 96), {"reflectance": block()})
    layout.finish(store, [""], {})
    ds = pipeline.open_store(store)
    made = {"reflectance": ds.reflectance.isel(time=0, band=2), "ndwi": pipeline.indices(ds, "ndsi").isel(time=0),
            "picture": pipeline.true_color(ds)}  # fmt: skip
    for name, values in made.items():
        before = values.compute()
        assert not {"scale_factor", "add_offset"} & (set(values.attrs) | set(values.encoding))
        assert "_FillValue" not in values.attrs
        assert np.isnan(values.encoding.get("_FillValue", np.nan))
        path = tmp_path / f"{name}.{save}"
        if name == "picture" and save != "zarr":  # NetCDF 3 has no unsigned bytes, and GeoTIFF wants bands first
            continue
        if save == "zarr":
            values.rename(name).reset_coords(drop=True).to_zarr(path, consolidated=False)
            after = xr.open_zarr(path, consolidated=False)[name]
        elif save == "netcdf":
            values.rename(name).reset_coords(drop=True).to_netcdf(path, engine="scipy")
            after = xr.open_dataset(path, engine="scipy")[name]
        else:
            values.rio.to_raster(path.with_suffix(".tif"))
            after = importlib.import_module("rioxarray").open_rasterio(path.with_suffix(".tif"), mask_and_scale=True)[0]
        np.testing.assert_allclose(after.values, before.values, rtol=1e-6)


def test_zones_of_different_size_share_common_overviews(tmp_path):
    """A small zone has 5 and 10 m alone; what only the large one has is not offered for the store."""
    place, groups = tmp_path / "two.zarr", ["utm32n", "utm33n"]
    create_root(place, {"plan_digest": "d", "groups": groups})
    for group, side_m in zip(groups, (600.0, 6000.0), strict=True):
        grid = Grid.covering(32600 + int(group[3:5]), (600000.0, 5100000.0 - side_m, 600000.0 + side_m, 5100000.0))
        create(place, group, Template(grid, BANDS, ("2024-06-17T10:20:31Z",), 96, ()))
    layout.finish(place, groups, {})
    assert pipeline.open_store(place, gsd_m=10)["utm33n"].sizes["x"] == 600
    with pytest.raises(UsageError, match=r"holds nothing at 20 m; expected one of 2\.5, 5, 10 m"):
        pipeline.open_store(place, gsd_m=20)


def test_a_copy_that_another_program_wrote_is_no_store(store, tmp_path):
    RegionWriter(store, "", 0).write(slice(0, 96), slice(0, 96), {"reflectance": block()})
    layout.finish(store, [""], {})
    pipeline.open_store(store).to_zarr(tmp_path / "copy.zarr", consolidated=False)
    with pytest.raises(UsageError, match="reflectance as float32: a copy of a store"):
        pipeline.open_store(tmp_path / "copy.zarr")


def test_metadata_that_cannot_be_read_is_said_with_the_cure(store):
    layout.finish(store, [""], {})
    (store / "zarr.json").write_text("{")
    with pytest.raises(IntegrityError, match="--verify full --repair writes it anew"):
        pipeline.open_store(store)


def test_regions_that_cut_a_chunk_are_refused(store):
    writer = RegionWriter(store, "", 0)
    with pytest.raises(ValueError, match="cuts chunks"):
        writer.write(slice(0, 96), slice(48, 144), {"reflectance": block()})
    with pytest.raises(ValueError, match="cuts chunks"):
        writer.write(slice(0, 90), slice(0, 96), {"reflectance": block(90)})


def test_the_last_chunk_may_be_short(store):
    ny = zarr.open_group(store)["reflectance"].shape[-2]
    assert ny == 192
    nx = zarr.open_group(store)["reflectance"].shape[-1]
    assert nx == 240
    facts = RegionWriter(store, "", 0).write(slice(0, 96), slice(192, 240), {"reflectance": block(96, 48)})
    assert list(facts) == ["reflectance/c/0/0/0/2"]


def test_every_flipped_bit_raises_and_shows_in_verification(store):
    rng = np.random.default_rng(0)
    noise = rng.integers(1, 60000, (len(BANDS), 96, 96), dtype=np.uint16)
    facts = RegionWriter(store, "", 0).write(slice(0, 96), slice(0, 96), {"reflectance": noise})
    path = store / next(iter(facts))
    good = path.read_bytes()
    for position in rng.integers(0, len(good), 25):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(bad))
        assert verify_chunks(store, facts, full=True)
        with pytest.raises((RuntimeError, ValueError)):
            zarr.open_group(store, mode="r")["reflectance"][0, :, :96, :96]
    path.write_bytes(good)
    assert verify_chunks(store, facts, full=True) == []


def test_truncated_and_missing_chunks_show_by_size(store):
    facts = RegionWriter(store, "", 0).write(slice(0, 96), slice(0, 96), {"reflectance": block()})
    path = store / next(iter(facts))
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes, expected" in verify_chunks(store, facts, full=False)[0]
    path.unlink()
    assert "missing" in verify_chunks(store, facts, full=False)[0]


def test_all_nodata_chunks_write_nothing(store):
    assert RegionWriter(store, "", 0).write(slice(0, 96), slice(0, 96), {"reflectance": block(value=0) * 0}) == {}


def receipt(unit="u1", digest="d"):
    return Receipt(unit, digest, "done", "", {}, {"B02": 5}, 10, None, ("s",))


def test_the_plan_is_quoted_as_it_was_written(tmp_path):
    assert layout.plan_content(tmp_path) is None
    path = tmp_path / PLAN_KEY
    path.parent.mkdir()
    path.write_text('{"aoi_name": "lake"}')
    assert layout.plan_content(tmp_path) == {"aoi_name": "lake"}
    for damaged in ("{", "[1]", ""):
        path.write_text(damaged)
        with pytest.raises(ValueError):
            layout.plan_content(tmp_path)


def test_receipts_count_only_for_their_plan_and_when_whole(store):
    ledger = Ledger(store, "d")
    assert ledger.faults("u1") == ["no valid receipt"]
    ledger.record(receipt())
    assert ledger.read("u1") == receipt()
    assert ledger.faults("u1") == []
    assert Ledger(store, "other").faults("u1") == ["no valid receipt"]
    path = store / RUN_FOLDER / "receipts" / "u1.json"
    for garbage in (b"", b"{", path.read_bytes()[:-3], b"[]", b'{"unit": "u1"}'):
        path.write_bytes(garbage)
        assert ledger.faults("u1") == ["no valid receipt"]
    with pytest.raises(StorageError, match="names plan"):
        ledger.record(receipt(digest="x"))


def test_sweep_removes_what_a_killed_process_left(store):
    (store / "reflectance" / "c").mkdir(parents=True, exist_ok=True)
    for name in (f"0.{'a' * 32}.partial", f"plan.json.{'b' * 32}.partial", "0.4711.partial", "thesis.partial"):
        (store / "reflectance" / "c" / name).write_bytes(b"x")
    assert Ledger(store, "d").sweep() == 3
    assert Ledger(store, "d").sweep() == 0
    assert (store / "reflectance" / "c" / "thesis.partial").is_file(), "the user's"


def test_status_flips_last(store):
    assert layout.status(store) == layout.STATUS_INCOMPLETE
    layout.finish(store, [""], {"units": 1})
    assert layout.status(store) == layout.STATUS_COMPLETE
    (store / "zarr.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"zarr\.json"):
        layout.status(store)


def test_sharded_store_reads_back_the_same(tmp_path):
    grid = Grid.covering(32632, (600000.0, 5099400.0, 600600.0, 5099880.0))
    path = tmp_path / "s.zarr"
    template = Template(grid, BANDS, ("2024-06-17T10:20:31Z",), 48, (), shard_px=96, attributes={"plan_digest": "d"})
    create(path, "", template)
    writer = RegionWriter(path, "", 0)
    with pytest.raises(ValueError, match="cuts chunks"):
        writer.write(slice(0, 48), slice(0, 48), {"reflectance": block(48, 48)})
    facts = writer.write(slice(0, 96), slice(0, 96), {"reflectance": block()})
    assert len(facts) == 1
    assert np.array_equal(zarr.open_group(path)["reflectance"][0, :, :96, :96], block())
