"""Switches that reproduce deviations of the released DiffFuSR code from its paper or its apparent intent.

All are off by default. Turn them on to reproduce the release.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class AsPublished:
    """Switches, all off by default. `--as-published` turns on those named, or all.

    Two published values need no switch because they are the default: the contrastive weight 0.05 of the code (0.01 in
    the paper's eq. 8), set in a preset's `recipe`, and the unscaled noise level.
    """

    angle: bool = False  # kernels rotate by 0 to 1 degree (a factor pi / 180 too many) instead of 0 to 180
    anisotropic: bool = False  # all kernels have two widths, 0.2 to 4 px, instead of half of them
    noise: bool = False  # noise of sd U(0, 25) / 255, up to 0.098 reflectance, instead of 5e-4 to 1e-2, log-uniform
    hr_8bit: bool = False  # harmonised target reflectance is quantised to steps of 1 / 255, rounded down
    lr_8bit: bool = False  # the coarse image is quantised to steps of 1 / 255, rounded to nearest
    squared: bool = False  # mean squared error of x0 (code) instead of the mean absolute error (paper, eq. 5)

    @classmethod
    def of(cls, names: Sequence[str]) -> AsPublished:
        """Return the switches with `names` on. Raises UsageError for an unknown name."""
        unknown = [name for name in names if name not in SWITCHES]
        if unknown:
            raise UsageError(
                f"--as-published {unknown[0]} is not known", f"none (for all), or of {', '.join(SWITCHES)}"
            )
        return cls(**dict.fromkeys(names, True))


SWITCHES = tuple(field.name for field in fields(AsPublished))
