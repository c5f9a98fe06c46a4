"""Batches of latent diffusion: images that lack bands, for four bands and for the six of 20 m."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.bands import RGB, bands_at
from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle
from tests.training.imagery import corner_in
from tests.training.latent_for_tests import AUTOENCODER, PAIRS, RGBN, UNET, write_images
from tests.training.pairs_for_tests import write_pair
from tests.training.tasks_for_tests import add_preset
from training import train
from training.arguments import adapted, parser
from training.data.sources import load_training_file
from training.degradation.harmonise import Fitted, Harmoniser
from training.loop.batches import Draw
from training.registry import presets
from training.settings import BAND_SETS
from training.tasks.ldsr_batches import ImageBatches, completed, watched

SIX = bands_at(20)


def with_recipe(preset, **recipe):
    return replace(preset, recipe={**preset.recipe, **recipe})


def test_the_fourth_band_of_colour_images_is_their_intensity(tmp_path):
    file = write_images(tmp_path, "photos", RGB)
    preset, data = with_recipe(AUTOENCODER, other_bands=1.0), load_training_file(file)
    batch = ImageBatches(preset, data)(Draw.seeded(0))
    assert batch["hr"].shape[1:] == (4, 32, 32)
    assert torch.allclose(batch["hr"][:, 3], batch["hr"][:, :3].mean(1))
    pairs = watched(preset, data)
    assert {pair.bands for pair in pairs} == {RGBN}
    for pair in pairs:
        assert torch.allclose(pair.hr[:, 3], pair.hr[:, :3].mean(1))
        assert torch.allclose(pair.lr[:, 3], pair.lr[:, :3].mean(1))
    with pytest.raises(UsageError, match="no source has B04, B03, B02, B08: photos has B04, B03, B02"):
        ImageBatches(with_recipe(AUTOENCODER, other_bands=0.9), data)


@pytest.mark.parametrize("bands", [RGB, RGBN])
def test_six_bands_are_repeated_ones_in_the_same_order_for_both_images(tmp_path, bands):
    preset, data = with_recipe(AUTOENCODER, other_bands=1.0), load_training_file(write_images(tmp_path, "any", bands))
    preset = replace(preset, bands=SIX)
    for pair in watched(preset, data):
        assert pair.hr.shape[1] == pair.lr.shape[1] == 6
        means = torch.nn.functional.avg_pool2d(pair.hr, 4)[0]
        alike = torch.corrcoef(torch.cat([means, pair.lr[0]]).flatten(1))[:6, 6:]
        assert (alike.diagonal() >= alike.max(1).values - 1e-3).all()
    assert ImageBatches(preset, data)(Draw.seeded(0))["hr"].shape[1] == 6


def test_colours_become_four_bands_before_they_become_six():
    colours = torch.tensor([0.1, 0.2, 0.6])[None, :, None, None].expand(1, 3, 4, 4)
    six = completed(colours, SIX, np.random.default_rng(0))[0, :, 0, 0]
    assert sorted({round(float(value), 6) for value in six}) == [0.1, 0.2, 0.3, 0.6]


def test_shares_are_shares(tmp_path):
    data = load_training_file(write_images(tmp_path, "rgbn"))
    with pytest.raises(UsageError, match="recipe other_bands=1.5, permuted=0; expected shares from 0 to 1"):
        ImageBatches(with_recipe(AUTOENCODER, other_bands=1.5), data)


def settled(name, *words):
    args = parser().parse_args(["--preset", name, *words])
    return adapted(args, presets()[name])


@pytest.mark.parametrize("name", ["ldsr-autoencoder", "ldsr-unet", "ldsr-autoencoder-paper", "ldsr-unet-paper"])
def test_the_flag_bands_is_short_for_settings(name):
    assert settled(name, "--bands", "4") == settled(name)
    six = settled(name, "--bands", "6")
    assert six == settled(name, "--set", f"bands={','.join(SIX)}", "--set", "permuted=1")
    assert (six.bands, six.output_gsd_m, six.recipe["permuted"]) == (SIX, 5.0, 1.0)
    assert settled(name, "--bands", "6", "--recipe", "permuted=0").recipe["permuted"] == 0
    assert settled(name).recipe["permuted"] == 0


def test_the_flag_bands_needs_bands_that_can_be_set():
    with pytest.raises(UsageError, match="--band-set 6: lite-fusion has its own bands; expected a preset whose bands"):
        settled("lite-fusion", "--bands", "6")
    assert settled("lite-sr", "--bands", "4").bands == BAND_SETS[4]


def test_bands_are_permuted_alike_in_both_images(tmp_path):
    data = load_training_file(write_images(tmp_path, "red_edge", SIX, gsd_m=5.0), None, 5.0)
    preset = replace(with_recipe(AUTOENCODER, other_bands=0.0), bands=SIX)
    plain, permuted = (ImageBatches(with_recipe(preset, permuted=share), data) for share in (0.0, 1.0))
    before, after = plain(Draw.seeded(3)), permuted(Draw.seeded(3))
    moved = 0
    for row in range(len(before["hr"])):
        order = [int((before["hr"][row] - band).abs().sum((1, 2)).argmin()) for band in after["hr"][row]]
        assert sorted(order) == list(range(6))
        assert torch.equal(before["lr"][row][order], after["lr"][row])
        moved += order != list(range(6))
    assert moved


def test_six_bands_are_trained_by_the_command(tmp_path, monkeypatch):
    file = write_images(tmp_path, "red_edge", SIX, gsd_m=5.0)
    for preset in (AUTOENCODER, UNET):
        add_preset(monkeypatch, with_recipe(preset, other_bands=0.0))
    command = ["--data", str(file), "--images", "8", "--every", "1e9", "--bands", "6"]
    assert train.main([*command, "--preset", "ldsr-autoencoder", "--out", str(tmp_path / "a")]) == 0
    first = load_bundle(tmp_path / "a" / "ldsr-autoencoder.safetensors")
    more = ["--preset", "ldsr-unet", "--out", str(tmp_path / "b"), "--init", first.path]
    assert train.main([*command, *more]) == 0
    second = load_bundle(tmp_path / "b" / "ldsr-unet.safetensors")
    assert first.in_bands == second.in_bands == SIX
    assert second.provenance["recipe"]["permuted"] == 1.0


def test_provenance_names_the_bands_of_completed_images(tmp_path, monkeypatch, capsys):
    file = write_images(tmp_path, "photos", RGB)
    add_preset(monkeypatch, AUTOENCODER)
    command = ["--preset", "ldsr-autoencoder", "--data", str(file), "--images", "4", "--recipe", "other_bands=1"]
    assert train.main([*command, "--out", str(tmp_path / "run"), "--every", "1e9"]) == 0
    assert "photos: 2 images to train on, 1 held out" in capsys.readouterr().out
    bundle = load_bundle(tmp_path / "run" / "ldsr-autoencoder.safetensors")
    assert bundle.in_bands == RGBN
    assert bundle.provenance["image_bands"] == list(RGB)
    assert bundle.provenance["sources"] == {"photos": {"train": 2, "held-out": 1}}


def test_a_harmoniser_makes_the_coarse_image_and_the_radiometry_of_both(tmp_path):
    fitted = tuple(Fitted(band, 2.0, 1e-3, gain, 1.1) for band, gain in zip(RGBN, (0.8, 0.9, 1.0, 1.2), strict=True))
    made, path = Harmoniser("power", 4, fitted), tmp_path / "harmoniser.json"
    path.write_text(json.dumps(made.described()))
    data = load_training_file(write_images(tmp_path, "naip"))
    plain, harmonised = (
        ImageBatches(with_recipe(AUTOENCODER, other_bands=0.0, harmoniser=given), data)(Draw.seeded(2))
        for given in ("", str(path))
    )
    assert torch.allclose(harmonised["hr"], made.sharp(plain["hr"]))
    errors = harmonised["lr"] - made.apply(plain["hr"])
    assert errors.std().item() == pytest.approx(1e-3, rel=0.1)
    path.write_text(json.dumps(replace(made, scale=2).described()))
    with pytest.raises(UsageError, match=r"harmoniser.json is of scale 2; expected 4, as ldsr-autoencoder"):
        ImageBatches(with_recipe(AUTOENCODER, harmoniser=str(path)), data)


def test_completed_images_and_real_pairs_keep_their_radiometry(tmp_path):
    left, top = corner_in("train")
    write_pair(tmp_path / "pairs", "a", left + 1000, top - 1000, (0.0, 0.0), bands=4)
    (tmp_path / "pairs.toml").write_text(PAIRS)
    path = tmp_path / "harmoniser.json"
    path.write_text(json.dumps(Harmoniser("power", 4, tuple(Fitted(band, 2.0, 0.0, 3.0) for band in RGBN)).described()))
    data = load_training_file(tmp_path / "pairs.toml")
    for others in (0.0, 1.0):
        plain, given = (
            ImageBatches(with_recipe(AUTOENCODER, other_bands=others, harmoniser=name), data)(Draw.seeded(4))
            for name in ("", str(path))
        )
        assert torch.equal(plain["hr"], given["hr"])
        assert torch.equal(plain["lr"], given["lr"])
