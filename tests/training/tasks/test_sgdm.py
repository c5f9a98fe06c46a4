"""Training of map guidance on a prior."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.models.bundle import load_bundle, load_tensors, save_bundle
from pipeline.models.diffusion_prior import PUBLISHED_PRIOR, Prior
from pipeline.models.guidance import PUBLISHED as PUBLISHED_GUIDANCE
from pipeline.models.guidance import Guidance
from pipeline.models.map_words import RENDERED
from pipeline.models.sgdm import SGDM, SMALL
from pipeline.models.tone import OURS
from tests.models.sgdm_small import PRIOR
from tests.training import sgdm_for_tests
from tests.training.sgdm_for_tests import know, presets, tiny, trained, write_prior
from training import train
from training.data.made_maps import CLASSES
from training.data.sources import load_training_file
from training.loop.batches import Draw
from training.tasks import sgdm_locality
from training.tasks.sgdm import TASK, MapGuidance
from training.tasks.sgdm_batches import other_colours, shown_to
from training.tasks.sgdm_networks import Learning
from training.tasks.sgdm_watched import others_maps


@pytest.fixture
def prior(tmp_path, monkeypatch):
    know(monkeypatch)
    return load_bundle(write_prior(tmp_path))


@pytest.fixture
def data(tmp_path):
    return load_training_file(sgdm_for_tests.images(tmp_path), output_gsd_m=1.25, scale=8)


def begun(preset, data, prior):
    torch.manual_seed(0)
    task = MapGuidance(preset, data)
    task.begin_from(prior)
    return task


def stepped(task, steps=3):
    """Losses of a few steps."""
    (stage,) = task.preset.stages
    task.network.requires_grad_(True).train()
    (optimiser,) = task.optimisers(stage).values()
    losses = []
    for step in range(steps):
        ((_, objective),) = task.turns(stage, task.batch(Draw.seeded(0, step)), Draw.seeded(1, step))
        optimiser.zero_grad()
        objective.total.backward()
        optimiser.step()
        losses.append(float(objective.total.detach()))
    return losses


@pytest.mark.parametrize("name", ["sgdm", "sgdm-plus"])
@pytest.mark.parametrize("whole", [True, False])
def test_only_what_is_bundled_learns(prior, data, name, whole):
    before = load_tensors(prior)
    task = begun(tiny(presets()[name], whole_unet=whole), data, prior)
    own = {key: value.clone() for key, value in task.network.state_dict().items()}
    stepped(task)
    after = task.companion.networks.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    listed = {key for key in own if key.startswith("unet.")}
    assert listed == {key for key in before if key.startswith("unet.") and (whole or "attn" in key)}
    assert moved <= listed
    assert len(moved) > 0.9 * len(listed)
    trained_state = task.network.state_dict()
    assert all(torch.equal(trained_state[key], after[key]) for key in listed)
    # classes that no map shows change nothing
    kernel = trained_state["guidance.content.map_stem.weight"]
    shown = task.batch(Draw.seeded(0, 0))["map"].amax((0, 2, 3)) > 0
    assert not kernel[:, [CLASSES.index("road-major"), CLASSES.index("rail")]].any()
    assert kernel[:, shown].any()


def test_the_weights_run_with_the_prior_and_with_no_other(prior, data, tmp_path):
    task = begun(presets()["sgdm-plus"], data, prior)
    stepped(task, 1)
    save_bundle(tmp_path / "g.safetensors", task.bundle(), task.network.state_dict())
    bundle = load_bundle(tmp_path / "g.safetensors")
    assert bundle.architecture["prior"] == prior.digest
    assert (bundle.scale, bundle.architecture["scales"], bundle.normalisation) == (8, [8], OURS.described)
    system = SGDM.from_bundles(bundle, prior)
    one = task.watched[0]
    own = task.drawn(one, steps=2)
    generator = torch.Generator().manual_seed(one.pair.index)
    size = (1, system.latents, *(side // system.stride for side in one.pair.hr.shape[-2:]))
    coarse = torch.nn.functional.interpolate(
        OURS.to_image(one.pair.lr), scale_factor=8, mode="bicubic", align_corners=False
    )
    found = system.sample(
        coarse.clamp(0, 1), one.shown, None, lambda _: torch.randn(size, generator=generator), steps=2
    )
    assert torch.allclose(OURS.to_reflectance(found), own, atol=1e-5)
    other = tmp_path / "other.safetensors"
    save_bundle(other, replace(prior, provenance={"another": 1}), load_tensors(prior))
    with pytest.raises(Exception, match="do not go with the prior"):
        SGDM.from_bundles(bundle, load_bundle(other))


def test_the_unet_learns_at_a_rate_of_its_own(prior, data):
    task = begun(tiny(presets()["sgdm"], unet_rate=0.1), data, prior)
    (optimiser,) = task.optimisers(replace(task.preset.stages[0], learning_rate=1e-3)).values()
    assert [group["lr"] for group in optimiser.param_groups] == [1e-3, pytest.approx(1e-4)]


def test_the_loss_is_that_of_the_noise_and_falls(prior, data):
    task = begun(tiny(presets()["sgdm-plus"], no_style=0.0), data, prior)
    losses = stepped(task, 12)
    assert losses[0] == pytest.approx(1.1, abs=0.35)  # no noise is found at first
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_the_style_of_the_image_is_used_unless_left_out(prior, data):
    task = begun(presets()["sgdm-plus"], data, prior)
    batch, t = task.batch(Draw.seeded(0, 0)), torch.tensor([300, 500])

    def error(styled, batch=batch):
        with torch.no_grad():
            noisy = task.noisy(batch, t, torch.Generator().manual_seed(0))
            return noisy.errors(task.estimate(noisy, batch, batch["map"], styled))

    assert not torch.equal(error(True), error(False))
    asked = []
    task.recipe = {**task.recipe, "local": 0.0}
    task.estimate = lambda noisy, batch, of_map, styled: asked.append(styled) or noisy.noise
    for share in (0.0, 1.0):
        task.recipe = {**task.recipe, "no_style": share}
        list(task.turns(task.preset.stages[0], batch, Draw.seeded(0, 1)))
    assert asked == [True, False]


def test_with_a_style_coarse_images_have_other_colours(prior, data):
    lr = 0.05 + 0.2 * torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other_colours(lr, np.random.default_rng(0), 0.0), lr)
    found = other_colours(lr, np.random.default_rng(0), 0.5)
    same = (found == lr).flatten(1).all(1)
    assert 0.4 < same.float().mean() < 0.6
    changed = found[~same].mean((2, 3)) / lr[~same].mean((2, 3))
    assert changed.log().std() > 0.2
    assert (changed[:, 0] / changed[:, 2]).log().std() > 0.1  # not brightness alone
    order, other = lr[~same].flatten(2).argsort(-1), found[~same].flatten(2).argsort(-1)
    assert torch.equal(order, other)  # each band stays in order
    task = begun(presets()["sgdm-plus"], data, prior)
    batch, seen = task.batch(Draw.seeded(0, 0)), []
    task.recipe = {**task.recipe, "local": 0.0}
    task.estimate = lambda noisy, batch, of_map, styled: seen.append(batch["lr"]) or noisy.noise
    for no_style in (1.0, 0.0):
        task.recipe = {**task.recipe, "no_style": no_style, "gap": 1.0}
        list(task.turns(task.preset.stages[0], batch, Draw.seeded(0, 1)))
    assert torch.equal(seen[0], batch["lr"])
    assert not torch.equal(seen[1], batch["lr"])


def test_maps_are_left_out_of_a_share_of_images(prior, data):
    batch = begun(tiny(presets()["sgdm"], no_map=1.0, empty=0.0), data, prior).batch(Draw.seeded(0, 0))
    assert (batch["map"] == SMALL["absent"]).all()
    batch = begun(tiny(presets()["sgdm"], no_map=0.0, empty=1.0), data, prior).batch(Draw.seeded(0, 0))
    assert not batch["map"].any()
    task = begun(tiny(presets()["sgdm"], no_map=0.0, empty=0.0), data, prior)
    batches = [task.batch(Draw.seeded(0, k)) for k in range(4)]
    assert any(batch["map"].any() for batch in batches)
    assert all(batch["map"].sum(1).max() <= 1 for batch in batches)
    assert batches[0]["lr"].shape[-1] * 8 == batches[0]["hr"].shape[-1] == batches[0]["map"].shape[-1]
    again = task.batch(Draw.seeded(0, 1))
    assert all(torch.equal(again[name], batches[1][name]) for name in again)


def test_maps_are_exchanged_between_images_that_have_one(prior, data, monkeypatch):
    task = begun(tiny(presets()["sgdm"], local=1.0, exchanged=0.75), data, prior)
    batch = task.batch(Draw.seeded(0, 0))
    maps = torch.zeros(8, *batch["map"].shape[1:])
    maps[:, 0] = torch.arange(8)[:, None, None]
    maps[[0, 3]] = SMALL["absent"]
    batch = {name: images[:1].expand(8, -1, -1, -1) for name, images in batch.items()} | {"map": maps}
    given, exchanged = [], sgdm_locality.exchanged
    monkeypatch.setattr(sgdm_locality, "exchanged", lambda of_map, rng: given.append(of_map) or exchanged(of_map, rng))

    def spread(of_map):
        ((_, objective),) = task.turns(task.preset.stages[0], {**batch, "map": of_map}, Draw.seeded(1, 0))
        return float(objective.parts["spread"].detach())

    assert spread(maps) > 0
    assert [one[:, 0, 0, 0].tolist() for one in given] == [[1, 2, 4, 5, 6, 7]]
    assert spread(torch.full_like(maps, SMALL["absent"])) == 0
    assert len(given) == 1


def test_rendered_maps_have_the_colours_of_the_released_weights():
    of_map = torch.zeros(1, len(CLASSES), 2, 2)
    of_map[0, CLASSES.index("water"), 0, 0] = 1
    shown = shown_to({"words": "rendered"}, of_map)
    assert (255 * shown[0, :, 0, 0]).round().tolist() == list(RENDERED[3][0])
    some = shown_to({"words": [[0]], "classes": ["water", "building"]}, of_map)
    assert some.shape == (1, 2, 2, 2)
    assert some[0, :, 0, 0].tolist() == [1, 0]


def test_the_watched_images_have_maps_of_their_own_and_of_others(prior, data):
    task = begun(presets()["sgdm"], data, prior)
    assert all(one.pair.hr.shape[-2:] == one.shown.shape[-2:] == (64, 64) for one in task.watched)
    twice = [task.watched[0], replace(task.watched[0], shown=1 - task.watched[0].shown)]
    assert torch.equal(others_maps(twice)[0], twice[1].shown)
    assert torch.equal(others_maps(twice)[1], twice[0].shown)
    measured = task.validate(task.preset.stages[0])
    psnr = {"psnr_draw", "psnr_no_map"}
    assert set(measured.values) == {"noise", "noise, other maps", "inside over outside", *psnr}
    assert measured.values["psnr_draw"] != measured.values["psnr_no_map"]
    again = task.validate(task.preset.stages[0])
    assert measured.text == again.text  # the same noise every time
    (sample, *_) = task.samples(task.preset.stages[0])
    assert list(sample)[-1] == "truth"
    assert "map" in sample


@pytest.mark.slow
def test_a_resumed_run_continues_bit_by_bit_without_the_prior(prior, tmp_path):
    whole = trained(tmp_path / "a", "sgdm-plus", "--init", str(prior.path), count=16)
    out = tmp_path / "stopped"
    command = ["--preset", "sgdm-plus", "--data", str(tmp_path / "a" / "rgb.toml"), "--every", "1e9", "--images", "16"]
    begin = train.parser("").parse_args([*command, "--out", str(out), "--init", str(prior.path)])
    train.prepared(begin).run.train(say=lambda _: None, every_s=1e9, until_images=8)
    assert train.main([*command, "--out", str(out), "--resume", str(out)]) == 0
    resumed = load_bundle(next(out.glob("*.safetensors")))
    assert resumed.architecture == whole.architecture
    a, b = load_tensors(whole), load_tensors(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_trained_weights_can_be_trained_further_with_their_prior(prior, tmp_path, capsys):
    first = trained(tmp_path, "sgdm", "--init", str(prior.path), count=4)
    out = tmp_path / "further"
    command = ["--preset", "sgdm", "--data", str(tmp_path / "rgb.toml"), "--every", "1e9", "--images", "4"]
    assert train.main([*command, "--out", str(out), "--init", first.path]) != 0
    assert "without a prior" in capsys.readouterr().err
    more = ["--out", str(tmp_path / "on"), "--init", first.path, "--set", f"prior={prior.path}"]
    assert train.main([*command, *more]) == 0
    made = load_bundle(tmp_path / "on" / "sgdm.safetensors")
    assert made.architecture["prior"] == prior.digest
    assert made.provenance["recipe"]["prior"] == "prior.safetensors"  # local paths do not leak


def test_a_run_needs_a_prior_of_the_right_kind(prior, data, tmp_path, capsys):
    assert train.main(["--preset", "sgdm", "--data", str(data.file.path), "--out", str(tmp_path / "x")]) != 0
    assert "weights of sgdm-prior to begin from" in capsys.readouterr().err
    task = MapGuidance(presets()["sgdm"], data)
    tensors = Prior({**PRIOR, "contexts": [1, 3, 8]}).state_dict()
    wrong = tmp_path / "wrong.safetensors"
    save_bundle(wrong, replace(prior, architecture={**PRIOR, "contexts": [1, 3, 8]}), tensors)
    with pytest.raises(Exception, match="does not fit the preset"):
        task.begin_from(load_bundle(wrong))
    with pytest.raises(Exception, match="small or published or tiny"):
        MapGuidance(tiny(presets()["sgdm"], networks="large"), data)


def test_timesteps_that_the_sampler_visits_are_learned_more(prior, data):
    task = begun(tiny(presets()["sgdm-plus"], visited=0.8), data, prior)
    assert task.preset.sampler["start"] == 0.5
    t = task.timesteps(20_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.long
    assert (int(t.min()), int(t.max())) == (0, 999)
    assert float((t < 500).float().mean()) == pytest.approx(0.8 + 0.2 / 2, abs=0.02)


@pytest.mark.parametrize("name", ["no_style", "gap", "visited"])
def test_shares_beyond_one_are_refused(prior, data, name):
    with pytest.raises(UsageError, match=f"recipe {name}=1.5"):
        MapGuidance(tiny(presets()["sgdm-plus"], **{name: 1.5}), data)
    with pytest.raises(UsageError, match=r"recipe no_map=0.6, empty=0.5; expected shares"):
        MapGuidance(tiny(presets()["sgdm-plus"], no_map=0.6, empty=0.5), data)


def test_the_presets_of_the_paper():
    small, plus, paper, plus_paper = TASK.presets
    assert (paper.batch, paper.images, paper.stages[0].learning_rate) == (16, 4_800_000, 5e-5)
    assert not plus_paper.recipe["whole_unet"]
    assert plus_paper.recipe["networks"] == "published"
    variants = [preset.architecture["guidance"]["variant"] for preset in (small, plus, paper, plus_paper)]
    assert variants == ["synthetic", "real", "synthetic", "real"]
    assert all("prior" not in preset.architecture for preset in TASK.presets)  # that of the weights is not known yet


def test_the_published_networks_learn_148_million_numbers():
    with torch.device("meta"):
        prior = Prior(PUBLISHED_PRIOR)
        learning = Learning(Guidance(PUBLISHED_GUIDANCE), prior, whole_unet=False)
    assert sum(p.numel() for p in learning.parameters()) == pytest.approx(148.13e6, abs=0.01e6)


def test_what_learns_and_the_prior_stay_one_network_when_moved(prior, data):
    task = begun(tiny(presets()["sgdm"], whole_unet=False), data, prior)
    task.network.to(torch.float64)  # as to another device
    dtypes = {name: value.dtype for name, value in task.companion.networks.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float64} == set(
        task.companion.networks.attention_names()
    )
