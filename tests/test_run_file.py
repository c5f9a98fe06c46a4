"""Whole runs in a file: every setting, relative paths, what is refused, and a store's plan as a file again."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import check, run_file
from pipeline import run as command
from pipeline.aoi.aoi import aoi_from_geometry, read_aoi
from pipeline.arguments import aoi_of, config_of, parser
from pipeline.bbox import joined
from pipeline.config import RunConfig
from pipeline.errors import UsageError
from pipeline.planning.plan import load_plan, plan_path
from pipeline.run_file import as_toml
from tests.archive.synthetic import make_archive, make_scene
from tests.running.conftest import LEFT, TOP, box, write_aoi

ACTS = {
    "config",
    "plan",
    "plan_only",
    "parts",
    "wait_for_plan",
    "shard_of",
    "of_pass",
    "finalise",
    "dry_run",
    "overwrite",
    "json",
    "help",
    "version",
}
# A value of every setting that is not its default, as in the file and as flags.
SETTINGS = {
    "bbox": ([4.8, 45.7, 4.9, 45.8], ["--bbox", "4.8,45.7,4.9,45.8"]),
    "repair_aoi": (True, ["--repair-aoi"]),
    "whole_archive": (True, ["--whole-archive"]),
    "max_area_km2": (5, ["--max-area-km2", "5"]),
    "catalog": ("planetary-computer", ["--catalog", "planetary-computer"]),
    "start": ("2024-06-01", ["--start", "2024-06-01"]),
    "end": ("2024-06-30", ["--end", "2024-06-30"]),
    "max_cloud": (20, ["--max-cloud", "20"]),
    "composite": ("median", ["--composite", "median"]),
    "exclude": (["S2A_X"], ["--exclude", "S2A_X"]),
    "offset": (-1000, ["--offset", "-1000"]),
    "sr": ("bicubic", ["--sr", "bicubic"]),
    "weights": (["hf://a/b/c.safetensors"], ["--weights", "hf://a/b/c.safetensors"]),
    "fusion_weights": ("/w/f.safetensors", ["--fusion-weights", "/w/f.safetensors"]),
    "option": (["steps=50"], ["--option", "steps=50"]),
    "condition": (["map=/maps/roads.gpkg"], ["--condition", "map=/maps/roads.gpkg"]),
    "estimate": ("sample", ["--estimate", "sample"]),
    "members": (1, ["--members", "1"]),
    "batch": (2, ["--batch", "2"]),
    "seed": (7, ["--seed", "7"]),
    "consistency": ("box", ["--consistency", "box"]),
    "precision": ("float16", ["--precision", "float16"]),
    "mtf": (["B02=0.25"], ["--mtf", "B02=0.25"]),
    "clip": (True, ["--clip"]),
    "out": ("/stores/run.zarr", ["--out", "/stores/run.zarr"]),
    "bands": (["B02", "B08"], ["--bands", "B02,B08"]),
    "max_output_gb": (12.5, ["--max-output-gb", "12.5"]),
    "shard": (True, ["--shard"]),
    "chunk_px": (240, ["--chunk-px", "240"]),
    "unit_chunks": (2, ["--unit-chunks", "2"]),
    "chunk_bands": ("1", ["--chunk-bands", "1"]),
    "verify": ("full", ["--verify", "full"]),
    "mixed_software": (True, ["--mixed-software"]),
    "cluster": ("local", ["--cluster", "local"]),
    "workers": (3, ["--workers", "3"]),
    "max_outage": (5, ["--max-outage", "5"]),
    "price_per_hour": (0.04, ["--price-per-hour", "0.04"]),
    "log_format": ("json", ["--log-format", "json"]),
    "quiet": (True, ["--quiet"]),
}


FLAGS_ALONE = ("repair_aoi", "clip", "shard", "quiet", "whole_archive")  # which no file may say no to


def toml(values):
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def parsed(*words):
    return run_file.parse(parser(), joined(list(map(str, words))))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settled(arguments):
    """All that arguments amount to: what decides pixels, and the rest."""
    rest = {name: value for name, value in vars(arguments).items() if name not in (*RunConfig().to_json(), "config")}
    rest.pop("fusion_weights")
    return config_of(arguments), rest


def test_the_file_takes_every_setting_as_flags_do(here):
    flags = [word for _, words in SETTINGS.values() for word in words]
    Path("run.toml").write_text(toml({name: value for name, (value, _) in SETTINGS.items()}))
    assert settled(parsed("--config", "run.toml")) == settled(parsed(*flags))
    dests = {action.dest for action in parser()._actions} - ACTS - {"aoi"}
    assert dests == {run_file._SPELLED.get(name, name) for name in SETTINGS}


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in FLAGS_ALONE])
def test_a_flag_wins_over_the_file(name):
    value, flags = SETTINGS[name]
    others = {"composite": "none", "estimate": "mean", "consistency": "tent", "verify": "none", "log_format": "text"}
    others["chunk_bands"], others["precision"] = "all", "tf32"
    other = {str: others.get(name, "B03" if name == "bands" else "x"), list: value, int: 24, float: 1.5, bool: False}
    Path("run.toml").write_text(toml({name: 0 if name == "offset" else other[type(value)]}))
    config, rest = settled(parsed("--config", "run.toml", *flags))
    expected, expected_rest = settled(parsed(*flags))
    if name in ("weights", "fusion_weights"):  # roles, not one value
        assert set(expected.weights) <= set(config.weights)
    else:
        assert (config, rest) == (expected, expected_rest)


def test_relative_paths_are_those_of_the_file(here):
    folder = here / "settings"
    folder.mkdir()
    for name in ("archive.json", "prior.safetensors"):
        (folder / name).touch()
    (folder / "run.toml").write_text(
        toml({
            "aoi": "../area.geojson", "out": "runs/a.zarr", "catalog": "archive.json",
            "weights": ["sr.safetensors", "fusion=f.safetensors", "hf://a/b/c.safetensors"],
            "options": ["prior=prior.safetensors", "steps=50"], "conditions": ["map=roads.gpkg"],
        })
    )  # fmt: skip
    found = parsed("--config", "settings/run.toml")
    assert (found.aoi, found.out) == ("area.geojson", "settings/runs/a.zarr")
    config = config_of(found)
    assert config.catalog == "settings/archive.json"
    assert config.weights == ("settings/sr.safetensors", "fusion=settings/f.safetensors", "hf://a/b/c.safetensors")
    assert config.options == ("prior=settings/prior.safetensors", "steps=50")
    assert config.conditions == ("map=settings/roads.gpkg",)
    (folder / "run.toml").write_text(toml({"out": "s3://bucket/a.zarr", "catalog": "earth-search"}))
    found = parsed("--config", folder / "run.toml")
    assert (found.out, config_of(found).catalog) == ("s3://bucket/a.zarr", "earth-search")


def test_a_place_on_the_command_line_replaces_that_of_the_file(here):
    write_aoi(here / "area.geojson", box(LEFT, TOP - 900, LEFT + 900, TOP))
    Path("run.toml").write_text('aoi = "area.geojson"\naoi_name = "mine"\n')
    assert aoi_of(parsed("--config", "run.toml")).name == "area"
    area = aoi_of(parsed("--config", "run.toml", "--bbox", "4.8,45.7,4.9,45.8"))
    assert area.name == "bbox_4.8_45.7_4.9_45.8"


def test_an_area_in_the_file(here):
    aoi = read_aoi(str(write_aoi(here / "area.geojson", box(LEFT, TOP - 900, LEFT + 900, TOP))))
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in aoi.geometry.items())
    Path("field.toml").write_text(f"[aoi]\n{text}\n")
    found = aoi_of(parsed("--config", "field.toml"))
    assert (found.digest, found.name) == (aoi.digest, "field")
    assert aoi_from_geometry(aoi.geometry, "x").digest == aoi.digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compsite = 'median'", "did you mean composite?"),
        ("worker = 2", "did you mean workers?"),
        ("overwrite = true", "give --overwrite on the command line"),
        ("plan = 'a.zarr'", "give --plan on the command line"),
        ("workers = 'two'", "workers = 'two'; expected a whole number"),
        ("workers = true", "expected a whole number"),
        ("quiet = 1", "expected true or false"),
        ("verify = 'all'", "one of none, size, full"),
        ("out = 3", "a text in quotes"),
        ("max_outage = 'x'", "expected a number"),
        ("composite = 'best'", "one of mosaic"),
    ],
)
def test_what_does_not_belong_there_is_refused_by_name(text, said, capsys):
    Path("run.toml").write_text(text)
    assert command.main(["--config", "run.toml", "--bbox", "4.8,45.7,4.9,45.8", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.fixture
def store(here, capsys):
    """A finished store of settings that are not the defaults."""
    folder = here / "data"
    folder.mkdir()
    make_archive(folder, [make_scene(folder, scene_id="S2A_ONE", size_m=1200)])
    write_aoi(here / "lake shore.geojson", box(LEFT + 310, TOP - 890, LEFT + 890, TOP - 310))
    words = ["--aoi", "lake shore.geojson", "--catalog", "data/archive.json", "--sr", "bicubic", "--bands", "B04,B08"]
    words += ["--seed", "5", "--clip", "--chunk-px", "240", "--mtf", "B04=0.3", "--cluster", "inline", "--workers", "1"]
    assert command.main([*words, "--out", "first.zarr"]) == 0
    capsys.readouterr()
    return here / "first.zarr"


class TestAsConfig:
    def test_the_file_of_a_plan_makes_the_same_plan(self, store, capsys):
        assert check.main([str(store), "--as-config"]) == 0
        text = capsys.readouterr().out
        found = tomllib.loads(text)
        assert found["aoi_name"] == "lake_shore"
        assert (found["seed"], found["bands"], found["clip"]) == (5, ["B04", "B08"], True)
        days = "2024-06-17 to 2024-06-17"
        used = rf"# +scenes of {days} were used; without dates all scenes of this catalogue are searched\n"
        assert re.search(used, text), "it had no dates, and the catalogue is a file"
        Path("again.toml").write_text(text)
        assert command.main(["--config", "again.toml", "--out", "second.zarr", "--plan-only"]) == 0
        first, second = load_plan(store), load_plan("second.zarr")
        assert second.digest == first.digest
        assert second.config == first.config
        assert as_toml(second).split("\n", 1)[1] == text.rstrip("\n").split("\n", 1)[1] + "\n"

    @pytest.mark.parametrize(
        ("catalog", "said"),
        [
            ("earth-search", "used; without a first day the 90 days before today are searched"),
            ("sample", "used; without dates all scenes of this catalogue are searched"),
            ("gone.json", "used"),
        ],
    )
    def test_what_a_search_without_dates_covers_is_said_by_catalogue(self, store, catalog, said):
        plan = load_plan(store)
        text = as_toml(replace(plan, config=replace(plan.config, catalog=catalog)))
        (line,) = (line for line in text.splitlines() if "were used" in line)
        assert line.endswith(said)

    def test_a_plan_without_its_area_says_so(self, store, capsys):
        content = json.loads(plan_path(store).read_bytes())
        content.pop("aoi_geometry")
        content.pop("checksum", None)
        from pipeline.store import sealed

        content.pop(sealed.CHECKSUM, None)
        plan_path(store).write_bytes(sealed.dump(content, indent=1, sort_keys=False))
        digest = load_plan(store).digest
        assert digest == content["plan_digest"], "the area is not part of the digest; its digest is"
        assert check.main([str(store), "--as-config"]) == 2
        assert "does not hold its area" in capsys.readouterr().err

    def test_texts_are_toml_whatever_they_hold(self):
        for text in ('a"b\\c\n\t', "\x7f\x01", "Zürich 東京", "\U0001f6f0"):
            assert tomllib.loads(f"x = {run_file._value(text)}")["x"] == text


def test_decided_settings_are_those_of_the_file(here):
    Path("run.toml").write_text("seed = 4\nworkers = 2\n")
    assert run_file.decided(Path("run.toml")) == RunConfig(seed=4)
    with pytest.raises(UsageError, match="workers"):
        RunConfig.from_toml(Path("run.toml"))
