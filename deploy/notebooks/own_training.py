# %% [markdown]
# # Train your own network
#
# In this example you will write a small network, train it on orthophotos with the project's own loop, watch it learn,
# judge it against interpolation and back-projection on ground that it never saw, and run it through the whole pipeline
# on the scenes of the store that the README's quick start writes.
#
# The orthophotos are made up, so that the example needs no download. With your own, change the training file only.

# %%
import contextlib
import csv
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch.nn import functional

import pipeline
from pipeline.models.bundle import Bundle, LatticeSpec, load_into
from pipeline.running.driver import prepare, run_plan
from pipeline.superres import registry as systems
from pipeline.superres.declared import Settings
from pipeline.superres.spec import Bundles, Input, Memory, Predictor, Stage, StageInput, SystemSpec, Weights, lattice_of
from pipeline.superres.systems.guided_fusion import SHIPPED, build_fuser, fused, fusion_stage
from pipeline.superres.weights import choose
from training import evaluate, train
from training import registry as tasks
from training.data.check import check
from training.data.sources import TrainingData
from training.degradation.degrade import DegradationRange, degrade_randomly
from training.loop.batches import Draw
from training.loop.task import Measured
from training.presets import Preset
from training.presets import Stage as Part
from training.quality.pairs import average, ibp_scores, per_set_mean, score, side_by_side, watched_pairs
from training.task_spec import TaskSpec

store = next((word for word in sys.argv[1:] if word.endswith(".zarr")), "sample.zarr")
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## Orthophotos
#
# Fields, roads and houses at 1 m, in 8 bits. Files are far apart, so that they fall into different cells of 7.68 km:
# places are held out, not pixels.


# %%
def photograph(seed: int, side: int = 480) -> np.ndarray:
    """Return an orthophoto (3, side, side), uint8."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:side, :side]
    field = KDTree(rng.uniform(0, side, (25, 2))).query(np.stack([rows, cols], -1))[1]
    image = rng.uniform((60, 80, 50), (150, 150, 110), (25, 3))[field]
    image += 12 * np.sin(cols * rng.uniform(0.3, 0.9) + rows * rng.uniform(0.1, 0.5))[..., None]
    for _ in range(4):
        at, slope = rng.uniform(0, side), rng.uniform(-0.6, 0.6)
        image[np.abs(rows - at - slope * cols) < 3] = 190
    for _ in range(60):
        y, x, height, width = *rng.integers(0, side - 20, 2), *rng.integers(6, 18, 2)
        image[y : y + height, x : x + width] = rng.uniform(90, 240, 3)
    seen = gaussian_filter(image, (0.6, 0.6, 0)) + rng.normal(0, 2, image.shape)
    return np.clip(seen, 1, 254).astype(np.uint8).transpose(2, 0, 1)


(folder / "orthos").mkdir()
for number in range(16):
    pixels, corner = photograph(number), rasterio.Affine(1, 0, 420_000 + 8_000 * number, 0, -1, 5_300_000)
    profile = {"driver": "GTiff", "count": 3, "height": 480, "width": 480, "dtype": "uint8"}
    with rasterio.open(folder / "orthos" / f"{number}.tif", "w", crs="EPSG:32632", transform=corner, **profile) as tif:
        tif.write(pixels)

file = folder / "mine.toml"
file.write_text("""
name = "made-up orthophotos"
licence = "made up"

[[source]]
name = "orthos"
role = "hr"
path = "orthos/*.tif"
""")
found = check(file, print)

# %% [markdown]
# ## The network and its task
#
# Ten lines of network: bicubic interpolation, and a correction from a few convolutions on the 10 m grid. The task makes
# batches (sharp patches, degraded as a sensor would), a loss, a line that tells how it does on held-out places, and the
# bundle. All randomness comes from the `Draw` that it is given: a run that was stopped goes on bit by bit.

# %%
RGB = ("B04", "B03", "B02")
LATTICE = LatticeSpec(window_px=480, stride_px=384, ramp_px=48, margin_px=24)


class Small(nn.Module):
    """Reflectance (B, 3, h, w) to (B, 3, 4h, 4w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, width, 3, padding=1)]
        layers += [layer for _ in range(3) for layer in (nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))]
        self.body = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 3 * 16, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, lr: Tensor) -> Tensor:
        """Add the correction to bicubic interpolation."""
        up = functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)
        return up + 0.1 * self.body(lr)


