"""One network that gives all 12 bands, without a fusion: each band gets a share of the detail of the red one."""

import torch
from torch.nn import functional

from pipeline.bands import BAND_NAMES, BY_NAME, GSDS_M, bands_at
from pipeline.grid.lattice import Lattice
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec

LATTICE = Lattice(144, 96, 24, 12)
READS = tuple(Input(f"{gsd} m", bands_at(gsd), gsd, optional=gsd > 10) for gsd in GSDS_M)
STAGE = Stage("all", READS, BAND_NAMES, 2.5, LATTICE)


class Networks(Predictor):
    """What a network would do, without one."""

    def __init__(self, bundles, options):
        del bundles, options

    def to(self, device):
        return self

    def predict(self, stage, given):
        size = (stage.lattice.window_px, stage.lattice.window_px)
        red = given.images["10 m"][:, bands_at(10).index("B04")][:, None]
        sharp = functional.interpolate(red, size=size, mode="bicubic", align_corners=False)
        detail = 0.2 * (sharp - functional.interpolate(red, size=size, mode="nearest"))
        out = []
        for band in BAND_NAMES:
            gsd = BY_NAME[band].gsd_m
            raster = given.images[f"{gsd} m"][:, bands_at(gsd).index(band)][:, None]
            out.append(functional.interpolate(raster, size=size, mode="bilinear", align_corners=False) + detail)
        return torch.cat(out, 1)


SYSTEM = SystemSpec(
    name="toy-all-bands",
    summary="one network for all 12 bands",
    stages=lambda _bundles, _options: (STAGE,),
    build=Networks,
    memory=Memory(0.0, 200.0),
)
