"""`python -m pipeline.export` as users meet it: flags, words, JSON, exit codes, on a store that a run wrote."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import zarr

from pipeline import export
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, config_for, run, write_aoi

BANDS = ("B02", "B03", "B04", "B11")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished store of one date."""
    folder = tmp_path_factory.mktemp("finished")
    archive = make_archive(folder, [make_scene(folder, scene_id="S2A_ONE", size_m=1200)])
    aoi = write_aoi(folder / "lake.geojson", box(LEFT + 310, TOP - 890, LEFT + 890, TOP - 310))
    run(config_for(archive, bands=BANDS), aoi, folder / "lake.zarr")
    return folder / "lake.zarr"


@pytest.fixture
def store(finished, tmp_path, monkeypatch):
    """A copy of the store in the working folder, which is empty but for it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "lake.zarr")
    return tmp_path / "lake.zarr"


@pytest.fixture
def call(capsys):
    """Run the command; returns (exit code, stdout, stderr)."""

    def call(*words):
        code = export.main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


def dn(store, name="reflectance"):
    return np.asarray(zarr.open_group(str(store), mode="r")[name][0])


def bounds(store):
    from pyproj import Transformer

    left, bottom, right, top = zarr.open_group(str(store), mode="r").attrs["spatial:bbox"]
    return Transformer.from_crs(32632, 4326, always_xy=True).transform_bounds(left, bottom, right, top)


def test_the_command_of_the_issue(store, call):
    code, out, err = call("lake.zarr", "--to", "cog", "--out", "lake_tifs/")
    assert (code, err) == (0, "")
    names = [f"lake_utm32n_2024-06-17_{band}.tif" for band in BANDS]
    assert out.splitlines()[0].startswith("4 files in lake_tifs, ")
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == names
    assert out.splitlines()[-1] == "1 STAC item: lake_utm32n_2024-06-17.json"
    for i, name in enumerate(names):
        with rasterio.open(f"lake_tifs/{name}") as file:
            assert np.array_equal(file.read(1), dn(store)[i])
            assert file.crs.to_epsg() == 32632
            tags = file.tags()
            assert (tags["scenes"], tags["period"], tags["composite"]) == ("S2A_ONE", "2024-06-17", "mosaic")


def test_as_a_program_from_outside(store):
    words = [sys.executable, "-m", "pipeline.export", "lake.zarr", "--bands", "B04,B03", "--single-file"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    with rasterio.open("lake_tifs/lake_utm32n_2024-06-17_reflectance.tif") as file:
        assert np.array_equal(file.read(), dn(store)[[2, 1]])


def test_a_store_in_the_working_folder_names_its_files(store, call, monkeypatch, tmp_path):
    monkeypatch.chdir(store)
    code, out, _ = call(".", "--bands", "B03", "--out", tmp_path / "tifs", "--json")
    assert code == 0
    assert json.loads(out)["files"][0]["path"].endswith("/tifs/lake_utm32n_2024-06-17_B03.tif")


def test_variables_and_json(store, call):
    code, out, _ = call("lake.zarr", "--variable", "quality,scl", "--json", "--compress", "zstd")
    said = json.loads(out)
    assert code == 0
    assert [entry["path"].rsplit("_", 1)[1] for entry in said["files"]] == ["quality.tif", "scl.tif"]
    for entry, name in zip(said["files"], ("quality", "scl"), strict=True):
        with rasterio.open(entry["path"]) as file:
            assert file.profile["compress"] == "zstd"
            assert np.array_equal(file.read(1), dn(store, name))
    assert said["notes"] == []


def test_a_box_in_one_word_or_four(store, call):
    west, south, east, north = bounds(store)
    inner = [f"{value:.6f}" for value in (west + 0.003, south + 0.002, east - 0.002, north - 0.001)]
    forms = [("--bbox", ",".join(inner)), ("--bbox", *inner), (f"--bbox={','.join(inner)}",)]
    shapes = set()
    for i, form in enumerate(forms):
        code, out, _ = call("lake.zarr", "--bands", "B03", "--out", f"o{i}", *form, "--json")
        assert code == 0
        with rasterio.open(json.loads(out)["files"][0]["path"]) as file:
            shapes.add((file.shape, file.bounds))
    assert len(shapes) == 1
    code, out, _ = call("--bbox", *inner, "lake.zarr", "--bands", "B03", "--out", "first")
    assert code == 0, "the store may follow the box"
    code, _, err = call("lake.zarr", "--bbox", "-1.5,-44.1,-1.4,-44.0")
    assert code == 2
    assert "the box -1.5, -44.1, -1.4, -44 does not meet lake.zarr" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lake.zarr", "--bands", "B04,B99"], "lake.zarr holds no band B99; expected of B02, B03, B04, B11"),
        (["lake.zarr", "--bands", ","], "--bands names nothing"),
        (["lake.zarr", "--variable", "uncertainty"], "cure: uncertainty is written by runs with --members 2 or more"),
        (["lake.zarr", "--variable", ""], "--variable names nothing"),
        (["lake.zarr", "--time", "2023"], "holds no time step '2023'; expected all, 0, or one of 2024-06-17"),
        (["lake.zarr", "--bbox", "1,2,3"], "--bbox 1,2,3; expected four degrees"),
        (["lake.zarr", "--bbox", "a,b,c,d"], "--bbox a,b,c,d; expected four degrees"),
        (["lake.zarr", "--bbox", "3,2,1,4"], "the box 3,2,1,4 is none"),
        (["lake.zarr", "--out", "s3://bucket/tifs"], "--out s3://bucket/tifs is not a folder"),
        (["lake.zarr", "--out", "new/tifs"], "--out new/tifs: there is no folder "),
        (["nothing.zarr"], "nothing.zarr is not a Zarr store"),
        (["ftp://host/a.zarr"], "ftp:// is not a valid store address"),
    ],
)
def test_bad_words_are_one_line(store, call, words, says):
    code, out, err = call(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert says in err
    assert [path.name for path in store.parent.iterdir()] == ["lake.zarr"]


def test_damage_ends_with_seven_and_no_file(store, call):
    chunk = next(path for path in sorted((store / "reflectance" / "c").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    code, out, err = call("lake.zarr")
    assert (code, out, err.count("\n")) == (7, "", 1)
    assert "cure: python -m pipeline.check lake.zarr --verify full --repair" in err
    assert not (store.parent / "lake_tifs").exists()


def test_unfinished_stores_are_refused_unless_asked_for(store, call):
    meta = json.loads((store / "zarr.json").read_bytes())
    meta["attributes"]["status"] = "incomplete"
    (store / "zarr.json").write_text(json.dumps(meta))
    code, _, err = call("lake.zarr")
    assert code == 2
    assert "or export what there is with --allow-incomplete" in err
    code, _, err = call("lake.zarr", "--allow-incomplete", "--bands", "B03")
    assert (code, err) == (0, "note: lake.zarr is not complete; units that are missing are nodata\n")


def test_files_are_replaced_only_when_asked(store, call):
    assert call("lake.zarr", "--bands", "B03")[0] == 0
    code, _, err = call("lake.zarr")
    assert code == 2
    assert "B03.tif exists; expected a folder without files of these names; cure: --overwrite" in err
    assert call("lake.zarr", "--overwrite")[0] == 0


def test_being_stopped_is_said(store, call, monkeypatch):
    def stop(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.products.cog.export_cogs", stop)
    code, out, err = call("lake.zarr")
    assert (code, out) == (130, "")
    assert err == "stopped at once; the files that are there are complete, and --overwrite replaces them\n"