class SmallTask:
    """Squared error on degraded orthophotos."""

    def __init__(self, preset: Preset, data: TrainingData) -> None:
        self.preset, self.data = preset, data
        self.network = Small(**preset.architecture)
        self.sampler = data.hr_sampler("train", preset.crop_px)
        self.pairs = watched_pairs(data)
        self.baseline = average(per_set_mean(self.pairs, ibp_scores(self.pairs)))
        self.sensor = DegradationRange((1.5, 2.5), anisotropic=0.2, bicubic=0.0, noise=(4e-4, 2e-3))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return sharp patches and what the sensor sees of them."""
        hr = torch.from_numpy(self.sampler.batch(draw.rng, self.preset.batch))
        return {"lr": degrade_randomly(hr, self.sensor, draw.torch), "hr": hr}

    def begin(self, stage: Part, draw: Draw) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def loss(self, stage: Part, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """Return the mean squared error."""
        return functional.mse_loss(self.network(batch["lr"]), batch["hr"])

    @torch.no_grad()
    def validate(self, stage: Part) -> Measured:
        """Return the gain over back-projection on held-out places."""
        scores = [score(self.network(pair.lr), pair) for pair in self.pairs]
        gain = average(per_set_mean(self.pairs, scores)) - self.baseline
        return Measured(f"PSNR over back-projection: {gain:+.2f} dB", {"gain": gain})

    @torch.no_grad()
    def samples(self, stage: Part) -> list[dict[str, Tensor]]:
        """Return two held-out places beside their truth."""
        return [side_by_side(pair, self.network(pair.lr)) for pair in self.pairs[:2]]

    def describe(self) -> dict[str, object]:
        """Return the provenance of the data."""
        return self.data.describe()

    def bundle(self, provenance: dict[str, object] | None = None, licence: str = "") -> Bundle:
        """Return the description that the weights are saved with."""
        return Bundle(
            "small-sr", self.preset.architecture, RGB, RGB, 4, LATTICE, provenance=provenance or {}, licence=licence
        )


preset = Preset(
    "small", "small", {"width": 32}, (Part("all", 1.0, (), 2e-3),), minutes=1, batch=16, crop_px=96, ema=0.99
)
tasks.register(TaskSpec("small", "a few convolutions", "small-sr", (preset,), SmallTask))

# %% [markdown]
# ## Training
#
# The same as `python -m training.train --preset small ...` once an entry point in the group `sen2fine.tasks` names the
# task. `--images` makes it reproducible; `--resume` goes on; `--set width=48` changes any number.

# %%
out = folder / "run"
command = ["--preset", "small", "--data", str(file), "--out", str(out), "--licence", "MIT", "--every", "5"]
assert train.main([*command, "--images", "6400"]) == 0

# %%
rows = list(csv.DictReader((out / "log.csv").open()))
images, gains = ([float(row[name]) for row in rows] for name in ("images", "gain"))
figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
axis.plot(images, gains, marker="o")
axis.axhline(0, color="grey", linewidth=1)
axis.set(xlabel="patches seen", ylabel="PSNR over back-projection, dB", title="held-out places")
plt.show()

# %% [markdown]
# ## In the pipeline
#
# A system is one object: its stages, and what predicts. Here it is the network, and the shipped fusion for the other
# bands.


# %%
class SmallSystem(Predictor):
    """`Small` and a fusion."""

    def __init__(self, bundles: Bundles, options: Settings) -> None:
        self.network = Small(**bundles["sr"].architecture)
        load_into(self.network, bundles["sr"])
        self.network.requires_grad_(False)
        self.fuser = build_fuser(bundles["fusion"])

    def to(self, device: torch.device) -> "SmallSystem":
        """Move the weights and return self."""
        self.network, self.fuser = self.network.to(device), self.fuser.to(device)
        return self

    def predict(self, stage: Stage, given: StageInput) -> Tensor:
        """Return RGB, then the other bands."""
        return self.network(given.images["rgb"]) if stage.name == "sr" else fused(self.fuser, stage, given)


def stages(bundles: Bundles, options: Settings) -> tuple[Stage, ...]:
    """Return RGB from 10 m to 2.5 m, then the other bands."""
    sr = Stage("sr", (Input("rgb", RGB, 10),), gives=RGB, gsd_m=2.5, lattice=lattice_of(bundles["sr"]), weights="sr")
    return sr, fusion_stage(bundles["fusion"], sr)


systems.register(
    SystemSpec(
        name="small",
        summary="a few convolutions",
        stages=stages,
        build=SmallSystem,
        weights=(Weights("sr", ("small-sr",)), SHIPPED),
        memory=Memory(weights_mib=20.0, floats_per_px=200.0),
    )
)
weights = (str(out / "small.safetensors"),)
given = pipeline.load_plan(store)
plan = replace(given, config=replace(given.config, sr="small", weights=weights), system=choose("small", weights))
mine = folder / "mine.zarr"
prepare(plan, mine)
summary = run_plan(plan, mine, cluster="inline", workers=1)
print(f"{summary.units} units in {summary.seconds:.1f} s")

# %% [markdown]
# ## Is it any good?
#
# `training.evaluate` judges what a run stores, on held-out places, beside every method that a network has to beat. It
# prints tables; every score is in the CSV beside them.

# %%
table = folder / "table.md"
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    assert evaluate.main([str(out), "--on", str(file), "--only", "images", "--per-set", "2", "--out", str(table)]) == 0
with table.with_suffix(".csv").open() as scores:
    psnr: dict[str, list[float]] = {}
    for row in csv.DictReader(scores):
        if row["table"] == "quality" and row["statistic"] == "value":
            psnr.setdefault(row["method"], []).append(float(row["PSNR"]))
for method in ("bicubic", "IBP", "stored small: mean, sensor"):
    print(f"{method:30s} {np.mean(psnr[method]):.2f} dB")

# %%
own = pipeline.open_store(mine).isel(time=0)
middle_x, middle_y = float(own.x.mean()), float(own.y.mean())
square = {"x": slice(middle_x - 150, middle_x + 150), "y": slice(middle_y + 150, middle_y - 150)}
figure, axes = plt.subplots(1, 2, figsize=(10, 5.4), layout="constrained")
panels = {"measured, 10 m": pipeline.open_measured(store)[10].isel(time=0), "my network, 2.5 m": own}
for panel, (name, image) in zip(axes, panels.items(), strict=True):
    pipeline.true_color(image).sel(square).plot.imshow(ax=panel, rgb="rgb", interpolation="nearest", add_labels=False)
    panel.set(title=name, aspect="equal", xticks=[], yticks=[])
plt.show()
