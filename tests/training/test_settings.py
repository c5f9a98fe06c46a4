"""`--set NAME=VALUE`: every number of a preset, checked before data are read."""

import pytest

from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle
from tests.training.imagery import TOML, own_imagery
from training import registry, train
from training.settings import changed, names_of

PRESET = registry.presets()["lite-sr"]


def test_settings_reach_their_place():
    texts = ["batch=32", "crop=384", "learning_rate=3e-4", "ema=0.9995", "width=96", "steps=8", "blur_to=3", "warmup=0"]
    found = changed(PRESET, [*texts, "learning_rate.detail=1e-4", "schedule=constant"])
    assert (found.batch, found.crop_px, found.ema, found.warmup_steps, found.schedule) == (
        32,
        384,
        0.9995,
        0,
        "constant",
    )
    assert [stage.learning_rate for stage in found.stages] == [3e-4, 1e-4]
    assert found.architecture == {**PRESET.architecture, "width": 96}
    assert found.sampler == {**PRESET.sampler, "steps": 8}
    assert found.recipe == {**PRESET.recipe, "blur_to": 3.0}
    assert (found.name, found.task, found.minutes) == (PRESET.name, PRESET.task, PRESET.minutes)


def test_lists_are_separated_by_commas():
    cascade, unet = registry.presets()["wavediffur"], registry.presets()["difffusr-sr-small"]
    for text in ("score_widths=8,16", "score_widths=[8, 16]"):
        assert changed(cascade, [text]).architecture["score_widths"] == [8, 16]
    assert changed(unet, ["attention_strides=4,8"]).architecture["attention_strides"] == [4, 8]
    assert changed(unet, ["attention_strides="]).architecture["attention_strides"] == []
    for text in ("score_widths=8,wide", "score_widths=", "score_widths=8,,8"):
        with pytest.raises(UsageError, match="a value like 32, 64, 64"):
            changed(cascade, [text])


@pytest.mark.parametrize("preset", sorted(registry.presets()))
def test_every_preset_names_each_setting_once(preset):
    names = names_of(registry.presets()[preset])
    assert len(names) == len(set(names))
    assert {"batch", "crop", "ema", "learning_rate"} <= set(names)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch=0", "a whole number of at least 1"),
        ("batch=2.5", "a whole number of at least 1"),
        ("batch", "lite-sr has no batch"),
        ("crop=90", "a multiple of 8 px"),
        ("crop=0", "a multiple of 8 px"),
        ("ema=1", "a number from 0 to below 1"),
        ("ema=nan", "a number from 0 to below 1"),
        ("learning_rate=0", "a number above 0"),
        ("learning_rate=-1e-3", "a number above 0"),
        ("learning_rate.mean=inf", "a number above 0"),
        ("learning_rate.other=1e-3", "lite-sr has no learning_rate.other"),
        ("width=wide", "a value like 48"),
        ("width=0", "a whole number of at least 1"),
        ("schedule=linear", "one of cosine, step, constant"),
        ("widht=48", "did you mean width?"),
        ("scale=3", "one of 2, 4, 8"),
        ("bands=B04,B04", "different names of B01"),
        ("bands=red,green,blue", "different names of B01"),
        ("bands=B04,B05", "bands of 10 m and 20 m"),
    ],
)
def test_what_does_not_fit_is_refused(text, says):
    with pytest.raises(UsageError) as caught:
        changed(PRESET, [text])
    assert says in str(caught.value)
    assert "--set" in str(caught.value)


def test_values_are_refused_before_data_are_read(tmp_path, capsys):
    command = ["--preset", "lite-sr", "--data", str(tmp_path / "none.toml"), "--out", str(tmp_path / "run")]
    assert train.main([*command, "--set", "batch=0"]) == 2
    assert capsys.readouterr().err == "--set batch=0; expected a whole number of at least 1\n"


def test_bands_and_scale_change_only_where_the_network_allows():
    found = changed(PRESET, ["bands=B04, B03,B02,B08", "scale=2"])
    assert (found.bands, found.scale, found.output_gsd_m) == (("B04", "B03", "B02", "B08"), 2, 5.0)
    assert changed(PRESET, ["bands=B05,B11", "scale=8"]).output_gsd_m == 2.5
    with pytest.raises(UsageError, match="difffusr-sr has no scale"):
        changed(registry.presets()["difffusr-sr"], ["scale=2"])


@pytest.mark.slow
def test_scalars_are_written_where_asked_for(tmp_path, monkeypatch, capsys):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    own = own_imagery(tmp_path, monkeypatch)
    own.write_text(TOML[: TOML.index('[[source]]\nname = "scenes"')])
    command = ["--preset", "lite-sr", "--data", str(own), "--out", str(tmp_path / "run"), "--every", "0"]
    assert train.main([*command, "--images", "8", "--tensorboard"]) == 0
    events = loader.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"loss", "learning_rate", "psnr_ibp", "gain mean"} <= set(events.Tags()["scalars"])
    assert "watched: 1 crop of 1 held-out image" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_with_other_numbers_becomes_weights_that_a_system_takes(tmp_path, monkeypatch, capsys):
    from pipeline.superres.weights import choose

    own = own_imagery(tmp_path, monkeypatch)
    own.write_text(TOML[: TOML.index('[[source]]\nname = "scenes"')])
    command = ["--preset", "lite-sr", "--data", str(own), "--out", str(tmp_path / "run"), "--every", "1e9"]
    chosen = ["--set", "width=12", "--set", "batch=2", "--set", "steps=3", "--set", "learning_rate=1e-4"]
    assert train.main([*command, *chosen, "--images", "8"]) == 0
    bundle = load_bundle(tmp_path / "run" / "lite-sr.safetensors")
    assert (bundle.architecture["width"], bundle.sampler["steps"]) == (12, 3)
    assert bundle.provenance["settings"] == chosen[1::2]
    assert choose("lite", (bundle.path,)).weights[0].sha256 == bundle.digest
    capsys.readouterr()
    assert train.main([*command, "--images", "16", "--resume", str(tmp_path / "run")]) == 2
    assert "give the same options as before" in capsys.readouterr().err
