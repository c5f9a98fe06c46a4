"""The training file: every key is understood, and what does not fit is said in one line before anything is read."""

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from tests.training.imagery import write_toml
from training.data.training_file import Source, glob_root, read_training_file

EXAMPLE = Path(__file__).resolve().parents[3] / "training" / "example.toml"
GOOD = {"name": '"a"', "role": '"hr"', "path": '"images"'}


def toml(tmp_path, without=(), **keys):
    (tmp_path / "images").mkdir(exist_ok=True)
    lines = [f"{key} = {value}" for key, value in {**GOOD, **keys}.items() if key not in without]
    return write_toml(tmp_path, "\n".join(["[[source]]", *lines]))


def read(path) -> Source:
    return read_training_file(path).sources[0]


def test_the_example_shows_every_key_and_parses(tmp_path):
    """Where its folders exist, it is a training file; and no key is missing from it."""
    for name in ("orthos", "sen2naip", "sen2naip_pairs", "triplets.zarr", "drone.zarr", "products"):
        (tmp_path / name).mkdir()
    for name in ("orthos/a_2020.tif", "sen2naip/a/hr.tif", "sen2naip_pairs/a/hr.tif", "area.geojson", "stack.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    file = tmp_path / "example.toml"
    file.write_text(EXAMPLE.read_text())
    read_file = read_training_file(file)
    assert [source.role for source in read_file.sources] == ["hr", "hr", "pair", "triplets", "hr", "hr"] + [
        "sentinel2"
    ] * 3
    assert read_file.licence == "Orthophotos: city of Example, CC BY 4.0"
    keys = {name for name, field in Source.__dataclass_fields__.items() if not field.metadata.get("internal")}
    assert {key for key in keys if f"\n{key} = " not in EXAMPLE.read_text()} == set()


def test_what_is_not_stated_follows(tmp_path):
    source = read(toml(tmp_path))
    assert (source.target_gsd_m, source.evaluate_gsd_m) == ((1.9, 3.2), 2.5)
    assert read(toml(tmp_path, target_gsd_m="[2.0, 2.3]")).evaluate_gsd_m == 2.3
    assert read(toml(tmp_path, target_gsd_m="5")).target_gsd_m == (5.0, 5.0)
    assert read(toml(tmp_path, role='"sentinel2"')).target_gsd_m == (10.0, 10.0)
    (source,) = read_training_file(toml(tmp_path), gsd_m=5.0).sources
    assert (source.target_gsd_m, source.evaluate_gsd_m) == ((3.8, 6.4), 5.0)


def test_paths_are_relative_to_the_file_and_take_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_IMAGES", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    assert read(toml(tmp_path)).path == str(tmp_path / "images")
    assert read(toml(tmp_path, path='"${MY_IMAGES}"')).path == str(tmp_path / "elsewhere")


def test_the_digest_is_that_of_the_file(tmp_path):
    first = read_training_file(toml(tmp_path)).digest
    assert read_training_file(toml(tmp_path)).digest == first
    assert read_training_file(toml(tmp_path, weight="2.0")).digest != first


TABLE_OR_LIST = 'a table such as { B04 = 1, B03 = 2, B02 = 3 }, or a list such as ["B02", "B03", "B04", "B08"]'
KEYS = (
    "name, role, path, zarr, variable, catalog, collection, aoi, period, max_cloud, asset, bands, dates, gsd_m, "
    "target_gsd_m, evaluate_gsd_m, values, scale, offset, offset_dn, place, family, split, weight, "
    "images_per_place, evaluated, watched, coarse, coarse_bands, coarse_scale, coarse_offset, date, most_days, "
    "registered"
)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"wieght": "1.0"}, f"unknown key 'wieght'; expected one of {KEYS}; cure: did you mean 'weight'?"),
        ({"role": '"HR"'}, "role = 'HR'; expected one of hr, sentinel2, pair, triplets"),
        (
            {"role": '"sentinel-2"'},
            "role = 'sentinel-2'; expected one of hr, sentinel2, pair, triplets; cure: did you mean 'sentinel2'?",
        ),
        ({"gsd_m": '"0.6"'}, "gsd_m = '0.6'; expected a number above 0"),
        ({"gsd_m": "nan"}, "gsd_m = nan; expected a number above 0"),
        ({"weight": "0"}, "weight = 0; expected a number above 0"),
        ({"scale": "true"}, "scale = True; expected a number above 0"),
        ({"offset": '"a"'}, "offset = 'a'; expected a number"),
        ({"evaluated": '"yes"'}, "evaluated = 'yes'; expected true or false"),
        ({"dates": "0"}, "dates = 0; expected a whole number of at least 1"),
        ({"offset_dn": "5"}, "offset_dn = 5; expected 0 or -1000"),
        ({"period": "2020"}, "period = 2020; expected a text in quotes"),
        (
            {"target_gsd_m": "[3.2, 1.9]"},
            "target_gsd_m = [3.2, 1.9]; expected metres, or a range of them such as [1.9, 3.2]",
        ),
        (
            {"bands": '["B04", "red"]'},
            "bands names 'red'; expected some of B01, B02, B03, B04, B05, B06, B07, B08, B8A, B09, B11, B12",
        ),
        ({"bands": '["B04", "B04"]'}, "bands = ['B04', 'B04']; expected " + TABLE_OR_LIST),
        (
            {"bands": "{ red = 1 }"},
            "bands names 'red'; expected some of B01, B02, B03, B04, B05, B06, B07, B08, B8A, B09, B11, B12",
        ),
        (
            {"bands": "{ B04 = 0 }"},
            "bands.B04 = 0; expected a band's number from 1 on, or its name: " + TABLE_OR_LIST,
        ),
        (
            {"bands": '["B04", "B03", "B02", "B05"]'},
            "bands B05 with 8-bit values; expected some of B04, B03, B02, B08, which alone are "
            'brought from brightness to reflectance; cure: values = "reflectance" with its scale',
        ),
        ({"zarr": '"a.zarr"'}, "path and zarr of path, zarr, catalog; expected exactly one of them"),
        ({"asset": '"image"'}, "asset without catalog; expected asset only beside catalog"),
        (
            {"place": '"("'},
            "place = '(' is not a regular expression (missing ), unterminated subpattern at position 0); "
            'expected such as "(\\\\w+)_2020"',
        ),
        (
            {"place": '"a"'},
            "place = 'a' has no group; expected a group that names the place, such as \"(\\\\w+)_2020\"",
        ),
        (
            {"gsd_m": "3.0", "target_gsd_m": "[2.0, 2.5]"},
            "images of 3 m for target_gsd_m = [2, 2.5]; expected images at least as fine as 2 m; "
            "cure: target_gsd_m = [3, 3], or leave the source out",
        ),
        ({"scale": "0.1"}, 'scale and offset with 8-bit values; expected values = "reflectance"'),
        (
            {"role": '"sentinel2"', "values": '"8-bit"'},
            "target_gsd_m, evaluate_gsd_m and values do not apply to role sentinel2; expected them for role hr only",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, keys, says):
    path = toml(tmp_path, **keys)
    with pytest.raises(UsageError) as error:
        read_training_file(path)
    assert str(error.value) == f"{path}: source 'a': {says}"


