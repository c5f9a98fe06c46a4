# %% [markdown]
# # Your own super-resolver
#
# In this example you will write a super-resolver, save its weights as a bundle, register it, and run it through the
# whole pipeline: reading, blending, fusion of the other bands, radiometric projection, store. It runs on the scenes of
# the store that the README's quick start writes.
#
# The example is iterative back-projection (Irani and Peleg 1991): interpolate, blur the result as the sensor does, and
# add what is missing from the measurement, a few times. It undoes blur, invents nothing, and amplifies noise: a
# yardstick that a network has to beat.

# %%
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import pipeline
from pipeline.models.bundle import Bundle, LatticeSpec, load_bundle, load_tensors, save_bundle
from pipeline.running.driver import prepare, run_plan
from pipeline.superres.declared import Settings
from pipeline.superres.registry import register
from pipeline.superres.spec import (
    Bundles,
    Input,
    Memory,
    Predictor,
    Stage,
    StageInput,
    SystemSpec,
    Weights,
    lattice_of,
)
from pipeline.superres.systems.guided_fusion import SHIPPED, build_fuser, fused, fusion_stage
from pipeline.superres.weights import choose

store = next((word for word in sys.argv[1:] if word.endswith(".zarr")), "sample.zarr")

# %% [markdown]
# ## The system
#
# A system is a chain of stages. Each says which bands it reads, at which GSD, which it gives, and in which windows it
# runs; the pipeline does the rest: reading, blending, agreement with the sensor, interpolation where no detail may be
# generated. A stage sees one window at a time and must depend on nothing else: where windows meet, the pipeline blends
# them, so that neither chunks nor workers show. For chance there is `given.noise` (keyed by position), for what depends
# on a whole scene `scene_state`. This one needs neither.

# %%
RGB = ("B04", "B03", "B02")


