"""Four bands x4 in windows that do not nest with 20 or 60 m: bicubic, keyed noise, and the window's mean."""

from torch.nn import functional

from pipeline.grid.lattice import Lattice
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec

BANDS = ("B02", "B03", "B04", "B08")
LATTICE = Lattice(128, 88, 16, 12)
STAGE = Stage("latent", (Input("rgbn", BANDS, 10),), BANDS, 2.5, LATTICE, stochastic=True)


class Networks(Predictor):
    """What a network would do, without one."""

    def __init__(self, bundles, options):
        del bundles, options

    def to(self, device):
        return self

    def predict(self, stage, given):
        lr = given.images["rgbn"]
        up = functional.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)
        coarse = functional.interpolate(given.noise(1, len(BANDS), coarser=4), scale_factor=4, mode="nearest")
        return up + 0.01 * given.noise(0, len(BANDS)) + 0.005 * coarse + 0.05 * (lr.mean() - 0.1)


SYSTEM = SystemSpec(
    name="toy-rgbn",
    summary="four bands x4 in windows of its own",
    stages=lambda _bundles, _options: (STAGE,),
    build=Networks,
    memory=Memory(0.0, 200.0),
)
