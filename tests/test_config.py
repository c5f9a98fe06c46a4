"""RunConfig: every knob once, from defaults, TOML and flags, and what it refuses."""

import json
import tomllib
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bands import BAND_NAMES
from pipeline.config import COMPOSITES, CONSISTENCIES, RunConfig, differences
from pipeline.errors import UsageError
from pipeline.run import config_of, parser
from pipeline.superres.precision import PRECISIONS

words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
configs = st.builds(
    RunConfig,
    catalog=words,
    start=words,
    end=words,
    max_cloud=st.floats(0, 100),
    composite=st.sampled_from(COMPOSITES),
    bands=st.lists(st.sampled_from(BAND_NAMES), unique=True).map(tuple),
    sr=words,
    weights=st.lists(words.filter(bool), max_size=3).map(tuple),
    members=st.integers(0, 1000),
    batch=st.integers(0, 64),
    mtf=st.lists(st.sampled_from(["0.3", "B02=0.25", "B11=0.05"]), unique=True).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    consistency=st.sampled_from(CONSISTENCIES),
    precision=st.sampled_from(PRECISIONS),
    offset=st.sampled_from([None, 0, -1000]),
    clip=st.booleans(),
    chunk_px=st.integers(1, 100).map(lambda n: 24 * n),
    unit_chunks=st.integers(0, 50),
    shard=st.booleans(),
)


def toml(config):
    """TOML text of a config; None has no TOML form and is left out."""
    return "\n".join(f"{k} = {json.dumps(v)}" for k, v in config.to_json().items() if v is not None)


def from_text(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return RunConfig.from_toml(path)


@given(configs)
def test_toml_and_json_give_the_same_config_back(config):
    assert RunConfig.from_mapping(tomllib.loads(toml(config))) == config
    assert RunConfig.from_mapping(json.loads(json.dumps(config.to_json()))) == config


def test_a_toml_file_changes_what_it_names_and_nothing_else(tmp_path):
    config = from_text(tmp_path, 'composite = "median"\nmax_cloud = 20\nbands = ["B04", "B02", "B03"]\n')
    assert differences(RunConfig(), config) == [
        "max_cloud: 60.0 -> 20",
        "composite: 'mosaic' -> 'median'",
        "bands: () -> ('B04', 'B02', 'B03')",
    ]
    assert from_text(tmp_path, "") == RunConfig()


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1


def test_bands_come_in_the_order_of_the_instrument():
    assert RunConfig().band_names == BAND_NAMES
    assert RunConfig(bands=("B12", "B02", "B02")).band_names == ("B02", "B12")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sead = 1", "sead"),
        ("[run]\nseed = 1", "run"),
        ('seed = "1"', "seed = '1'"),
        ("seed = 1.5", "seed = 1.5"),
        ("seed = true", "seed = True"),
        ("clip = 1", "clip = 1"),
        ('clip = "yes"', "clip = 'yes'"),
        ('max_cloud = "20"', "max_cloud = '20'"),
        ('bands = "B02,B03"', r'\["B02", "B03", "B04"\]'),
        ("bands = [2, 3]", "no such band: 2, 3"),
        ('bands = ["B10"]', "no such band: B10; expected .*; cure: Level-2A has no B10 [(]cirrus[)]"),
        ('bands = ["b10"]', "cure: Level-2A has no B10"),
        ("start = 2024-06-01", '2024-06-01; expected a date in quotes, such as "2024-06-01"'),
        ('offset = "0"', "expected 0 or -1000"),
        ("offset = false", "expected 0 or -1000"),
        ("offset = 1000", "expected 0 or -1000"),
        ('composite = "best"', "mosaic, median, none"),
        ("composite = 1", "composite = 1"),
        ('consistency = "exact"', "box, tent, none"),
        ("chunk_px = 0", "multiple of 24"),
        ("chunk_px = 500", "multiple of 24"),
        ("chunk_px = -24", "multiple of 24"),
        ("unit_chunks = -1", "unit_chunks = -1; expected at least 1, or 0 to have it chosen"),
        ("members = -1", "members = -1; expected 0 to 1000"),
        ('estimate = "sample"\nmembers = 2', "estimate = sample with members = 2; expected one draw"),
        ('mtf = ["B02=0.9"]', "mtf = 'B02=0.9'; expected a value from 0.05 to 0.6"),
        ('mtf = ["B2=0.2"]', "mtf = 'B2=0.2'"),
        ('mtf = ["x"]', "mtf = 'x'"),
        ("members = 1001", "members = 1001"),
        ("batch = 65", "batch = 65; expected 1 to 64"),
        ("seed = -1", "seed = -1"),
        ("max_cloud = 100.1", "0 to 100 per cent"),
        ("max_cloud = -1", "0 to 100 per cent"),
        ("max_cloud = nan", "0 to 100 per cent"),
        ("seed = ", "is not TOML"),
        ("seed = 1\nseed = 2", "is not TOML"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, text, said):
    with pytest.raises(UsageError, match=said) as caught:
        from_text(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_unknown_names_are_listed_with_the_known_ones(tmp_path):
    with pytest.raises(UsageError) as caught:
        from_text(tmp_path, "sead = 1\nmax_clouds = 2\n")
    assert "max_clouds, sead" in str(caught.value)
    assert all(field.name in str(caught.value) for field in fields(RunConfig))


@pytest.mark.parametrize("seed", [2**64, 2**70])
def test_seeds_have_64_bits(seed):
    assert RunConfig(seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(UsageError, match="seed"):
        RunConfig(seed=seed)


@pytest.mark.parametrize("what", ["missing", "folder", "binary", "large"])
def test_files_that_are_no_toml(tmp_path, what):
    path = tmp_path / "run.toml"
    if what == "folder":
        path.mkdir()
    elif what == "binary":
        path.write_bytes(b"\xff\xfe\x00seed")
    elif what == "large":
        path.write_text("# " + "x" * 1_000_000)
    with pytest.raises(UsageError, match="run.toml"):
        RunConfig.from_toml(path)


def test_flags_win_over_toml_and_toml_over_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('seed = 5\nmembers = 3\ncomposite = "median"\nclip = true\noffset = -1000\n')
    config = config_of(parser().parse_args(["--config", str(path), "--seed", "0", "--offset", "0"]))
    assert config == replace(RunConfig(), seed=0, offset=0, members=3, composite="median", clip=True)


def test_differences_name_every_knob():
    other = RunConfig(
        "x", "a", "b", 1.0, "none", ("B02",), "bicubic", ("w",), ("eta=1",), ("map=m.gpkg",), "sample", 1, 1, "tent",
        "bfloat16", ("0.3",), ("s",), 0, True, 24, 1, True, "1", 4,
    )  # fmt: skip
    assert [line.split(":")[0] for line in differences(RunConfig(), other)] == [f.name for f in fields(RunConfig)]
    assert differences(other, other) == []
