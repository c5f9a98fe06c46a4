"""A system whose network only waits, as for a GPU: 12 bands in the windows of `lite`, which say where they are."""

import fcntl
import time
from contextlib import contextmanager

from pipeline.bands import BAND_NAMES, GSDS_M, bands_at
from pipeline.grid.lattice import Lattice
from pipeline.superres.declared import Option
from pipeline.superres.spec import Input, Memory, Predictor, Stage, SystemSpec

LATTICE = Lattice(480, 384, 48, 24)
READS = tuple(Input(f"{gsd} m", bands_at(gsd), gsd, optional=gsd > 10) for gsd in GSDS_M)
STAGE = Stage("wait", READS, BAND_NAMES, 2.5, LATTICE)


@contextmanager
def taken(device):
    """Hold the lock of a file, as processes have a GPU in turn, and note there for how long. Nothing without a file."""
    if not device:
        yield
        return
    with open(device, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        started = time.monotonic()
        yield
        print(time.monotonic() - started, file=file)


class Waiting(Predictor):
    """It sleeps, which leaves the processor to others, and gives the mean of the window."""

    def __init__(self, bundles, options):
        del bundles
        self.seconds, self.device = float(options["milliseconds"]) / 1000, str(options["device"])

    def to(self, device):
        return self

    def predict(self, stage, given):
        if self.seconds:
            with taken(self.device):
                time.sleep(self.seconds)
        mean = given.images["10 m"].mean((1, 2, 3), keepdim=True)
        side = stage.lattice.window_px
        return mean.expand(len(mean), len(BAND_NAMES), side, side)


def system(elsewhere=True):
    return SystemSpec(
        name="toy-waiting" if elsewhere else "toy-waiting-here",
        summary="one network that waits",
        stages=lambda _bundles, _options: (STAGE,),
        build=Waiting,
        options=(
            Option("milliseconds", 0.0, "time of a window", low=0.0),
            Option("device", "", "a file, which stands for a GPU that processes share, and says how long it was taken"),
        ),
        memory=Memory(0.0, 60.0),
        elsewhere=elsewhere,
    )


SYSTEM = system()
