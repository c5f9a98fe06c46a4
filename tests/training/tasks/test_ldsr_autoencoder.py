"""Training of latent diffusion's autoencoder: its perceptual and adversarial terms, and runs of the published one."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.bands import bands_at
from pipeline.models.bundle import load_bundle, load_into, load_tensors
from pipeline.models.ldsr import network_of
from pipeline.models.ldsr_published import ARCHITECTURE
from tests.training.latent_for_tests import AUTOENCODER, AUTOENCODER_PAPER, DECODER, PUBLISHED, write_images
from tests.training.tasks_for_tests import add_preset
from training import train
from training.data.sources import load_training_file
from training.loop.batches import Draw
from training.loop.run import Budget, Run
from training.quality import perceptual
from training.tasks import lpips_vgg
from training.tasks.ldsr_autoencoder import ADVERSARIAL, RECONSTRUCT, TASK, AutoencoderOnly, LatentAutoencoder
from training.tasks.ldsr_losses import PatchDiscriminator, adaptive_weight, hinge
from training.tasks.lpips_vgg import VGG16_FILE


class Pictures(nn.Module):
    """Stands in for LPIPS: a squared difference that notes what it compares."""

    def __init__(self):
        super().__init__()
        self.seen, self.weight = [], nn.Parameter(torch.ones(()))

    def forward(self, a, b):
        self.seen.append(a.detach())
        return self.weight * (a - b).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def pictures(monkeypatch, tmp_path):
    """A stand-in where LPIPS would be loaded."""
    network = Pictures()
    monkeypatch.setattr(lpips_vgg, "load", lambda vgg, heads, sha256: network.requires_grad_(False))
    monkeypatch.setattr(lpips_vgg, "find_spec", lambda name: SimpleNamespace(origin="lpips/__init__.py"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / VGG16_FILE).touch()
    return network


@pytest.fixture
def rgbn(tmp_path):
    return write_images(tmp_path, "rgbn")


def task_of(file, preset=AUTOENCODER, **recipe):
    torch.manual_seed(0)
    return LatentAutoencoder(replace(preset, recipe={**preset.recipe, **recipe}), load_training_file(file))


def first_turn(task, image, seed=0, stage=0):
    turns = task.turns(
        task.preset.stages[stage], {"image": image, "lr": nn.functional.avg_pool2d(image, 4)}, Draw.seeded(seed)
    )
    return next(turns)[1], turns


def test_lpips_compares_three_bands_drawn_from_all(rgbn, pictures):
    task = task_of(rgbn)
    levels = torch.tensor([0.04, 0.09, 0.16, 0.25])
    image = levels[None, :, None, None].expand(1, 4, 32, 32)
    for seed in range(150):
        first_turn(task, image, seed)
    shown = perceptual.displayed(levels)
    order = [[int((shown - value).abs().argmin()) for value in a.mean((0, 2, 3))] for a in pictures.seen]
    assert {len(set(chosen)) for chosen in order} == {3}
    assert len({tuple(chosen) for chosen in order}) == 24  # every ordered choice of three of four


def test_gradients_of_lpips_reach_the_autoencoder_alone(rgbn, pictures):
    image = 0.1 + 0.2 * torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with_it, _ = first_turn(task_of(rgbn), image)
    task = task_of(rgbn, perceptual=0.0)
    without, _ = first_turn(task, image)
    assert with_it.parts["perceptual"] > 0
    assert "perceptual" not in without.parts
    assert (with_it.total - without.total).item() == pytest.approx(with_it.parts["perceptual"].item(), rel=1e-4)
    task = task_of(rgbn)
    objective, _ = first_turn(task, image)
    objective.parts["perceptual"].backward()
    assert task.network.autoencoder.encoder.linear.weight.grad.abs().sum() > 0
    assert not any(parameter is pictures.weight for parameter in task.network.parameters())
    assert task.describe()["perceptual"] == "LPIPS (VGG16) of three random bands"
    assert task.remarks == []
    assert not any("lpips" in name.lower() or name == "weight" for name in task.companion.state_dict())


def test_pictures_have_black_at_0_and_white_at_half():
    rho = torch.tensor([-0.1, 0.0, 0.1, perceptual.WHITE, 0.9], requires_grad=True)
    shown = perceptual.displayed(rho)
    assert shown.tolist() == pytest.approx([-1.0, -1.0, -0.2456, 1.0, 1.0], abs=1e-3)
    shown.sum().backward()
    assert torch.isfinite(rho.grad).all()


def test_without_weights_of_vgg_the_run_says_so(rgbn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "empty"))
    add_preset(monkeypatch, AUTOENCODER)
    command = ["--preset", "ldsr-autoencoder", "--data", str(rgbn), "--images", "4", "--every", "1e9"]
    assert train.main([*command, "--out", str(tmp_path / "run")]) == 0
    reason = f"no VGG16 weights {VGG16_FILE} in torch's folder of checkpoints"
    assert capsys.readouterr().out.count(f"no perceptual loss: {reason}; its weight is 0\n") == 1
    bundle = load_bundle(tmp_path / "run" / "ldsr-autoencoder.safetensors")
    assert bundle.provenance["perceptual"] == f"none: {reason}"


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer(rgbn):
    task = task_of(rgbn, perceptual=0.0, kl=0.0)
    image = 0.1 + 0.2 * torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    task.preset = replace(task.preset, stages=AUTOENCODER_PAPER.stages)
    objective, _ = first_turn(task, image, stage=1)
    last = task.network.autoencoder.last_layer
    norms = [
        float(torch.autograd.grad(objective.parts[name], last, retain_graph=True)[0].norm())
        for name in ("l1", "adversarial")
    ]
    added = (objective.total - objective.parts["l1"]).item()
    assert added == pytest.approx(0.5 * norms[0] / norms[1] * objective.parts["adversarial"].item(), rel=1e-2)
    weight = adaptive_weight(torch.ones(()) * last.sum(), 3 * last.sum(), last)
    assert weight.item() == pytest.approx(1 / 3, rel=1e-4)
    assert not weight.requires_grad


def test_a_discriminator_learns_to_tell_blurred_images():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(4, width=8, layers=2)
    optimiser = torch.optim.Adam(discriminator.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        real = torch.randn(4, 4, 32, 32, generator=generator)
        made = nn.functional.avg_pool2d(real, 3, 1, 1)
        loss = hinge(discriminator(real), discriminator(made))
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] > 0.8
    assert losses[-1] < 0.1
    assert hinge(discriminator(made), discriminator(real)).item() > 1.5


@pytest.mark.parametrize("preset", [replace(AUTOENCODER, stages=AUTOENCODER_PAPER.stages), AUTOENCODER_PAPER])
def test_both_turns_run_and_only_after_the_warm_up(rgbn, tmp_path, preset):
    rates = tuple(replace(stage, learning_rate=1e-3) for stage in preset.stages)
    task = task_of(rgbn, replace(preset, stages=rates))
    task.companion.discriminator = PatchDiscriminator(4, width=8, layers=2)
    run = Run(task, task.preset, Budget(images=16), tmp_path / "run", 0)
    discriminator = {name: value.clone() for name, value in task.companion.discriminator.state_dict().items()}
    run.train(lambda line: None, every_s=0.0, until_images=8)
    assert run.stage.name == RECONSTRUCT
    assert list(run.optimisers.each) == ["autoencoder"]
    unchanged = task.companion.discriminator.state_dict()
    assert all(torch.equal(value, discriminator[name]) for name, value in unchanged.items())
    decoder = task.network.autoencoder.last_layer.detach().clone()
    lines = []
    run.train(lines.append, every_s=0.0)
    assert run.stage.name == ADVERSARIAL
    assert list(run.optimisers.each) == ["autoencoder", "discriminator"]
    changed = task.companion.discriminator.state_dict()
    assert not any(torch.equal(value, discriminator[name]) for name, value in changed.items() if value.dim() > 1)
    assert not torch.equal(task.network.autoencoder.last_layer, decoder)
    assert all("adversarial" in line and "discriminator" in line for line in lines)


def test_the_preset_of_the_paper_has_the_published_sizes_and_the_rate_of_ldm():
    small, _, paper = TASK.presets
    assert paper.architecture == ARCHITECTURE
    assert [stage.name for stage in paper.stages] == [RECONSTRUCT, ADVERSARIAL]
    assert {stage.learning_rate for stage in paper.stages} == {4.5e-6 * paper.batch}
    assert paper.stages[0].share * paper.images / paper.batch == 50_000
    assert [stage.name for stage in small.stages] == [RECONSTRUCT]


def test_the_published_autoencoder_is_trained_and_bundled(rgbn, tmp_path, monkeypatch):
    add_preset(monkeypatch, AUTOENCODER_PAPER)
    command = ["--preset", "ldsr-autoencoder-paper", "--data", str(rgbn), "--every", "1e9"]
    assert train.main([*command, "--dry-run"]) == 0
    assert train.main([*command, "--images", "8", "--out", str(tmp_path / "run")]) == 0
    bundle = load_bundle(tmp_path / "run" / "ldsr-autoencoder-paper.safetensors")
    assert bundle.architecture == PUBLISHED
    assert [stage["stage"] for stage in bundle.provenance["trained"]] == [RECONSTRUCT, ADVERSARIAL]
    network = AutoencoderOnly(network_of(bundle.architecture, 4).autoencoder)
    load_into(network, bundle)
    assert torch.isfinite(network.autoencoder(torch.full((1, 4, 32, 32), 0.2))).all()


def test_six_bands_change_the_published_sizes(tmp_path, monkeypatch):
    file = write_images(tmp_path, "red_edge", bands_at(20), gsd_m=5.0)
    add_preset(monkeypatch, replace(AUTOENCODER_PAPER, recipe={**AUTOENCODER_PAPER.recipe, "other_bands": 0.0}))
    command = ["--preset", "ldsr-autoencoder-paper", "--data", str(file), "--set", f"bands={','.join(bands_at(20))}"]
    assert train.main([*command, "--images", "4", "--every", "1e9", "--out", str(tmp_path / "run")]) == 0
    bundle = load_bundle(next((tmp_path / "run").glob("*.safetensors")))
    assert bundle.architecture["bands"] == 6
    assert bundle.in_bands == bands_at(20)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "steps", "rate"), [(AUTOENCODER, 350, 3e-3), (AUTOENCODER_PAPER, 110, 2e-3)])
def test_one_batch_is_learned_by_heart(rgbn, preset, steps, rate):
    task = task_of(rgbn, preset, blurred=0.0, other_bands=0.0)
    image = task.batch(Draw.seeded(0))["image"][:2]
    optimiser, losses = torch.optim.Adam(task.network.parameters(), rate), []
    for step in range(steps):
        objective, _ = first_turn(task, image, seed=step)
        optimiser.zero_grad()
        objective.total.backward()
        optimiser.step()
        losses.append(objective.parts["l1"].item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_decoder_is_trained_alone(rgbn, tmp_path, monkeypatch):
    """Latents of the encoder that it starts from stay, so that a denoiser of them stays of use."""
    for preset in (AUTOENCODER, DECODER):
        add_preset(monkeypatch, preset)
    command = ["--data", str(rgbn), "--every", "1e9", "--images", "8"]
    assert train.main(["--preset", "ldsr-autoencoder", *command, "--out", str(tmp_path / "a")]) == 0
    first = tmp_path / "a" / "ldsr-autoencoder.safetensors"
    assert train.main(["--preset", "ldsr-decoder", *command, "--init", str(first), "--out", str(tmp_path / "d")]) == 0
    before = load_tensors(load_bundle(first))
    after = load_tensors(load_bundle(tmp_path / "d" / "ldsr-decoder.safetensors"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("autoencoder.decoder.") for name in moved)
