"""Exported GeoTIFFs: pixel by pixel those of the store, cloud-optimised, and saying what they are."""

import shutil
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import zarr
from pyproj import Transformer

from pipeline.bands import BY_NAME
from pipeline.errors import IntegrityError, StorageError, UsageError
from pipeline.grid.grid import Grid
from pipeline.products import cog
from pipeline.products.cog import export_cogs
from pipeline.store import layout
from pipeline.store.layout import RegionWriter
from pipeline.store.place import place_of
from pipeline.store.receipts import Ledger, Receipt
from pipeline.store.selection import Request
from pipeline.store.template import Template, create, create_root
from tests.store.s3_server import s3_server

BANDS = ("B02", "B03", "B04", "B11")
LEFT, TOP = 600000.0, 5100000.0
DIGEST = "ab" * 32
ALL = ("reflectance", "quality", "scl", "uncertainty")
FIRST, SECOND = "2024-06-17T10:20:31Z", "2024-06-27T10:20:31Z"


def make_store(
    path, *, shape=(600, 696), chunk_px=120, times=(FIRST,), epsgs=(32632,), shard_px=0, finished=True, **more
):
    """A store of random DN with nodata in the upper left chunk, each zone and time its own; and its receipts."""
    groups = [layout.group_name(epsg, len(epsgs)) for epsg in epsgs]
    attributes = {"plan_digest": DIGEST, "groups": groups, "title": "a test", "software": "sen2fine 9",
                  "license": "CC-BY-4.0", "credit": "Contains modified Copernicus Sentinel data",
                  "periods": [{"scenes": [f"S2A_{i}"]} for i in range(len(times))]}  # fmt: skip
    if groups != [""]:
        create_root(path, attributes)
    for group, epsg in zip(groups, epsgs, strict=True):
        bounds = (LEFT, TOP - 2.5 * shape[0], LEFT + 2.5 * shape[1], TOP)
        template = Template(
            Grid.covering(epsg, bounds), BANDS, times, chunk_px, ("B02", "B03", "B04"), with_scl=True,
            with_uncertainty=True, shard_px=shard_px, quality_meanings="nodata measured partly generated",
            attributes=attributes, **more,
        )  # fmt: skip
        create(path, group, template)
        rng = np.random.default_rng(epsg)
        for index in range(len(times)):
            dn = rng.integers(1, 9000, (len(BANDS), *shape)).astype(np.uint16)
            arrays = {"reflectance": dn, "uncertainty": dn // 9, "quality": (dn[0] % 4).astype(np.uint8),
                      "scl": (dn[1] % 12).astype(np.uint8)}  # fmt: skip
            for name, values in arrays.items():
                values[..., :130, :120] = template.fill(name)
            step = slice(0, shape[0]), slice(0, shape[1])
            chunks = RegionWriter(path, group, index).write(*step, arrays)
            receipt = Receipt(f"u{epsg}-{index}", DIGEST, "done", group, chunks, {}, 1, None, ())
            Ledger(path, DIGEST).record(receipt)
    if finished:
        layout.finish(path, groups, {})
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One zone, one date, all variables. Only read."""
    return make_store(tmp_path_factory.mktemp("store") / "lyon.zarr")


def stored(store, name, group="", time=0):
    return np.asarray(zarr.open_group(str(store), mode="r")[f"{group}/{name}" if group else name][time])


def export(store, out, *, bands=(), bbox=None, time="all", variables=("reflectance",), **more):
    made = export_cogs(store, Path(out), Request(bands, bbox, time, variables), **more)
    return made.files


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def ifd_offsets(path):
    """(offset of each image directory, least offset of any tile) of a classic little-endian TIFF."""
    content = Path(path).read_bytes()
    assert content[:4] == b"II*\0"
    offsets, tiles = [], []
    at = struct.unpack_from("<I", content, 4)[0]
    while at:
        offsets.append(at)
        count = struct.unpack_from("<H", content, at)[0]
        for i in range(count):
            tag, kind, number, value = struct.unpack_from("<HHII", content, at + 2 + 12 * i)
            if tag == 324:  # TileOffsets, unsigned longs
                assert kind == 4
                tiles += [value] if number == 1 else struct.unpack_from(f"<{number}I", content, value)
        at = struct.unpack_from("<I", content, at + 2 + 12 * count)[0]
    return offsets, min(tiles)


def test_each_band_is_a_file_with_the_pixels_of_the_store(store, tmp_path):
    files = export(store, tmp_path / "tifs")
    assert [path.name for path in files] == [f"lyon_utm32n_2024-06-17_{band}.tif" for band in BANDS]
    dn = stored(store, "reflectance")
    for i, path in enumerate(files):
        with rasterio.open(path) as file:
            assert np.array_equal(file.read(1), dn[i])
            assert (file.count, file.dtypes, file.nodata) == (1, ("uint16",), 0)
            assert file.crs.to_epsg() == 32632
            assert tuple(file.transform)[:6] == (2.5, 0.0, LEFT, 0.0, -2.5, TOP)
            assert (file.scales, file.offsets) == ((1e-4,), (-0.1,))
    assert {path.name for path in (tmp_path / "tifs").glob("*.tif")} == {path.name for path in files}


@pytest.mark.parametrize("compress", ["deflate", "zstd"])
def test_files_are_cloud_optimised(store, tmp_path, compress):
    for path in export(store, tmp_path, variables=ALL, single_file=True, compress=compress):
        with rasterio.open(path) as file:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.profile["compress"] == compress
            assert file.profile["tiled"]
            assert file.profile["blockxsize"] == 512
            assert file.overviews(1) == [2]
        offsets, first_tile = ifd_offsets(path)
        assert len(offsets) == 2
        assert all(one < other for one, other in pairwise(offsets))
        assert max(offsets) < first_tile, "a reader of the head alone would not find all directories"


def test_overviews_are_means_and_mix_no_classes(store, tmp_path):
    files = {path.stem.rsplit("_", 1)[1]: path for path in export(store, tmp_path, variables=ALL, single_file=True)}
    with rasterio.open(files["reflectance"], overview_level=0) as file:
        coarse, dn = file.read(), stored(store, "reflectance").astype(float)
    blocks = dn.reshape(4, 300, 2, 348, 2)
    count = (blocks > 0).sum((2, 4))
    mean = blocks.sum((2, 4)) / np.maximum(count, 1)
    assert np.array_equal(coarse == 0, count == 0), "nodata must stay out of the means"
    assert np.abs(coarse - mean).max() <= 0.5
    with rasterio.open(files["scl"], overview_level=0) as file:
        classes = file.read(1)
    corners = stored(store, "scl").reshape(300, 2, 348, 2).transpose(0, 2, 1, 3).reshape(300, 348, 4)
    assert (classes[..., None] == corners).any(-1).mean() > 0.999
    with rasterio.open(files["uncertainty"], overview_level=0) as file:
        spread = stored(store, "uncertainty").astype(float).reshape(blocks.shape)
        mean = np.where(blocks > 0, spread, 0).sum((2, 4)) / np.maximum(count, 1)
        assert np.array_equal(file.read() == 65535, count == 0)
        assert np.abs(file.read() - mean)[count > 0].max() <= 0.5


def test_overviews_of_files_are_not_brighter_than_their_pixels(store, tmp_path):
    """Halves rounded up made every level 0.125 DN brighter than the one before."""
    (path,) = export(store, tmp_path, single_file=True)
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2]
    with rasterio.open(path, overview_level=0) as file:
        coarse = file.read().astype(float)
    dn = stored(store, "reflectance").reshape(4, 300, 2, 348, 2)
    whole = (dn > 0).all((2, 4))
    bias = (coarse - dn.mean((2, 4)))[whole]
    assert abs(bias.mean()) < 4 * bias.std() / np.sqrt(bias.size)


def test_old_uncertainty_gets_its_nodata_from_reflectance(tmp_path):
    path = make_store(tmp_path / "old.zarr", format_version=1)
    (file,) = export(path, tmp_path / "out", bands=("B03",), variables=("uncertainty",))
    assert zarr.open_group(path, mode="r")["uncertainty"].fill_value == 0
    with rasterio.open(file) as opened:
        spread = opened.read(1, masked=True)
    assert np.array_equal(np.ma.getmaskarray(spread), stored(path, "reflectance")[1] == 0)
    assert spread.min() == 0


def test_files_say_what_they_are(store, tmp_path):
    red, swir = export(store, tmp_path, bands=("B04", "B11"))
    with rasterio.open(red) as file:
        tags, band = file.tags(), file.tags(1)
        assert file.descriptions == ("B04 664.6 nm",)
        assert band["generated"] == "true"
        assert band["detail"] == "detail finer than 10 m is generated by a network, not measured"
        assert band["native_gsd_m"] == "10"
        assert file.tags(1, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"] == "0.6646"
    assert tags["TIFFTAG_COPYRIGHT"] == "Contains modified Copernicus Sentinel data"
    assert tags["TIFFTAG_SOFTWARE"] == "sen2fine 9"
    assert tags["TIFFTAG_DATETIME"] == "2024:06:17 10:20:31"
    assert (tags["license"], tags["plan_digest"], tags["scenes"]) == ("CC-BY-4.0", DIGEST, "S2A_0")
    assert tags["AREA_OR_POINT"] == "Area"
    with rasterio.open(swir) as file:
        assert file.tags(1)["generated"] == "false"
        assert file.tags(1)["detail"] == "detail finer than 20 m is interpolated, not measured"


def test_one_file_holds_the_bands_in_the_order_asked_for(store, tmp_path):
    (path,) = export(store, tmp_path, bands=("B04", "B03", "B02", "B11"), single_file=True)
    assert path.name == "lyon_utm32n_2024-06-17_reflectance.tif"
    assert np.array_equal(read(path), stored(store, "reflectance")[[2, 1, 0, 3]])
    with rasterio.open(path) as file:
        assert [interp.name for interp in file.colorinterp] == ["red", "green", "blue", "undefined"]
        assert [text.split()[0] for text in file.descriptions] == ["B04", "B03", "B02", "B11"]
        assert file.tags(4)["wavelength_nm"] == f"{BY_NAME['B11'].wavelength_nm:g}"


def test_classes_have_names_and_colours(store, tmp_path):
    quality, scl = export(store, tmp_path, variables=("quality", "scl"))
    assert np.array_equal(read(scl)[0], stored(store, "scl"))
    assert np.array_equal(read(quality)[0], stored(store, "quality"))
    with rasterio.open(scl) as file:
        assert (file.dtypes, file.nodata) == (("uint8",), 0)
        assert file.tags(1)["class_4"] == "vegetation"
        assert file.colormap(1)[4] == (0, 160, 0, 255)
    with rasterio.open(quality) as file:
        assert [file.tags(1)[f"class_{i}"] for i in range(4)] == ["nodata", "measured", "partly", "generated"]


def test_uncertainty_counts_from_zero_with_a_nodata_of_its_own(store, tmp_path):
    path = export(store, tmp_path, bands=("B03",), variables=("uncertainty",))[0]
    assert path.name == "lyon_utm32n_2024-06-17_B03_uncertainty.tif"
    with rasterio.open(path) as file:
        assert (file.nodata, file.scales, file.offsets) == (65535, (1e-4,), (0.0,))
        spread, measured = file.read(1, masked=True), stored(store, "reflectance")[1] > 0
        assert np.array_equal(~np.ma.getmaskarray(spread), measured)
        assert np.array_equal(spread.data[measured], stored(store, "uncertainty")[1][measured])
        assert spread.min() == 0


@pytest.mark.parametrize("offset_m", [(0, 0), (0.4, 0.4), (300, 300), (311.25, 777.5)])
def test_a_box_cuts_out_whole_pixels_at_their_place(store, tmp_path, offset_m):
    to_degrees = Transformer.from_crs(32632, 4326, always_xy=True)
    x0, y1 = LEFT + offset_m[0], TOP - offset_m[1]
    bbox = to_degrees.transform_bounds(x0, y1 - 330, x0 + 410, y1, densify_pts=21)
    (path,) = export(store, tmp_path, bbox=bbox, single_file=True)
    to_metres = Transformer.from_crs(4326, 32632, always_xy=True)
    left, bottom, right, top = to_metres.transform_bounds(*bbox, densify_pts=21)
    with rasterio.open(path) as file:
        a, _, c, _, e, f = tuple(file.transform)[:6]
        bounds, dn = file.bounds, file.read()
    assert (a, e) == (2.5, -2.5)
    row, col = (TOP - f) / 2.5, (c - LEFT) / 2.5
    assert (row % 1, col % 1) == (0, 0)
    assert np.array_equal(dn, stored(store, "reflectance")[:, int(row) :, int(col) :][:, : dn.shape[1], : dn.shape[2]])
    assert max(LEFT, left) - 2.5 < bounds.left <= max(LEFT, left) + 1e-5
    assert min(TOP, top) - 1e-5 <= bounds.top < min(TOP, top) + 2.5
    assert right - 1e-5 <= bounds.right < right + 2.5
    assert bottom - 2.5 < bounds.bottom <= bottom + 1e-5


def test_dates_are_chosen_by_day_month_index_or_all(tmp_path):
    store = make_store(tmp_path / "two.zarr", shape=(240, 240), times=(FIRST, SECOND))
    names = {"2024-06-27": [1], "2024-06": [0, 1], "2024": [0, 1], "0": [0], "1": [1], "-1": [1], "all": [0, 1]}
    for i, (time, expected) in enumerate(names.items()):
        files = export(store, tmp_path / str(i), bands=("B03",), time=time)
        days = [("2024-06-17", "2024-06-27")[index] for index in expected]
        assert [path.name for path in files] == [f"two_utm32n_{day}_B03.tif" for day in days]
        for path, index in zip(files, expected, strict=True):
            assert np.array_equal(read(path)[0], stored(store, "reflectance", time=index)[1])
    for time in ("2", "-3", "2023", "yesterday", ""):
        with pytest.raises(UsageError, match="2024-06-17, 2024-06-27"):
            export(store, tmp_path / "none", time=time)


def test_two_times_of_one_day_have_two_names(tmp_path):
    store = make_store(tmp_path / "day.zarr", shape=(240, 240), times=(FIRST, "2024-06-17T10:30:31Z"))
    files = export(store, tmp_path / "tifs", bands=("B03",))
    assert [path.name for path in files] == [
        "day_utm32n_2024-06-17T102031Z_B03.tif", "day_utm32n_2024-06-17T103031Z_B03.tif",
    ]  # fmt: skip


def test_every_zone_has_its_files_and_a_box_chooses_among_them(tmp_path):
    store = make_store(tmp_path / "zones.zarr", shape=(240, 240), epsgs=(32632, 32733))
    files = export(store, tmp_path / "tifs", bands=("B03",))
    assert [path.name for path in files] == ["zones_utm32n_2024-06-17_B03.tif", "zones_utm33s_2024-06-17_B03.tif"]
    for path, group, epsg in zip(files, ("utm32n", "utm33s"), (32632, 32733), strict=True):
        assert np.array_equal(read(path)[0], stored(store, "reflectance", group)[1])
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == epsg
    to_degrees = Transformer.from_crs(32733, 4326, always_xy=True)
    bbox = to_degrees.transform_bounds(LEFT + 50, TOP - 200, LEFT + 200, TOP - 50)
    assert [path.name for path in export(store, tmp_path / "cut", bands=("B03",), bbox=bbox)] == [files[1].name]


def test_chunks_that_are_no_tiles_and_shards_come_out_the_same(tmp_path):
    for name, more in (("odd", {"chunk_px": 72}), ("shards", {"chunk_px": 120, "shard_px": 240})):
        store = make_store(tmp_path / f"{name}.zarr", shape=(480, 528), **more)
        (path,) = export(store, tmp_path / name, single_file=True)
        assert np.array_equal(read(path), stored(store, "reflectance"))


def test_never_more_than_a_few_chunks_are_in_memory(store, tmp_path, monkeypatch):
    sizes, real = [], zarr.Array.__getitem__

    def counted(self, selection):
        values = real(self, selection)
        sizes.append(np.asarray(values).nbytes)
        return values

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    export(store, tmp_path, variables=("reflectance", "scl"))
    chunk = len(BANDS) * 240 * 240 * 2  # 120 px are no multiple of 16, hence blocks of 240 px
    assert max(sizes) == chunk
    blocks = 3 * 3  # of 600 x 696 px; all bands of a block at once, whatever the number of files
    assert sum(size > 5000 for size in sizes) == 2 * blocks


class TestRefusals:
    """One line, the right exit code, and nothing half-written."""

    def nothing_in(self, out):
        return not out.exists() or not any(out.iterdir())

    def test_what_is_no_store_of_ours(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="is not a Zarr store"):
            export(tmp_path / "empty", tmp_path / "out")
        zarr.create_group(str(tmp_path / "foreign.zarr"), zarr_format=3)
        with pytest.raises(UsageError, match="not written by this pipeline"):
            export(tmp_path / "foreign.zarr", tmp_path / "out")
        (tmp_path / "torn.zarr").mkdir()
        (tmp_path / "torn.zarr" / "zarr.json").write_text('{"attributes"')
        with pytest.raises(IntegrityError, match="zarr.json cannot be read"):
            export(tmp_path / "torn.zarr", tmp_path / "out")
        assert self.nothing_in(tmp_path / "out")

    def test_what_the_store_does_not_hold(self, store, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(UsageError, match="holds no band B05, B99; expected of B02, B03, B04, B11"):
            export(store, out, bands=("B04", "B05", "B99"))
        with pytest.raises(UsageError, match="holds no variable ndvi"):
            export(store, out, variables=("ndvi",))
        with pytest.raises(UsageError, match=r"the box 1, 2, 3, 4 does not meet .* degrees within 10\.\d+,46\.0\d+"):
            export(store, out, bbox=(1, 2, 3, 4))
        for bbox in ((10, 46, 9, 47), (10, 46, 11, 146), (float("nan"), 46, 11, 47)):
            with pytest.raises(UsageError, match="west < east"):
                export(store, out, bbox=bbox)
        assert self.nothing_in(out)

    def test_an_unfinished_store_unless_allowed(self, tmp_path):
        store = make_store(tmp_path / "a.zarr", shape=(240, 240), finished=False)
        with pytest.raises(UsageError, match="is incomplete; expected a finished store; cure: .*--allow-incomplete"):
            export(store, tmp_path / "out")
        made = export_cogs(store, tmp_path / "out", Request(("B03",)), allow_incomplete=True)
        assert "is not complete" in made.notes[0]
        with rasterio.open(made.files[0]) as file:
            assert file.tags()["status"] == "incomplete"

    def test_quarantined_units_are_named(self, tmp_path):
        store = make_store(tmp_path / "a.zarr", shape=(240, 240), finished=False)
        layout.finish(store, [""], {"quarantined": ["z32632-r0-c0-t0"]}, layout.STATUS_QUARANTINE)
        made = export_cogs(store, tmp_path / "out", Request(("B03",)))
        assert "set aside (z32632-r0-c0-t0)" in made.notes[0]

    def test_damaged_and_lost_chunks(self, tmp_path):
        for i, spoil in enumerate((self.flip, Path.unlink, self.cut)):
            store = make_store(tmp_path / f"{i}.zarr", shape=(600, 600))
            out = tmp_path / f"out{i}"
            spoil(store / "reflectance" / "c" / "0" / "0" / "2" / "3")
            with pytest.raises(IntegrityError, match="cure: python -m pipeline.check .* --repair") as caught:
                export(store, out)
            assert caught.value.exit_code == 7
            assert self.nothing_in(out)

    def test_a_lost_chunk_of_uncertainty_is_not_taken_for_nodata(self, tmp_path):
        store = make_store(tmp_path / "a.zarr", shape=(600, 600))
        (store / "uncertainty" / "c" / "0" / "0" / "2" / "3").unlink()
        with pytest.raises(IntegrityError, match="uncertainty .* are lost"):
            export(store, tmp_path / "out", variables=("uncertainty",))

    def flip(self, path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def cut(self, path):
        path.write_bytes(path.read_bytes()[:-20])

    def test_files_that_stand_in_the_way(self, store, tmp_path):
        out = tmp_path / "out"
        (path,) = export(store, out, bands=("B03",))
        before = path.read_bytes()
        path.write_bytes(b"mine")
        with pytest.raises(UsageError, match=r"B03.tif exists; .*--overwrite"):
            export(store, out)
        assert [file.name for file in out.glob("*.tif")] == [path.name]
        assert path.read_bytes() == b"mine"
        export(store, out, bands=("B03",), overwrite=True)
        assert path.read_bytes() == before, "the same export twice gives the same bytes"

    def test_a_file_instead_of_a_folder(self, store, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="is a file"):
            export(store, tmp_path / "file")
        with pytest.raises(StorageError):
            export(store, tmp_path / "file" / "below")

    def test_a_disk_that_is_almost_full(self, store, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)
        for enough in (0, 9):  # room for so many blocks
            left = iter([usage] * enough)
            empty = usage._replace(free=100)
            monkeypatch.setattr(cog.shutil, "disk_usage", lambda _, left=left, empty=empty: next(left, empty))
            with pytest.raises(StorageError, match=r"0\.0 MiB are left .*; cure: free space"):
                export(store, tmp_path / "out")
            assert self.nothing_in(tmp_path / "out")

    def test_a_file_that_came_out_wrong_does_not_replace_a_good_one(self, store, tmp_path, monkeypatch):
        out = tmp_path / "out"
        (path,) = export(store, out, bands=("B02",))
        good, real = path.read_bytes(), cog._translate

        def torn(raw, finished, variable, compress):
            real(raw, finished, variable, compress)
            finished.write_bytes(finished.read_bytes()[:-5000])

        def other(raw, finished, variable, compress):
            real(raw, finished, variable, compress)
            with rasterio.open(finished, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
                values = file.read(1)
                values[300, 300] += 1
                file.write(values, 1)

        for broken in (torn, other):
            monkeypatch.setattr(cog, "_translate", broken)
            with pytest.raises(StorageError):
                export(store, out, bands=("B02",), overwrite=True)
            assert path.read_bytes() == good
            assert len(list(out.glob("*.tif"))) == 1

    def test_being_stopped(self, store, tmp_path, monkeypatch):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(cog, "_translate", stop)
        with pytest.raises(KeyboardInterrupt):
            export(store, tmp_path / "out")
        assert self.nothing_in(tmp_path / "out")

    def test_a_killed_exports_folder_is_removed_by_the_next(self, store, tmp_path):
        """A process of its own, killed in mid-export; then one that is at work is left alone."""
        code = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from pipeline.products import cog\n"
            "from pipeline.store.selection import Request\n"
            "def wait(*_):\n"
            "    print('at work', flush=True)\n"
            "    time.sleep(60)\n"
            "cog._translate = wait\n"
            "cog.export_cogs(sys.argv[1], Path(sys.argv[2]), Request())\n"
        )
        out = tmp_path / "out"
        words = [sys.executable, "-c", code, str(store), str(out)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline() == "at work\n"
                (working,) = out.iterdir()
                export(store, out, bands=("B02",))
                assert working in out.iterdir(), "a process holds it"
            finally:
                process.kill()
        assert working in out.iterdir()
        export(store, out, bands=("B03",))
        assert sorted(path.name[-7:] for path in out.glob("*.tif")) == ["B02.tif", "B03.tif"]


@pytest.mark.slow
def test_an_object_store_is_exported_like_a_folder(store, tmp_path):
    with s3_server() as server:
        url = "s3://bucket/cogs/lyon.zarr"
        place = place_of(url)
        for path in store.rglob("*"):
            if path.is_file():
                place.write(path.relative_to(store).as_posix(), path.read_bytes())
        remote = export(url, tmp_path / "remote", variables=("reflectance", "scl"))
        local = export(store, tmp_path / "local", variables=("reflectance", "scl"))
        assert [path.name for path in remote] == [path.name for path in local]
        assert [path.read_bytes() for path in remote] == [path.read_bytes() for path in local]
        server.spoil("cogs/lyon.zarr/reflectance/c/0/0/4/5", b"damaged")
        with pytest.raises(IntegrityError):
            export(url, tmp_path / "again")
        assert not (tmp_path / "again").exists()
