"""Four bands x4 by one convolution over interpolation: a system, the task that trains it, and one that goes on."""

import torch
from torch import nn
from torch.nn import functional

from pipeline.grid.lattice import Lattice
from pipeline.models.bundle import Bundle, LatticeSpec, load_into
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec, Weights
from training.degradation.degrade import DegradationRange, degrade_randomly
from training.degradation.sensor import relative_widths
from training.loop.task import Measured, Objective
from training.presets import Preset
from training.presets import Stage as Part
from training.quality.pairs import average, per_set_mean, score, side_by_side, watched_pairs
from training.task_spec import TaskSpec

BANDS = ("B02", "B03", "B04", "B08")
KIND, NEXT = "toy-rgbn-sr", "toy-rgbn-next"
LATTICE = Lattice(128, 88, 16, 12)
STAGE = Stage("sharpen", (Input("rgbn", BANDS, 10),), BANDS, 2.5, LATTICE, weights="sr")
SENSOR = DegradationRange((1.8, 2.4), anisotropic=0.0, bicubic=0.0, noise=(4e-4, 1e-3))


class Sharpen(nn.Module):
    """Bicubic, and a correction that begins as nothing."""

    def __init__(self, taps):
        super().__init__()
        self.correction = nn.Conv2d(len(BANDS), len(BANDS), taps, padding=taps // 2, bias=False)
        nn.init.zeros_(self.correction.weight)

    def forward(self, lr):
        up = functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)
        return up + self.correction(up)


class Networks(Predictor):
    """The trained convolution."""

    def __init__(self, bundles, options):
        self.network = Sharpen(**bundles["sr"].architecture)
        load_into(self.network, bundles["sr"])
        self.network.requires_grad_(False)

    def to(self, device):
        self.network.to(device)
        return self

    def predict(self, stage, given):
        return self.network(given.images["rgbn"])


SYSTEM = SystemSpec(
    name="toy-trained-rgbn",
    summary="four bands x4 by one convolution",
    stages=lambda _bundles, _options: (STAGE,),
    build=Networks,
    weights=(Weights("sr", (KIND, NEXT)),),
    memory=Memory(1.0, 200.0),
)


class Task:
    """Absolute error in four bands, each blurred by its own MTF."""

    kind = KIND

    def __init__(self, preset, data):
        self.preset, self.data = preset, data
        self.network = Sharpen(**preset.architecture)
        self.sampler = data.hr_sampler("train", preset.crop_px, bands=BANDS, recoloured=0.0)
        self.pairs = watched_pairs(data, BANDS)

    def batch(self, draw):
        hr = torch.from_numpy(self.sampler.batch(draw.rng, self.preset.batch))
        return {"lr": degrade_randomly(hr, SENSOR, draw.torch, widths=relative_widths(BANDS)), "hr": hr}

    def begin(self, stage, draw):
        pass

    def finish(self):
        pass

    def loss(self, stage, batch, draw):
        errors = (self.network(batch["lr"]) - batch["hr"]).abs().mean((0, 2, 3))
        return Objective(errors.mean(), dict(zip(BANDS, errors, strict=True)))

    @torch.no_grad()
    def validate(self, stage):
        scores = [score(self.network(pair.lr), pair) for pair in self.pairs]
        mean = average(per_set_mean(self.pairs, scores))
        return Measured(f"{mean:.3f} dB", {"psnr": mean})

    @torch.no_grad()
    def samples(self, stage):
        return [side_by_side(pair, self.network(pair.lr)) for pair in self.pairs[:2]]

    def describe(self):
        return self.data.describe("super-resolution", BANDS)

    def bundle(self, provenance=None, licence=""):
        return Bundle(
            self.kind, self.preset.architecture, BANDS, BANDS, 4, LatticeSpec(128, 88, 16, 12), {}, {},
            provenance or {}, licence,
        )  # fmt: skip


class NextTask(Task):
    """The same, from weights of the first."""

    kind = NEXT

    def begin_from(self, bundle):
        load_into(self.network, bundle)


def _preset(task):
    return Preset(
        task,
        task,
        {"taps": 9},
        (Part("all", 1.0, (), 3e-3),),
        minutes=1,
        batch=4,
        crop_px=64,
        ema=0.9,
        warmup_steps=2,
        bands=BANDS,
    )


TASK = TaskSpec("toy-rgbn", "four bands by one convolution", KIND, (_preset("toy-rgbn"),), Task)
GOES_ON = TaskSpec("toy-rgbn-on", "goes on from the first", NEXT, (_preset("toy-rgbn-on"),), NextTask, follows=(KIND,))