@pytest.mark.parametrize(
    ("keys", "without", "says"),
    [
        (
            {"path": '"none"'},
            (),
            "path = 'none': {folder}/none does not exist; expected an existing folder, file or glob",
        ),
        ({"path": '"none/*.tif"'}, (), "path = 'none/*.tif': no folder {folder}/none; expected an existing folder"),
        (
            {"path": '"images/*.tif"'},
            (),
            "path = 'images/*.tif' matches no file in {folder}/images; expected a glob that matches images",
        ),
        (
            {"path": '"${NOT_SET_ANYWHERE}/a"'},
            (),
            "path = '${{NOT_SET_ANYWHERE}}/a': NOT_SET_ANYWHERE is not set; "
            "expected an environment variable NOT_SET_ANYWHERE",
        ),
        (
            {"zarr": '"images"'},
            ("path",),
            'zarr without variable; expected variable = "reflectance", or what the store calls it',
        ),
        ({"catalog": '"cdse"'}, ("path",), 'catalog without aoi; expected aoi = "area.geojson"'),
        ({}, ("path",), "none of path, zarr, catalog; expected exactly one of them"),
        ({}, ("role",), 'no role; expected role = "..."'),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, keys, without, says):
    path = toml(tmp_path, without, **keys)
    with pytest.raises(UsageError) as error:
        read_training_file(path)
    assert str(error.value) == f"{path}: source 'a': {says.format(folder=tmp_path)}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sources = 1", "{path}: unknown key 'sources'; expected name, licence, source; cure: did you mean 'source'?"),
        ("name = 1", "{path}: name = 1; expected a text in quotes"),
        ('name = "a"', "{path} names no source; expected at least one [[source]]"),
        ("source = [1]", "{path} names no source; expected at least one [[source]]"),
        (
            '[[source]]\nname = "a"\nrole = "hr"\npath = "."\n' * 2,
            "{path}: two sources are called 'a'; expected a name of its own for each",
        ),
    ],
)
def test_files_that_are_no_training_file_say_so(tmp_path, text, says):
    path = write_toml(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_training_file(path)
    assert str(error.value) == says.format(path=path)


def test_broken_or_absent_files_say_so(tmp_path):
    with pytest.raises(
        UsageError, match="is no file; expected a training file; cure: start from training/example.toml"
    ):
        read_training_file(tmp_path / "none.toml")
    with pytest.raises(UsageError, match=r"is not TOML \(.*end of document.*\); expected a training file"):
        read_training_file(write_toml(tmp_path, "name = "))


def test_the_fixed_part_of_a_glob():
    assert glob_root(Path("/a/b/*/c/*.tif")) == Path("/a/b")
    assert glob_root(Path("/a/b/c.tif")) == Path("/a/b/c.tif")
