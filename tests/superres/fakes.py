"""A super-resolver and a fusion with known behaviour: local, stochastic, quick."""

import torch
from torch.nn import functional

from pipeline.bands import BAND_NAMES, RGB
from pipeline.grid.arrays import copied
from pipeline.models.bundle import Bundle, LatticeSpec
from pipeline.superres.chain import INTERPOLATION
from pipeline.superres.spec import Input, Predictor, Stage
from pipeline.superres.system import System
from pipeline.superres.systems.guided_fusion import NATIVE, fused, fusion_stage

CPU = torch.device("cpu")
FUSED = ("B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")
NO_LATTICE = LatticeSpec(0, 0, 0, 0)
FUSION_BUNDLE = Bundle("fake-fusion", {}, BAND_NAMES, FUSED, 4, NO_LATTICE)


def cut_from(image, area):
    """What `agreeing` asks for its bands, taken from an image (bands, *area)."""
    return lambda bands, window: copied(image[(bands, *window.slices(area))])


def smooth(image, factor=4):
    return functional.interpolate(image, scale_factor=factor, mode="bicubic", align_corners=False)


class GuidedFuser:
    """Interpolation of each band plus the guide's high frequencies."""

    out_bands = FUSED

    def predict(self, rgb_sr, ms, present):
        size = rgb_sr.shape[-2:]
        detail = (rgb_sr - functional.avg_pool2d(rgb_sr, 5, 1, 2)).mean(1, keepdim=True)
        out = []
        for name in FUSED:
            gsd = next(g for g, names in NATIVE.items() if name in names)
            raster = ms[gsd][:, NATIVE[gsd].index(name)][:, None]
            out.append(functional.interpolate(raster, size=size, mode="bilinear", align_corners=False) + detail)
        return torch.cat(out, 1)


class Noisy(Predictor):
    """Interpolation plus a smoothed keyed noise field and a dependence on the whole window (as GroupNorm has)."""

    def __init__(self, amplitude=0.02, couple=0.0):
        self.amplitude, self.couple = amplitude, couple
        self.fuser = GuidedFuser()

    def to(self, device):
        return self

    def predict(self, stage, given):
        return fused(self.fuser, stage, given) if stage.name == "fusion" else self.resolve(given)

    def resolve(self, given):
        lr = given.images["rgb"]
        detail = functional.avg_pool2d(given.noise(0, 3), 3, 1, 1) * self.amplitude
        return smooth(lr) + detail + self.couple * (lr.mean((1, 2, 3), keepdim=True) - 0.1)


def fake_stages(lattice=INTERPOLATION):
    resolve = Stage("sr", (Input("rgb", RGB, 10),), RGB, 2.5, lattice, stochastic=True)
    return resolve, fusion_stage(FUSION_BUNDLE, resolve)


def fake_system(couple=0.0, lattice=INTERPOLATION):
    return System("fake", fake_stages(lattice), Noisy(couple=couple), {}, CPU)


def plain_system():
    """Interpolation."""
    return System("plain", (), None, {}, CPU)
