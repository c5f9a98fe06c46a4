"""Settings that shape the pixels of a run besides scenes and weights."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.bands import BLOCK_60M, BY_NAME
from pipeline.grid.grid import align_up
from pipeline.grid.native_rasters import factor_of
from pipeline.grid.sensor import Sensor, sensor
from pipeline.superres.contract import reach_px


@dataclass(frozen=True)
class Options:
    """Settings of `super_resolve`; `mtf` overrides the published MTF by band."""

    seed: int = 0
    stream: int = 0  # noise stream of a UTM zone and time step
    members: int = 0  # draws to average; 0: the conditional mean of a regression
    consistency: str = "sensor"
    mtf: tuple[tuple[str, float], ...] = ()
    batch: int = 1  # windows that the networks compute at once
    variant: int = 0  # number of the image, where a system gives several of a time step

    def sensor(self, name: str) -> Sensor | None:
        """Return the sensor of a band if the output has to agree with it, else None."""
        if self.consistency != "sensor":
            return None
        return sensor(self.mtf_of(name), factor_of(name))

    def mtf_of(self, name: str) -> float:
        """Return the MTF of a band at the Nyquist frequency of its own grid."""
        return dict(self.mtf).get(name) or BY_NAME[name].product_mtf

    def reach_px(self, order: tuple[str, ...]) -> int:
        """Return how far around an area its bands have to be predicted, in px of 2.5 m, a multiple of 24."""
        reaches = [reach_px(of) for name in order if (of := self.sensor(name)) is not None]
        return align_up(max(reaches, default=0), BLOCK_60M)
