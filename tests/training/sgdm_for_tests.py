"""Presets of map guidance with the smallest networks, for tests of its training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.bands import RGB
from pipeline.models.sgdm import SMALL
from tests.models.sgdm_small import GUIDANCE, PRIOR, write_prior
from tests.training.latent_for_tests import write_images
from tests.training.tasks_for_tests import add_preset
from training import train
from training.data.made_maps import CLASSES
from training.tasks import sgdm, sgdm_networks

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from pipeline.models.bundle import Bundle
    from training.presets import Preset

ARCHITECTURE: dict[str, Any] = {
    "guidance": {**GUIDANCE, "map_channels": len(CLASSES)},
    "words": [[0], [1, 2], [5], [4]],
    "classes": list(CLASSES),
    "absent": SMALL["absent"],
}


def tiny(preset: Preset, **recipe: object) -> Preset:
    """A preset with tiny networks and batches."""
    variant = preset.architecture["guidance"]["variant"]
    return replace(
        preset,
        architecture={**ARCHITECTURE, "guidance": {**ARCHITECTURE["guidance"], "variant": variant}},
        batch=2,
        crop_px=64,
        warmup_steps=1,
        sampler={**preset.sampler, "steps": 2},
        recipe={**preset.recipe, "networks": "tiny", "small_px": 64, **recipe},
    )


def presets() -> dict[str, Preset]:
    """All presets of the task, tiny."""
    return {preset.name: tiny(preset) for preset in sgdm.TASK.presets}


def know(monkeypatch: pytest.MonkeyPatch, *others: Preset) -> None:
    """Make the tiny prior and presets known."""
    monkeypatch.setitem(sgdm_networks.PRIORS, "tiny", PRIOR)
    for preset in (*presets().values(), *others):
        add_preset(monkeypatch, preset)


def images(folder: Path) -> Path:
    """Images of 1.25 m, two to train on and one held out, and their training file."""
    return write_images(folder, "rgb", RGB, 1.25, 96)


def trained(folder: Path, name: str, *more: str, count: int = 8) -> Bundle:
    """Weights of a preset after a few images, in `folder / name`."""
    from pipeline.models.bundle import load_bundle

    data = folder / "rgb.toml"
    if not data.exists():
        data = images(folder)
    out = folder / name
    command = ["--preset", name, "--data", str(data), "--out", str(out), "--every", "1e9", "--images", str(count)]
    assert train.main([*command, *more]) == 0
    return load_bundle(next(out.glob("*.safetensors")))


__all__ = ["images", "know", "presets", "tiny", "trained", "write_prior"]
