"""`training.train --check` and cautions: what is wrong with images is listed, and what may surprise is said."""

import numpy as np
import pytest
from PIL import Image

from tests.training.imagery import placed, texture, write_raster
from training import train
from training.data import check as module
from training.data.cautions import cautions
from training.data.sources import TrainingData
from training.data.training_file import read_training_file

WHERE = (600_000, 5_000_000)


@pytest.fixture
def folder(tmp_path):
    """Good, cut short, one band missing, black, flat, and no image at all."""
    images = tmp_path / "images"
    for name in ("good", "short", "black", "flat"):
        pixels = texture(300, 300)
        if name in ("black", "flat"):
            pixels = np.full_like(pixels, 0 if name == "black" else 90)
        write_raster(images / f"{name}.tif", pixels, **placed(*WHERE, 1.0))
    write_raster(images / "two.tif", texture(300, 300, bands=2), **placed(*WHERE, 1.0))
    (images / "text.tif").write_text("no image")
    short = images / "short.tif"
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[[source]]\nname = "orthos"\nrole = "hr"\npath = "images"\n')
    return file


def test_everything_wrong_is_listed_by_file(folder, capsys):
    assert train.main(["--check", "--data", str(folder)]) == 5
    said = capsys.readouterr()
    by_file = {
        line.split("/images/")[-1].split(".tif")[0]: line for line in said.out.splitlines() if "/images/" in line
    }
    assert set(by_file) == {"short", "text", "two", "black", "flat"}
    assert "cannot be read" in by_file["short"]
    assert "cannot be opened" in by_file["text"]
    assert "holds 2 bands" in by_file["two"]
    assert "shows no ground" in by_file["black"]
    assert "is flat" in by_file["flat"]
    assert "orthos: 3 of 6 can be used, 67% of the pixels show ground; " in said.out
    assert "3 of 6 files cannot be used; expected files that can be read, and show ground" in said.err


def test_a_good_folder_passes(folder, capsys):
    for path in (folder.parent / "images").iterdir():
        if path.stem != "good":
            path.unlink()
    assert train.main(["--check", "--data", str(folder)]) == 0
    assert "orthos: 1 of 1 can be used, 100% of the pixels show ground; 0 MB in" in capsys.readouterr().out


@pytest.mark.parametrize(("tiled", "limit", "said"), [(False, 1000, 1), (True, 1000, 0), (False, 10**7, 0)])
def test_large_files_in_strips_are_named(folder, monkeypatch, tiled, limit, said):
    layout = {"tiled": True, "blockxsize": 128, "blockysize": 128} if tiled else {"blockysize": 4}
    write_raster(folder.parent / "images" / "good.tif", texture(300, 300), **placed(*WHERE, 1.0), **layout)
    monkeypatch.setattr(module, "WHOLE_BYTES", limit)
    lines = []
    module.check(folder, lines.append)
    strips = [line for line in lines if "good.tif" in line]
    assert len(strips) == said
    assert all("lies in strips of 4 x 300 px" in line and "gdal_translate -of COG" in line for line in strips)


def of_files(tmp_path, names, **keys):
    folder = tmp_path / "tiles"
    folder.mkdir()
    for name in names:
        Image.fromarray(texture(64, 64).transpose(1, 2, 0).astype(np.uint8)).save(folder / f"{name}.png")
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    file = tmp_path / "mine.toml"
    file.write_text(f'name = "mine"\n[[source]]\nname = "orthos"\nrole = "hr"\npath = "tiles"\ngsd_m = 2.5\n{more}')
    return cautions(TrainingData(read_training_file(file)))


def test_tiles_of_one_mosaic_are_said_to_count_as_places(tmp_path):
    (line,) = of_files(tmp_path, [f"town_{row}_{col}" for row in range(3) for col in range(2)])
    assert "orthos: 6 files without georeferencing count as 6 places, and 6 of them are called town...;" in line
    assert "place = '(town)' makes one place of them" in line


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["paris", "rome", "oslo", "lima", "accra"], {}),
        (["town_1", "town_2", "town_3"], {}),  # few
        ([f"town_{number}" for number in range(6)], {"place": r"'(town)_\d'"}),
        ([f"town_{number}" for number in range(6)], {"split": '"train"'}),
    ],
)
def test_other_files_are_not(tmp_path, names, keys):
    assert of_files(tmp_path, names, **keys) == []


def test_generated_detail_is_no_truth(tmp_path):
    import xarray as xr

    image = xr.DataArray(texture(64, 64).astype(np.uint8), dims=("band", "y", "x"))
    dataset = image.to_dataset(name="image").assign_attrs(generated_bands=["B02", "B03", "B04"])
    dataset.to_zarr(tmp_path / "store.zarr", consolidated=False)
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\n[[source]]\nname = "own"\nrole = "hr"\nzarr = "store.zarr"\nvariable = "image"\ngsd_m = 2.5\n'
    )
    (line,) = cautions(TrainingData(read_training_file(file)))
    assert "store.zarr holds detail in B02, B03, B04 that a network generated" in line
