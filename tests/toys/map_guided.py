"""Three bands x8 at once, with a map of buildings and roads; their 2.5 m are the block means of what is made."""

import torch
from torch.nn import functional

from pipeline.bands import RGB
from pipeline.grid.lattice import Lattice
from pipeline.superres.declared import Condition, MapClass, MapRule, Option
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec

MAP = Condition(
    "map",
    "a map of buildings and roads",
    classes=(
        MapClass("building", rules=(MapRule((("kind", ("building",)),)), MapRule((("building", ()),)))),
        MapClass(
            "road", rules=(MapRule((("kind", ("road",)),), width_m=6.0), MapRule((("highway", ()),), width_m=6.0))
        ),
    ),
)
READS = (Input("rgb", RGB, 10), Input("map", MAP.channels, 1.25, MAP.source))
STAGE = Stage("x8", READS, RGB, 1.25, Lattice(192, 144, 16, 16), stochastic=True)
CONTRAST = Option("contrast", 0.05, "how far buildings stand out, in reflectance", 0.0, 0.2)


class Networks(Predictor):
    """What a network would do, without one."""

    def __init__(self, bundles, options):
        del bundles, options

    def to(self, device):
        return self

    def predict(self, stage, given):
        up = functional.interpolate(given.images["rgb"], scale_factor=8, mode="bicubic", align_corners=False)
        building, road = given.images["map"].split(1, 1)
        drawn = given.options["contrast"] * (building - 0.5 * road)
        return up + torch.cat([drawn] * len(RGB), 1) + 0.01 * given.noise(0, len(RGB))


SYSTEM = SystemSpec(
    name="toy-map",
    summary="three bands x8, guided by a map",
    stages=lambda _bundles, _options: (STAGE,),
    build=Networks,
    memory=Memory(0.0, 200.0),
    options=(CONTRAST,),
    conditions=(MAP,),
)
