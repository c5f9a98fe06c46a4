"""Training of the distribution of styles on the style encoder of guidance."""

from dataclasses import replace

import pytest
import torch

from pipeline.models.bundle import load_bundle, load_tensors
from pipeline.models.guidance import Guidance
from pipeline.models.guidance_parts import Style
from pipeline.models.sgdm import SGDM
from pipeline.models.style_flow import StyleFlow
from pipeline.models.style_model import FLOW, GAUSSIAN, StyleModel
from pipeline.models.tone import OURS
from tests.models.sgdm_small import STYLE, write_guidance, write_prior
from tests.training import sgdm_for_tests
from tests.training.sgdm_for_tests import trained
from tests.training.tasks_for_tests import add_preset
from training import train
from training.data.sources import load_training_file
from training.loop.batches import Draw
from training.tasks.sgdm_style import TASK, Encoder, Styles

SFLOW = replace(
    TASK.presets[0],
    architecture={**TASK.presets[0].architecture, "dim": STYLE, "couplings": 2, "hidden": [8]},
    recipe={**TASK.presets[0].recipe, "vectors": 64, "held_out": 32},
    batch=16,
    crop_px=64,
    warmup_steps=1,
)


@pytest.fixture
def guidance(tmp_path):
    return load_bundle(write_guidance(tmp_path))


@pytest.fixture
def data(tmp_path):
    return load_training_file(sgdm_for_tests.images(tmp_path), output_gsd_m=1.25, scale=8)


def filled(data, learned, held_out, **changes):
    """A task whose collected styles (N, 2, C) are given."""
    torch.manual_seed(0)
    recipe = {**SFLOW.recipe, "vectors": len(learned), "held_out": len(held_out)}
    task = Styles(replace(SFLOW, recipe=recipe, **changes), data)
    task.companion.get_buffer("learned").copy_(learned)
    task.companion.get_buffer("held_out").copy_(held_out)
    return task


