"""Settings of Python users become those of the command."""

from datetime import date, datetime
from pathlib import Path

import pytest

from pipeline.api.settings import Manner, settled, with_file
from pipeline.config import RunConfig
from pipeline.errors import UsageError


def config(**settings):
    return settled(settings, "run")[0]


def test_nothing_given_is_the_default():
    assert settled({}, "run") == (RunConfig(), Manner())


@pytest.mark.parametrize(
    ("given", "name", "kept"),
    [
        ({"start": date(2024, 6, 1)}, "start", "2024-06-01"),
        ({"end": datetime(2024, 6, 1, 10, 30)}, "end", "2024-06-01T10:30:00"),
        ({"catalog": Path("a/archive.json")}, "catalog", "a/archive.json"),
        ({"bands": "B02, B03,B04"}, "bands", ("B02", "B03", "B04")),
        ({"bands": ("B02", "B8A")}, "bands", ("B02", "B8A")),
        ({"options": {"steps": 50}}, "options", ("steps=50",)),
        ({"conditions": {"map": Path("roads.gpkg")}}, "conditions", ("map=roads.gpkg",)),
        ({"mtf": 0.25}, "mtf", ("0.25",)),
        ({"mtf": {"B02": 0.3}}, "mtf", ("B02=0.3",)),
        ({"weights": Path("sr.safetensors")}, "weights", ("sr.safetensors",)),
        ({"weights": "a", "fusion_weights": "b"}, "weights", ("a", "fusion=b")),
        ({"exclude": "S2A_X"}, "exclude", ("S2A_X",)),
        ({"max_cloud": 20}, "max_cloud", 20),
        ({"offset": None}, "offset", None),
    ],
)
def test_values_as_python_has_them(given, name, kept):
    assert getattr(config(**given), name) == kept


def test_manner_is_apart_from_pixels():
    found, manner = settled({"workers": 2, "cluster": "inline", "seed": 3}, "run")
    assert found == RunConfig(seed=3)
    assert manner == Manner(workers=2, cluster="inline")


def test_a_file_is_overridden(tmp_path):
    (tmp_path / "a.toml").write_text('seed = 1\nsr = "bicubic"\n')
    found = config(config=tmp_path / "a.toml", seed=2)
    assert (found.seed, found.sr) == (2, "bicubic")


def test_a_file_of_a_whole_run_is_taken(tmp_path):
    (tmp_path / "a.toml").write_text(
        'aoi = "region.geojson"\nout = "a.zarr"\nworkers = 3\nrepair-aoi = true\nquiet = true\noption = ["steps=5"]\n'
    )
    given = with_file({"config": tmp_path / "a.toml", "out": "b.zarr", "aoi": None})
    assert given == {
        "aoi": str(tmp_path / "region.geojson"), "out": "b.zarr", "workers": 3, "repair": True, "options": ["steps=5"],
    }  # fmt: skip
    assert "aoi" not in with_file({"config": tmp_path / "a.toml", "bbox": (1, 2, 3, 4)})
    with pytest.raises(UsageError, match="plan_only"):
        with_file({"config": write(tmp_path / "b.toml", "plan_only = true")})


def write(path, text):
    path.write_text(text)
    return path


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        config(member=3)
    assert caught.value.found == "run(member=...)"
    assert "members" in caught.value.expected
    assert caught.value.cure == "did you mean members?"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"workers": 0}, "workers = 0"),
        ({"workers": "two"}, "workers = 'two'"),
        ({"workers": True}, "workers = True"),
        ({"overwrite": 1}, "overwrite = 1"),
        ({"verify": "closely"}, "verify = 'closely'"),
        ({"members": "3"}, "run: members = '3'"),
        ({"bands": 5}, "no such band: 5"),
        ({"sr": 3}, "run: sr = 3"),
    ],
)
def test_wrong_values_are_usage_errors(given, found):
    with pytest.raises(UsageError) as caught:
        settled(given, "run")
    assert caught.value.found == found
    assert caught.value.expected
