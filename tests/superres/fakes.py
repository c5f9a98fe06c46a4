"""A super-resolver and a fuser with known behaviour: local, stochastic, quick."""

from types import SimpleNamespace

import torch
from torch.nn import functional

from pipeline.superres.systems import DEFAULT_LATTICE, FUSION_INPUTS, System

FUSED = ("B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")


class NoisyResolver:
    """Interpolation plus a smoothed keyed noise field and a dependence on the whole window (as GroupNorm has)."""

    in_bands = out_bands = ("B04", "B03", "B02")
    scale, stochastic, needs_state = 4, True, False

    def __init__(self, amplitude=0.02, couple=0.0):
        self.amplitude, self.couple = amplitude, couple
        self.bundle = SimpleNamespace(normalisation={})

    def to(self, device):
        return self

    def scene_state(self, windows):
        return {}

    def predict(self, lr, conditions, valid, noise, state):
        up = functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)
        detail = functional.avg_pool2d(noise(0, 3), 3, 1, 1) * self.amplitude
        return up + detail + self.couple * (lr.mean() - 0.1)


class GuidedFuser:
    """Interpolation of each band plus the guide's high frequencies."""

    out_bands = FUSED

    def __init__(self):
        self.bundle = SimpleNamespace(normalisation={})

    def to(self, device):
        return self

    def predict(self, rgb_sr, ms, present):
        size = rgb_sr.shape[-2:]
        detail = (rgb_sr - functional.avg_pool2d(rgb_sr, 5, 1, 2)).mean(1, keepdim=True)
        out = []
        for name in FUSED:
            gsd = next(g for g, names in FUSION_INPUTS.items() if name in names)
            raster = ms[gsd][:, FUSION_INPUTS[gsd].index(name)][:, None]
            out.append(functional.interpolate(raster, size=size, mode="bilinear", align_corners=False) + detail)
        return torch.cat(out, 1)


def fake_system(couple=0.0, lattice=DEFAULT_LATTICE):
    return System("fake", lattice, NoisyResolver(couple=couple), GuidedFuser(), torch.device("cpu"))
