"""Four bands in two passes: x4 from the scenes to 2.5 m, then x2 from what is stored to 1.25 m."""

from torch.nn import functional

from pipeline.grid.lattice import Lattice
from pipeline.superres.spec import FINISHED, Input, Memory, Predictor, Stage, SystemSpec

BANDS = ("B02", "B03", "B04", "B08")
FIRST = Stage("x4", (Input("coarse", BANDS, 10),), BANDS, 2.5, Lattice(128, 88, 16, 12))
SECOND = Stage("x2", (Input("coarse", BANDS, 2.5, FINISHED),), BANDS, 1.25, Lattice(104, 80, 8, 8), stochastic=True)


class Networks(Predictor):
    """What a network would do, without one."""

    def __init__(self, bundles, options):
        del bundles, options

    def to(self, device):
        return self

    def predict(self, stage, given):
        lr = given.images["coarse"]
        up = functional.interpolate(lr, size=(stage.lattice.window_px,) * 2, mode="bicubic", align_corners=False)
        detail = 0.2 * (up - functional.interpolate(lr, size=up.shape[-2:], mode="nearest"))
        return up + detail + 0.02 * lr.mean() + (0.01 * given.noise(0, len(BANDS)) if given.noise else 0.0)


SYSTEM = SystemSpec(
    name="toy-cascade",
    summary="a cascade in two passes",
    stages=lambda _bundles, _options: (FIRST, SECOND),
    build=Networks,
    memory=Memory(0.0, 200.0),
)