class BackProjection(Predictor):
    """Iterative back-projection with a Gaussian point spread function. Deterministic."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        self.kernel = load_tensors(bundles["psf"])["kernel"]  # (taps,), at 2.5 m
        self.rounds = int(bundles["psf"].architecture["rounds"])
        self.fuser = build_fuser(bundles["fusion"])

    def to(self, device: torch.device) -> "BackProjection":
        """Move the weights and return self."""
        self.kernel, self.fuser = self.kernel.to(device), self.fuser.to(device)
        return self

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Reflectance (b, 3, 4h, 4w) from reflectance (b, 3, h, w); then the other bands."""
        if stage.name == "fusion":
            return fused(self.fuser, stage, given)
        lr = given.images["rgb"]
        image = self.up(lr)
        for _ in range(self.rounds):
            image = image + self.up(lr - self.sensor(image))
        return image

    def up(self, image: Tensor) -> Tensor:
        """Bicubic, to four times the size."""
        return functional.interpolate(image, scale_factor=4, mode="bicubic", align_corners=False, antialias=True)

    def sensor(self, image: Tensor) -> Tensor:
        """What a 10 m instrument would see: blur along x and y, then one value per 4 x 4 pixels."""
        channels, taps = image.shape[1], len(self.kernel)
        padded = functional.pad(image, (taps // 2,) * 4, mode="replicate")
        kernel = self.kernel.expand(channels, 1, 1, taps)
        blurred = functional.conv2d(functional.conv2d(padded, kernel, groups=channels), kernel.mT, groups=channels)
        return functional.avg_pool2d(blurred, 4)


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """RGB from 10 m to 2.5 m, then the other bands, guided by it."""
    lattice = lattice_of(bundles["psf"])
    sharpen = Stage("sharpen", reads=(Input("rgb", RGB, 10),), gives=RGB, gsd_m=2.5, lattice=lattice)
    return sharpen, fusion_stage(bundles["fusion"], sharpen)


# %% [markdown]
# ## Its bundle
#
# Weights come with everything needed to use them: bands, windows, licence, where they come from. The blur is that of a
# modulation transfer function of 0.35 at 0.05 cycles per metre (with the average over 10 m: 0.22, as for Sentinel-2).
# The window is 480 px with a margin of 48, since three rounds of bicubic and blur reach some 45 px.

# %%
taps = torch.arange(-8, 9)
sigma_px = np.sqrt(-np.log(0.35) / 2) / np.pi / (0.05 * 2.5)
kernel = torch.exp(-0.5 * (taps / sigma_px) ** 2)
bundle = Bundle(
    system="back-projection-psf",
    architecture={"rounds": 3},
    in_bands=RGB,
    out_bands=RGB,
    scale=4,
    lattice=LatticeSpec(window_px=480, stride_px=336, ramp_px=48, margin_px=48),
    provenance={"method": "Irani and Peleg 1991, doi:10.1016/1049-9652(91)90045-L"},
    licence="MIT",
)
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
weights = folder / "back-projection.safetensors"
save_bundle(weights, bundle, {"kernel": kernel / kernel.sum()})
said = load_bundle(weights)
print(f"{said.system}, {said.licence}, {said.provenance['method']}, sha256 {said.digest[:12]}")

# %% [markdown]
# ## Registered and run
#
# The name becomes known with `register`. Here the plan of the given store is taken over, so that scenes and area are
# the same. Fusion of the other bands is the shipped one, guided by the new RGB.
#
# On the command line the same is `python -m pipeline.run --sr back-projection --weights back-projection.safetensors`:
# for that, and for workers, put all this into a package whose `pyproject.toml` says
# `[project.entry-points."sen2fine.systems"]`, `back-projection = "your_module:SYSTEM"`.

# %%
SYSTEM = SystemSpec(
    name="back-projection",
    summary="iterative back-projection",
    stages=stages,
    build=BackProjection,
    weights=(Weights("psf", ("back-projection-psf",)), SHIPPED),
    memory=Memory(weights_mib=20.0, floats_per_px=200.0),
)
register(SYSTEM)
given = pipeline.load_plan(store)
config = replace(given.config, sr="back-projection", weights=(str(weights),))
plan = replace(given, config=config, system=choose("back-projection", (str(weights),)))
mine = folder / "mine.zarr"
prepare(plan, mine)
summary = run_plan(plan, mine, cluster="inline", workers=1)
print(f"{summary.units} units in {summary.seconds:.1f} s")

# %% [markdown]
# ## Is it sound?
#
# The promise holds for any system, since the last step is the pipeline's: what the sensor would measure of the output
# is what it has measured, without bias and within its noise.

# %%
own, theirs = pipeline.open_store(mine).isel(time=0), pipeline.open_store(store).isel(time=0)
seen, measured = pipeline.reobserve(own.reflectance), pipeline.open_measured(mine)
for gsd, native in measured.items():
    off = (seen[gsd] - native.reflectance.isel(time=0)) / 1e-4
    most, bias = float(abs(off).quantile(0.99)), float(off.mean())
    print(f"{gsd:2d} m bands: 99 % within {most:.1f} DN, bias {bias:.2f} DN")
    assert most < 20
    assert abs(bias) < 0.5

# %% [markdown]
# ## Is it any good?
#
# Looking is not measuring: score it against real detail with `python -m training.evaluate`, on imagery that no system
# was trained on.

# %%
middle_x, middle_y = float(own.x.mean()), float(own.y.mean())
square = {"x": slice(middle_x - 150, middle_x + 150), "y": slice(middle_y + 150, middle_y - 150)}
figure, axes = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained", sharex=True, sharey=True)
images = {
    "measured, 10 m": pipeline.open_measured(store)[10].isel(time=0),
    "back-projection, 2.5 m": own,
    f"{theirs.attrs['super_resolution']}, 2.5 m": theirs,
}
for panel, (name, image) in zip(axes, images.items(), strict=True):
    pipeline.true_color(image).sel(square).plot.imshow(ax=panel, rgb="rgb", interpolation="nearest", add_labels=False)
    panel.set(title=name, aspect="equal", xticks=[], yticks=[])
plt.show()
