"""What shapes the pixels of a run besides scenes and weights."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.bands import BLOCK_60M, BY_NAME
from pipeline.grid.grid import align_up
from pipeline.grid.native_rasters import factor_of
from pipeline.grid.sensor import Sensor, sensor
from pipeline.superres.contract import reach_px


@dataclass(frozen=True)
class Options:
    """Settings of `super_resolve`; `mtf` is by band, where not the published one."""

    seed: int = 0
    stream: int = 0  # tells UTM zones and time steps apart
    members: int = 0  # draws that are averaged; 0: the conditional mean, as regressions give it
    consistency: str = "sensor"
    mtf: tuple[tuple[str, float], ...] = ()

    def sensor(self, name: str) -> Sensor | None:
        """How a band is measured, where the output has to agree with that; else None."""
        if self.consistency != "sensor":
            return None
        return sensor(self.mtf_of(name), factor_of(name))

    def mtf_of(self, name: str) -> float:
        """MTF of a band at the Nyquist frequency of its own grid."""
        return dict(self.mtf).get(name) or BY_NAME[name].product_mtf

    def reach_px(self, order: tuple[str, ...]) -> int:
        """How far around a piece of ground its bands have to be predicted, a multiple of 24 px."""
        reaches = [reach_px(of) for name in order if (of := self.sensor(name)) is not None]
        return align_up(max(reaches, default=0), BLOCK_60M)