def run_steps(task, steps):
    (stage,) = task.preset.stages
    (optimiser,) = task.optimisers(stage).values()
    for step in range(steps):
        ((_, loss),) = task.turns(stage, task.batch(Draw.seeded(0, step)), Draw.seeded(1, step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    task.finish()
    return task.validate(stage).values


def test_styles_are_those_of_the_guidance(guidance):
    hr = 0.4 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = Guidance(guidance.architecture["guidance"])
    own = {k.removeprefix("guidance."): v for k, v in load_tensors(guidance).items() if k.startswith("guidance.")}
    network.load_state_dict(own)
    with torch.no_grad():
        expected = network.eval().style_statistics(2 * OURS.to_image(hr) - 1)
    found = Encoder(guidance)(hr)
    assert torch.allclose(found[:, 0], expected.mean, atol=1e-6)
    assert torch.allclose(found[:, 1], expected.std, atol=1e-6)


def test_a_run_gives_styles_that_the_system_draws(guidance, data, tmp_path, monkeypatch):
    add_preset(monkeypatch, SFLOW)
    bundle = trained(tmp_path, "sflow", "--init", guidance.path, count=160)
    assert bundle.system == "sgdm-style"
    assert bundle.architecture["log_std"]
    assert "flow" in bundle.provenance["held_out"]
    assert "normal distribution" in bundle.provenance["held_out"]
    system = SGDM.from_bundles(guidance, load_bundle(write_prior(tmp_path)), bundle)
    styles = system.draw_style(torch.randn(200, 2, STYLE, generator=torch.Generator().manual_seed(0)))
    task = Styles(SFLOW, data)
    task.begin_from(guidance)
    task.begin(SFLOW.stages[0], Draw.seeded(0, 2, 0))  # as the run collected them
    learned = task.companion.styles("learned")
    assert (styles.mean.mean(0) - learned.mean.mean(0)).abs().max() < 0.1
    assert (styles.std.log().mean(0) - learned.std.log().mean(0)).abs().max() < 0.5


def test_a_flow_starts_at_location_and_spread_of_the_styles(data, guidance):
    task = Styles(SFLOW, data)
    task.begin_from(guidance)
    task.begin(SFLOW.stages[0], Draw.seeded(0, 0))
    learned = task.companion.styles("learned")
    noise = torch.randn(4000, STYLE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = task.network.mean.draw(noise)
    assert torch.allclose(drawn.mean(0), learned.mean.mean(0), atol=0.01)
    assert torch.allclose(drawn.std(0), learned.mean.std(0), rtol=0.1, atol=1e-4)
    assert (learned.std > 0).all()


def test_a_normal_distribution_takes_the_place_of_a_flow_that_is_worse(data):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(STYLE, STYLE, generator=generator)

    def correlated(count):  # far from a flow's start, and few
        vectors = 0.1 * torch.randn(count, 2, STYLE, generator=generator) @ mixing
        return torch.stack([vectors[:, 0], vectors[:, 1].exp()], 1)

    task = filled(data, correlated(64), correlated(64))
    values = run_steps(task, 3)
    assert values["nll_normal"] < values["nll_flow"]
    bundle = task.bundle()
    assert bundle.architecture["model"] == GAUSSIAN
    StyleModel(bundle.architecture).load_state_dict(task.network.state_dict())


@pytest.mark.slow
def test_a_flow_is_kept_where_styles_are_not_normal(data):
    generator = torch.Generator().manual_seed(0)

    def bent(count):  # the second half of a vector is a curved function of the first
        x = torch.randn(count, 2, STYLE // 2, generator=generator)
        both = torch.cat([x, x.square() + 0.02 * torch.randn(x.shape, generator=generator)], -1)
        return torch.stack([both[:, 0], (0.3 * both[:, 1]).exp()], 1)

    larger = {"architecture": {**SFLOW.architecture, "couplings": 4, "hidden": [32]}, "batch": 64}
    task = filled(data, bent(2000), bent(500), stages=(replace(SFLOW.stages[0], learning_rate=5e-3),), **larger)
    for flow, of in zip(
        (task.network.mean, task.network.std), task.network.vectors(task.companion.styles("learned")), strict=True
    ):
        assert isinstance(flow, StyleFlow)
        with torch.no_grad():
            made, _ = flow.base(of)
            flow.loc.copy_(made.mean(0))
    values = run_steps(task, 600)
    assert values["nll_flow"] < values["nll_normal"]
    assert task.bundle().architecture["model"] == FLOW
    held_out = task.companion.styles("held_out")
    assert float(-task.network.log_prob(held_out).mean().detach()) == pytest.approx(values["nll_flow"], abs=1e-3)


def test_the_flow_with_the_lowest_loss_is_kept(data):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(64, 2, STYLE, generator=generator).exp()
    task = filled(data, vectors, vectors)
    task._keep_better()
    best = float(task.companion.best_loss)
    with torch.no_grad():
        task.network.mean.loc += 100.0
    task._keep_better()
    assert float(task.companion.best_loss) == best
    style = Style(*vectors.unbind(1))
    assert float(-task.companion.best.log_prob(style).mean()) == pytest.approx(best, rel=1e-5)


def test_guidance_without_styles_is_refused(data, tmp_path, guidance, capsys):
    (tmp_path / "synthetic").mkdir()
    synthetic = write_guidance(
        tmp_path / "synthetic", guidance={**guidance.architecture["guidance"], "variant": "synthetic"}
    )
    task = Styles(SFLOW, data)
    with pytest.raises(Exception, match="have no styles"):
        task.begin_from(load_bundle(synthetic))
    with pytest.raises(Exception, match="--set dim=8"):
        Styles(TASK.presets[0], data).begin_from(guidance)
    with pytest.raises(Exception, match="without an encoder"):
        task.begin(SFLOW.stages[0], Draw.seeded(0))
    assert train.main(["--preset", "sflow", "--data", str(data.file.path), "--out", str(tmp_path / "x")]) != 0
    assert "weights of sgdm to begin from" in capsys.readouterr().err
